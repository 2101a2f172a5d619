"""How one weight becomes a network."""
