"""Seconds as a budget: what a file of measurements says of candidates that nobody has built yet."""
