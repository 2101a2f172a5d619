"""Alternating least squares: what has no closed form, with a metric and without."""
