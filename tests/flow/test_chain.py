"""A chain stops where it is asked to, and sees there what enters the layers."""

import pytest
import torch
from torch import nn

from bondwise.flow.chains.blocks import capture
from bondwise.flow.chains.chain import Chain, inside
from bondwise.progress import silent


@pytest.mark.parametrize("held_out", [(), (2,)])
def test_a_chain_stops_where_it_is_asked_to(held_out):
    model = nn.Sequential(*[nn.Linear(6, 6, bias=False) for _ in range(4)]).double()
    batches = list(torch.randn(3, 5, 6, dtype=torch.float64))
    names = tuple("0123")
    stream = capture(model, names, batches, silent)
    chain = Chain(names, ["1", "2", "3"], stream, held_out)
    first, second = chain.walk(model, {1, 2})
    assert (first.at, second.at) == (1, 2)
    assert (list(first.layers), list(second.layers)) == (["1"], ["2"])
    states = [model[:2](x) for x in batches]
    assert torch.allclose(second.entering.hidden[0], states[2 if held_out else 0])
    x = torch.cat(states[:2] if held_out else states)
    assert second.seen.of("2").tokens == len(x)
    assert torch.allclose(second.seen.of("2").second_moment.double(), x.T @ x, rtol=1e-4)  # float32
    assert (second.unseen.of("2") is None) == (not held_out)
    assert not list(chain.walk(model, set()))


def test_the_path_of_a_weight_inside_its_block():
    assert inside(["a.1", "a.10"], "a.10.down") == ".down"
    assert inside(["a.1"], "head") == "head"
