"""Layers made fast on this machine: what can run them is measured, and the fastest kept."""
