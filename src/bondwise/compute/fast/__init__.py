"""How a weight runs once it is laid out beforehand: the ways that there are."""
