"""Layers made ready for one machine, and what was measured there."""
