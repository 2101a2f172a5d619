"""What was saved once loads for ever, and computes the same."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from bondwise import merge
from bondwise.checkpoint.checkpoint import load

HERE = Path(__file__).parent
NAMES = {"remainder": "t1_entries"}  # those of schemas 1 and 2 that are others now
GONE = re.compile(r"(pivots_\d+|remainder_at|_extra_state|weight)$")
IDS = torch.tensor([[5, 17, 3, 60, 2, 9, 9, 41]])
# another machine rounds otherwise: a few last bits of float32 through one block
CLOSE = {"rtol": 1e-4, "atol": 1e-5}

pytestmark = pytest.mark.golden


def assert_bit_for_bit(model, folder):
    """Every number of the file is in the model, those that were shared in each of their layers."""
    saved, got = load_file(folder / "model.safetensors"), model.state_dict()
    hub = (folder / "config.json").is_file()
    manifest = json.loads((folder / ("config.json" if hub else "bondwise.json")).read_text())
    layers = (manifest["quantization_config"] if hub else manifest)["modules"]
    for name, value in saved.items():
        path, _, last = name.rpartition(".")
        if path not in layers or not GONE.search(last):
            assert torch.equal(got[f"{path}.{NAMES.get(last, last)}"], value), name
    for path, spec in layers.items():
        for core, owner in spec.get("shared", {}).items():
            assert torch.equal(got[f"{path}.core_{core}"], saved[f"{owner}.core_{core}"])


@pytest.mark.parametrize("version", [1, 2, 3])
@torch.no_grad()
def test_a_language_model(version):
    from transformers import AutoModelForCausalLM

    folder = HERE / f"llama-tiny-v{version}"
    want = load_file(HERE / f"llama-tiny-v{version}.safetensors")["logits"]
    assert want.std() > 0.1
    for model in (load(folder), AutoModelForCausalLM.from_pretrained(folder)):
        torch.testing.assert_close(model(IDS).logits, want, **CLOSE)
        assert_bit_for_bit(model, folder)


@pytest.mark.parametrize("version", [1, 2, 3])
@torch.no_grad()
def test_a_plain_module(version):
    skeleton = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 8))
    want = load_file(HERE / f"module-v{version}.safetensors")
    model = load(HERE / f"module-v{version}", model=skeleton)
    assert_bit_for_bit(model, HERE / f"module-v{version}")
    torch.testing.assert_close(model(want["x"]), want["y"], **CLOSE)


@torch.no_grad()
def test_convolutions():
    moved = {"stride": (1, 2), "padding": (1, 0), "groups": 2, "padding_mode": "circular"}
    skeleton = nn.Sequential(
        nn.Conv2d(4, 12, (3, 2), **moved),
        nn.ReLU(),
        nn.Conv2d(12, 8, 3, padding="same"),
        nn.ConvTranspose2d(8, 3, 2, stride=2, output_padding=1, bias=False),
    )
    want = load_file(HERE / "convolution-v3.safetensors")
    assert want["y"].std() > 0.01
    model = load(HERE / "convolution-v3", model=skeleton)
    assert_bit_for_bit(model, HERE / "convolution-v3")
    torch.testing.assert_close(model(want["x"]), want["y"], **CLOSE)
    dense = merge(model)  # by torch's own convolutions
    assert [type(each) for each in dense] == [type(each) for each in skeleton]
    torch.testing.assert_close(dense(want["x"]), want["y"], **CLOSE)
