"""How a network computes."""
