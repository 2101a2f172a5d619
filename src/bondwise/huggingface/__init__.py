"""The door to transformers: reading models and text, and checkpoints that the Auto classes load."""
