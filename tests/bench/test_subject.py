"""A measured model stands in memory of its own, and is the same model."""

import re
from pathlib import Path

import pytest
import torch

from bondwise.bench.count import networks
from bondwise.bench.run import Load
from bondwise.bench.subject import owned, subject
from bondwise.checkpoint.loading import load_model


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_no_file_stays_mapped(small, dtype):
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("only Linux lists what is mapped")
    folder = small / "llama"
    found = subject(str(folder), Load(8, 2), "cpu", dtype)
    assert networks(found.model) == 14
    assert not re.search(rf"{re.escape(str(folder))}\S*\.safetensors", maps.read_text())


def test_ties_and_values_stay(shelf):
    model = load_model(shelf / "tied").model
    copy = owned(model)
    assert copy.lm_head.weight is copy.model.embed_tokens.weight
    assert copy.lm_head.weight is not model.lm_head.weight
    ids = torch.arange(8)[None]
    with torch.no_grad():
        assert torch.equal(copy(ids).logits, model(ids).logits)
