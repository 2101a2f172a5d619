"""The embedded demo: a real model and real text, fetched through pip."""
