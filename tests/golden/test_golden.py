"""What was saved once loads for ever, and computes the same."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from bondwise.checkpoint.checkpoint import load

HERE = Path(__file__).parent
IDS = torch.tensor([[5, 17, 3, 60, 2, 9, 9, 41]])
# another machine rounds otherwise: a few last bits of float32 through one block
CLOSE = {"rtol": 1e-4, "atol": 1e-5}

pytestmark = pytest.mark.golden


@pytest.mark.parametrize("version", [1, 2])
@torch.no_grad()
def test_a_language_model(version):
    from transformers import AutoModelForCausalLM

    folder = HERE / f"llama-tiny-v{version}"
    want = load_file(HERE / f"llama-tiny-v{version}.safetensors")["logits"]
    assert want.std() > 0.1
    for model in (load(folder), AutoModelForCausalLM.from_pretrained(folder)):
        torch.testing.assert_close(model(IDS).logits, want, **CLOSE)


@pytest.mark.parametrize("version", [1, 2])
@torch.no_grad()
def test_a_plain_module(version):
    skeleton = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 8))
    want = load_file(HERE / f"module-v{version}.safetensors")
    model = load(HERE / f"module-v{version}", model=skeleton)
    torch.testing.assert_close(model(want["x"]), want["y"], **CLOSE)
