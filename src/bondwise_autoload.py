"""Runs at `import torch` (entry point `torch.backends`): makes our checkpoints known to transformers, lazily."""


def register() -> None:
    """Nothing yet."""
