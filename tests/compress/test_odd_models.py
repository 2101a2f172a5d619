"""Odd models through the whole way with data: each keeps its budget and is left as it was."""

from copy import deepcopy

import pytest
import torch
from torch import nn

import bondwise as bw
from bondwise.choose.survey import Reference, resumed
from bondwise.compress.refine import refine
from bondwise.flow.blocks import capture, chains
from bondwise.progress import silent
from tiny import bert, gpt2, llama, tokens


class Vector(nn.Module):
    """Gives nothing with a fraction in it, so that nothing can be compared."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(24, 24)

    def forward(self, x):
        return self.layer(x).argmax(-1)


class Loop(nn.Module):
    """One block called three times."""

    def __init__(self):
        super().__init__()
        self.block = nn.Sequential(nn.Linear(24, 24), nn.GELU(), nn.Linear(24, 24))

    def forward(self, x):
        for _ in range(3):
            x = x + self.block(x)
        return x


class Switch(nn.Module):
    """Two blocks in a list, the second with an expert that no token reaches."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(24, 24) for _ in range(2))
        self.spare = nn.Linear(24, 24)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


def vectors():
    return torch.randn(300, 24, generator=torch.Generator().manual_seed(0))


ODD = {
    "llama in training": (lambda: llama().train(), tokens()),
    "gpt2 with dropout": (lambda: gpt2().train(), tokens()),
    "bfloat16": (lambda: llama().to(torch.bfloat16), tokens()),
    "float16": (lambda: llama().to(torch.float16), tokens()),
    "frozen": (lambda: llama().requires_grad_(False), tokens()),
    "one sequence": (llama, tokens(1)),
    "two sequences": (llama, tokens(2)),
    "one linear": (lambda: nn.Linear(24, 24), vectors()),
    "shared": (lambda: nn.Sequential(m := nn.Linear(24, 24), nn.ReLU(), m), vectors()),
    "called often": (Loop, vectors()),
    "unreached": (Switch, vectors()),
    "no output to compare": (Vector, vectors()),
    "all zero": (Switch, torch.zeros(50, 24)),
}


@pytest.mark.parametrize("kind", ODD)
def test_odd_models_keep_their_budget_and_are_left_as_they_were(kind, brief):
    torch.manual_seed(0)
    make, data = ODD[kind]
    model = make() if kind != "one linear" else nn.Sequential(make())
    twin = deepcopy(model)
    random = torch.get_rng_state()
    result = bw.tensorize(model, keep=0.7, data=data)
    assert result.table.kept <= 0.7
    assert torch.equal(torch.get_rng_state(), random)
    for (name, one), two in zip(model.named_modules(), twin.modules(), strict=True):
        assert one.training == two.training, name
        assert one.__dict__.keys() == two.__dict__.keys(), name  # no forward of ours stays
        assert not one._forward_pre_hooks
        assert not one._forward_hooks
    assert all(map(torch.equal, model.state_dict().values(), twin.state_dict().values()))
    assert all(torch.isfinite(p).all() for p in result.model.parameters())
    modes = {n: m.training for n, m in model.named_modules()}
    assert all(m.training == modes.get(n, model.training) for n, m in result.model.named_modules())
    dtypes = {p.dtype for p in model.parameters()}
    assert {p.dtype for p in result.model.parameters()} == dtypes
    assert all(row.error is None or row.error == row.error for row in result.table)


def test_padding_changes_nothing(brief):
    ids, mask = tokens(16, 12), torch.ones(16, 20, dtype=torch.long)
    mask[:, 12:] = 0
    padded = torch.cat([ids, torch.zeros(16, 8, dtype=torch.long)], 1)
    plain = bw.tensorize(bert(), keep=0.6, data=[{"input_ids": ids}])
    other = bw.tensorize(bert(), keep=0.6, data=[{"input_ids": padded, "attention_mask": mask}])
    for one, two in zip(plain.table, other.table, strict=True):
        assert (one.format, one.after) == (two.format, two.after)
        assert one.error == pytest.approx(two.error, rel=1e-3) if one.error else not two.error


@pytest.mark.parametrize("make", [llama, gpt2, bert])
def test_a_chain_of_blocks_is_the_model(make):
    model, ids = make(), tokens(4)
    names = [n for n, m in model.named_modules() if type(m).__name__ in ("Linear", "Conv1D")]
    (blocks,) = chains(model, [n for n in names if "head" not in n and "pooler" not in n])
    stream = capture(model, blocks, [ids[:2], ids[2:]], silent)
    assert stream is not None
    with torch.no_grad():
        states = [model(part, output_hidden_states=True).hidden_states for part in ids.split(2)]
    for at, name in enumerate(blocks[:-1]):  # the last one transformers gives after its norm
        assert torch.allclose(stream.hidden[1], states[1][at], atol=1e-2)
        stream = stream.after(model.get_submodule(name))


@pytest.mark.parametrize("make", [llama, gpt2])
def test_a_resumed_model_gives_exactly_what_the_whole_one_gives(make):
    model, ids = make(), tokens(4)
    path = "model.layers" if make is llama else "transformer.h"
    blocks = [f"{path}.0", f"{path}.1"]
    judge, stream = Reference.of(model, ids), capture(model, blocks, [ids], silent)
    assert judge is not None
    assert stream is not None
    stream = stream.after(model.get_submodule(blocks[0]))
    with resumed(model, blocks, 1, stream):
        assert judge.distance() == pytest.approx(0, abs=1e-9)
        kept = {n: p.detach().clone() for n, p in model.named_parameters() if f"{path}.1." in n}
        with torch.no_grad():
            for parameter in model.get_submodule(blocks[1]).parameters():
                parameter.mul_(0.9)
        short = judge.distance()
    whole = judge.distance()
    assert short == whole > 0
    assert len(kept) > 4


def test_what_cannot_be_learnt_is_left_alone():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    x = [torch.randn(40, 8) for _ in range(3)]
    stream = capture(model, ["0", "1"], x, silent)
    assert stream is not None
    before = deepcopy(model[0].state_dict())
    found = refine(model[0], stream, [torch.randn(40, 8) for _ in x], [2], steps=300, rate=0.5)
    assert found.after <= found.before
    if found.after == found.before:
        assert all(map(torch.equal, before.values(), model[0].state_dict().values()))
