"""Numbers as one self-contained page, one table and one JSON file."""
