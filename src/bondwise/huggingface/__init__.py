"""The door to transformers: reading models and text, and loading our checkpoints with the Auto classes."""
