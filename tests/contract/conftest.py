"""Without the hook that checks shapes: others have none either, and here half the time is its."""

from collections.abc import Iterator

import pytest
from jaxtyping import config


@pytest.fixture(autouse=True)
def unchecked() -> Iterator[None]:
    """Shapes at the doors are checked in all other tests."""
    before = config.jaxtyping_disable
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", before)
