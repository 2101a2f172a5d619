"""Files of models with convolutions: every kind comes back, as it was and as it moves."""

import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import bondwise as bw
from bondwise.checkpoint.checkpoint import load, save
from bondwise.gauge.compact import compact
from bondwise.layers.hosts.registry import built
from bondwise.layers.networks import compacted

SHAPES = {1: (9,), 2: (9, 8), 3: (6, 5, 4)}


class Six(nn.Module):
    """One of each kind, of two groups and a stride; each meets an input of its own."""

    def __init__(self) -> None:
        super().__init__()
        for axes in SHAPES:
            moved = {"stride": 2, "padding": 1, "groups": 2}
            kernel = (3, 2, 2)[:axes]
            modes = {} if axes == 3 else {"padding_mode": "reflect"}
            kinds = getattr(nn, f"Conv{axes}d"), getattr(nn, f"ConvTranspose{axes}d")
            setattr(self, f"conv{axes}", kinds[0](4, 6, kernel, **moved, **modes))
            setattr(self, f"back{axes}", kinds[1](6, 4, kernel, bias=False, **moved))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = []
        for axes, shape in SHAPES.items():
            own = x[:, : 4 * torch.Size(shape).numel()].reshape(-1, 4, *shape)
            back = getattr(self, f"back{axes}")(getattr(self, f"conv{axes}")(own))
            found.append(back.flatten(1))
        return torch.cat(found, 1)


def on_networks(dense: nn.Module) -> nn.Module:
    """Every convolution without its gauge, at full rank, planned for its input's size."""
    model = copy.deepcopy(dense)
    for name, conv in dense.named_children():
        whole = getattr(bw, f"Tensor{type(conv).__name__}").from_conv(conv)
        layer = built(conv, [compacted(compact(whole.network, whole.cores()))])
        layer.size = SHAPES[len(conv.kernel_size)]
        setattr(model, name, layer)
    return model


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@torch.no_grad()
def test_all_six_kinds_come_back(tmp_path, dtype):
    dense = Six().double()
    x = torch.randn(2, 600, dtype=torch.float64)
    model = on_networks(dense)
    assert_close(model(x), dense(x), rtol=1e-10, atol=1e-10)
    model, x = model.to(dtype), x.to(dtype)
    again = load(save(model, tmp_path / "six"), model=Six())
    assert torch.equal(again(x), model(x))
    for name, layer in model.named_children():
        other = getattr(again, name)
        assert (type(other), repr(other)) == (type(layer), repr(layer))
        assert (other.options, other.size, other.macs(3)) == (
            layer.options,
            layer.size,
            layer.macs(3),
        )
    state = copy.deepcopy(model.state_dict())
    for p in again.parameters():
        p.zero_()
    again.load_state_dict(state)
    assert torch.equal(again(x), model(x))
    merged = bw.merge(again)
    assert [repr(m) for m in merged.children()] == [repr(m) for m in dense.children()]
