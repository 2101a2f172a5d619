"""Weights as sums of terms: the modules that hold them, and the kinds of module they stand for."""
