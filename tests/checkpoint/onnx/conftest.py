"""Tests that follow a model through torch: a size in a graph is no int, so no types are checked."""

import jaxtyping
import pytest


@pytest.fixture(autouse=True)
def unchecked(monkeypatch) -> None:
    """Nothing of bondwise checks the types of what it is called with."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
