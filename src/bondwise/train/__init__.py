"""A training loop that can be cut off, and the rates by which parameters move."""
