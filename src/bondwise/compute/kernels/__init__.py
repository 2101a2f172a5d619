"""Convolutions: how they move, and a network as a stack of smaller ones."""
