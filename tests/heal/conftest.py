"""Some healings are compared with plain float32, also where the processor's bfloat16 is fast."""

import pytest

from bondwise.flow import blocks


@pytest.fixture
def in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """The precision "auto" is float32 here; not in processes that a test starts."""
    monkeypatch.setattr(blocks, "fast_bfloat16", lambda _device: False)
