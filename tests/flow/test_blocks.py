"""Chains of blocks: found where they run in a row, and run alone as they run in the model."""

import pytest
import torch
import transformers as hf
from torch import nn

import bondwise as bw
import tiny
from bondwise.choose.survey import Reference, resumed
from bondwise.errors import DataError
from bondwise.flow.calibrate import Inputs
from bondwise.flow.chains import blocks as rooms
from bondwise.flow.chains.blocks import Stream, capture, chains
from bondwise.progress import silent
from tiny import bert, gpt2, llama, tokens

NAMES = [f"layers.{k}" for k in range(3)]


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x, scale=1.0):
        return x + scale * self.linear(x)


class Writing(Block):
    """Writes into what it is given."""

    def forward(self, x, scale=1.0):
        x += scale * self.linear(x)
        return x


class Last(Block):
    """Takes its state as a second argument."""

    def forward(self, scale, state):
        return super().forward(state, scale)


class KeywordOnly(Block):
    def forward(self, *, state, scale):
        return super().forward(state, scale)


class Carrying(Block):
    """Hands a residual on beside its state."""

    def forward(self, x, residual=None):
        residual = x if residual is None else x + residual
        return self.linear(residual), residual


class Model(nn.Module):
    def __init__(self, kind, run):
        super().__init__()
        self.layers, self.run, self.calls = nn.ModuleList(kind() for _ in range(3)), run, 0

    def forward(self, x):
        self.calls += 1
        return self.run(self.layers, x)


def in_a_row(layers, x):
    for layer in layers:
        x = layer(x)
    return x


def each_its_own(layers, x):
    for k, layer in enumerate(layers):
        x = layer(x, scale=0.5 * k)
    return x


def by_name(layers, x):
    for layer in layers:
        x = layer(state=x, scale=0.5)
    return x


def with_residual(layers, x):
    residual = None
    for layer in layers:
        x, residual = layer(x, residual)
    return x


def changed_between(layers, x):
    for layer in layers:
        x = layer(x) * 2
    return x


def model(kind, run):
    torch.manual_seed(0)
    return Model(kind, run)


def inputs(count=3):
    draw = torch.Generator().manual_seed(0)
    return [torch.randn(2, 4, 8, generator=draw) for _ in range(count)]


def captured(dense, names, batches):
    found = capture(dense, names, batches, silent)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("kind", "run"), [(Block, in_a_row), (Block, each_its_own), (Writing, in_a_row)]
)
def test_blocks_alone_give_what_the_model_gives(monkeypatch, kind, run):
    monkeypatch.setattr(rooms, "fast_bfloat16", lambda _: False)
    dense, batches = model(kind, run), inputs()
    stream = captured(dense, NAMES, [x.clone() for x in batches])
    assert dense.calls == len(batches)  # nothing is run twice
    first = [x.clone() for x in stream.hidden]
    for name in NAMES:
        one = stream.after(dense.get_submodule(name))
        two = stream.after(dense.get_submodule(name))
        assert all(map(torch.equal, one.hidden, two.hidden))
        stream = one
    assert all(map(torch.equal, first, batches))
    with torch.no_grad():
        assert all(map(torch.equal, stream.hidden, (dense(x.clone()) for x in batches)))


@pytest.mark.parametrize(
    ("kind", "run"),
    [
        (Last, by_name),
        (KeywordOnly, by_name),
        (Carrying, with_residual),
        (Block, changed_between),
        (Block, lambda layers, x: in_a_row([layers[1], layers[0], layers[2]], x)),
        (Block, lambda layers, x: in_a_row([layers[0], layers[2]], x)),
        (Block, lambda layers, x: in_a_row([*layers, layers[2]], x)),
    ],
)
def test_blocks_that_do_not_run_in_a_row_are_no_chain(kind, run):
    dense = model(kind, run)
    assert capture(dense, NAMES, inputs(), silent) is None
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in dense.modules())


def test_a_part_of_a_stream_has_its_own_arguments():
    def run(layers, x):
        for k, layer in enumerate(layers):
            x = layer(x, scale=x.abs().max() * k)
        return x

    stream = captured(model(Block, run), NAMES, inputs())
    part = stream.part([2, 0])
    assert torch.equal(part.hidden[0], stream.hidden[2])
    assert part.later[1][0] is stream.later[1][2]
    assert len(part) == 2


def test_layers_with_masks_of_their_own_are_a_chain(brief):
    """Gemma 2: every other layer sees a window of the text only."""
    config = hf.Gemma2Config(
        vocab_size=128, hidden_size=32, intermediate_size=64, num_hidden_layers=3, head_dim=8,
        num_attention_heads=4, num_key_value_heads=2, sliding_window=4, max_position_embeddings=64,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    dense = hf.Gemma2Model(config).eval()
    dense.norm = nn.Identity()
    ids = tiny.tokens(4, 12)
    stream = captured(dense, NAMES, list(ids.split(2)))
    for name in NAMES:
        stream = stream.after(dense.get_submodule(name))
    with torch.no_grad():
        wanted = dense(ids).last_hidden_state
    assert torch.allclose(torch.cat(stream.hidden), wanted, rtol=0.05, atol=0.1)  # bfloat16
    assert len(bw.tensorize(dense, 0.6, data=ids).blocks) == 3


def test_inputs_that_are_not_finite_and_no_inputs_are_refused():
    dense = model(Block, in_a_row)
    with pytest.raises(DataError, match=r"^Inputs of layers.0 with NaN or infinity came; .*\.$"):
        capture(dense, NAMES, [*inputs(1), torch.full((2, 4, 8), torch.nan)], silent)
    with pytest.raises(DataError, match="no batch"):
        capture(dense, NAMES, [], silent)
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in dense.modules())


@pytest.mark.parametrize("fast", [True, False])
def test_float64_blocks_stay_in_float64(monkeypatch, fast):
    monkeypatch.setattr(rooms, "fast_bfloat16", lambda _: fast)
    block = Block().double()
    x = torch.randn(3, 8, dtype=torch.float64)
    found = Stream((x,), (((), {}),), (None,)).after(block)
    assert torch.equal(found.hidden[0], block(x).detach())


class Picky(Block):
    """Cannot run in bfloat16: it fails as models do, or gives infinity."""

    def __init__(self, fails):
        super().__init__()
        self.fails, self.runs = fails, 0

    def forward(self, x, scale=1.0):
        self.runs += 1
        y = super().forward(x, scale)
        if not torch.is_autocast_enabled("cpu"):
            return y
        return self.fails(y)


def overflows(y):
    return y.bfloat16().masked_fill(y > 0, torch.finfo(torch.float32).min)


def of_another_dtype(y):
    return y.bfloat16() @ torch.eye(8, dtype=torch.float64)


def without_numbers(y):
    return y / 0


@pytest.mark.parametrize("fails", [overflows, of_another_dtype, without_numbers])
def test_a_block_that_cannot_run_in_bfloat16_runs_in_float32(monkeypatch, fails):
    monkeypatch.setattr(rooms, "fast_bfloat16", lambda _: True)
    block, batches = Picky(fails), inputs()
    stream = Stream(tuple(batches), (((), {}),) * 3, (None,) * 3)
    seen = Inputs({"linear": block.linear})
    found = stream.after(block, seen)
    with torch.no_grad():
        assert all(map(torch.equal, found.hidden, map(block, batches)))
    assert seen.moments["linear"].tokens == sum(x[..., 0].numel() for x in batches)  # each once


def test_what_is_wrong_in_every_precision_is_raised_once(monkeypatch):
    def broken(_y):
        raise RuntimeError("out of luck")

    monkeypatch.setattr(rooms, "fast_bfloat16", lambda _: True)
    block = Picky(broken)
    with pytest.raises(RuntimeError, match="out of luck"):
        Stream((torch.randn(2, 8),), (((), {}),), (None,)).after(block)
    assert block.runs == 1


@pytest.mark.parametrize("fast", [True, False])
def test_deberta_is_made_on_every_machine(monkeypatch, brief, fast):
    """Its first version fills a mask with the least float32, which bfloat16 lacks."""
    monkeypatch.setattr(rooms, "fast_bfloat16", lambda _: fast)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"vocab_size": 128, "intermediate_size": 64, "relative_attention": True}
    dense = hf.DebertaModel(hf.DebertaConfig(**sizes, pos_att_type=["c2p", "p2c"])).eval()
    data = tokens(8, 12)
    result = bw.tensorize(dense, 0.6, data=data)
    assert len(result.blocks) == 2
    assert torch.isfinite(result.model(data).last_hidden_state).all()
    healed = bw.heal(result.model, dense, data, steps=2)
    assert healed.before is not None


@pytest.mark.parametrize("make", [llama, gpt2, bert])
def test_a_chain_of_blocks_is_the_model(make):
    model, ids = make(), tokens(4)
    names = [n for n, m in model.named_modules() if type(m).__name__ in ("Linear", "Conv1D")]
    (blocks,) = chains(model, [n for n in names if "head" not in n and "pooler" not in n])
    stream = captured(model, blocks, [ids[:2], ids[2:]])
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
    judge, stream = Reference.of(model, ids), captured(model, blocks, [ids])
    assert judge is not None
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
