"""Whole models of many kinds: each is cut to its budget, and the dense one stays as it was."""

from copy import deepcopy

import pytest
import torch
import transformers as hf
from torch import nn

import bondwise as bw
import tiny

WORDS = 96  # in the vocabulary of every model here
SIZES = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}
SIZES["initializer_range"] = 0.2  # weights that are not near zero
TEXT = SIZES | {"vocab_size": WORDS, "max_position_embeddings": 64}


def ids(rows=4, length=16, count=4):
    draw = torch.Generator().manual_seed(1)
    return [torch.randint(1, WORDS, (rows, length), generator=draw) for _ in range(count)]


def named(batches, **more):
    return [{"input_ids": batch} | {n: f(batch) for n, f in more.items()} for batch in batches]


def vectors(*shape, count=4):
    draw = torch.Generator().manual_seed(1)
    return [torch.randn(*shape, generator=draw) for _ in range(count)]


def t5():
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    config = hf.T5Config(vocab_size=WORDS, decoder_start_token_id=0, **sizes)
    return hf.T5ForConditionalGeneration(config)


def albert():
    return hf.AlbertModel(hf.AlbertConfig(**TEXT, embedding_size=16, num_hidden_layers=3))


def experts():
    config = hf.MixtralConfig(
        **TEXT, num_hidden_layers=2, num_key_value_heads=2, num_local_experts=4
    )
    return hf.MixtralForCausalLM(config)


def vit():
    config = hf.ViTConfig(**SIZES, num_hidden_layers=2, image_size=16, patch_size=4)
    return hf.ViTModel(config)


def convolutions():
    seen = nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten()
    return nn.Sequential(*seen, nn.Linear(8 * 7 * 7, 48), nn.ReLU(), nn.Linear(48, 10))


class Residual(nn.Module):
    def __init__(self, size=32):
        super().__init__()
        self.norm, self.up, self.down = (
            nn.LayerNorm(size), nn.Linear(size, 2 * size), nn.Linear(2 * size, size)
        )  # fmt: skip

    def forward(self, x):
        return x + self.down(torch.relu(self.up(self.norm(x))))


class Chain(nn.Module):
    """Blocks of a list, run in a given order."""

    def __init__(self, order, tied=False):
        super().__init__()
        self.blocks, self.order = nn.ModuleList(Residual() for _ in range(3)), order
        if tied:
            self.blocks[2].up.weight = self.blocks[0].up.weight

    def forward(self, x):
        for k in self.order:
            x = self.blocks[k](x)
        return x


class Dropped(Chain):
    """Blocks that are skipped at random in training, as LayerDrop does."""

    def forward(self, x):
        for block in self.blocks:
            if not self.training or torch.rand(()) > 0.5:
                x = block(x)
        return x


class Mixture(nn.Module):
    """Experts as layers of their own; no token goes to the last one."""

    def __init__(self):
        super().__init__()
        self.experts = nn.ModuleList(Residual() for _ in range(3))

    def forward(self, x):
        first = x[..., 0] > 0
        y = torch.zeros_like(x)
        y[first] = self.experts[0](x[first])
        y[~first] = self.experts[1](x[~first])
        return y


class Vector(Chain):
    """Gives nothing with a fraction in it, so that nothing can be compared."""

    def forward(self, x):
        return super().forward(x).argmax(-1)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.out = nn.LSTM(24, 32, batch_first=True), nn.Linear(32, 32)

    def forward(self, x):
        return self.out(self.lstm(x)[0])


class Mixed(nn.Module):
    """Gives a dictionary, and hands the state on by name."""

    class Block(Residual):
        def forward(self, *, hidden_states, scale):
            return (hidden_states + scale * super().forward(hidden_states), None)

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(self.Block() for _ in range(2))

    def forward(self, x):
        for layer in self.layers:
            x, _ = layer(hidden_states=x, scale=0.5)
        return {"state": x, "count": 3}


def in_dtype(make, dtype):
    """Parameters as from_pretrained gives them: buffers, such as rotary angles, stay in float32."""

    def build():
        model = make()
        for parameter in model.parameters():
            parameter.data = parameter.data.to(dtype)
        return model

    return build


KINDS = {
    "llama": (tiny.llama, ids()),
    "llama in bfloat16": (in_dtype(tiny.llama, torch.bfloat16), ids()),
    "llama in float16": (in_dtype(tiny.llama, torch.float16), ids()),
    "llama in float64": (in_dtype(tiny.llama, torch.float64), ids()),
    "llama in training": (lambda: tiny.llama().train(), ids()),
    "frozen llama": (lambda: tiny.llama().requires_grad_(False), ids()),
    "two sequences": (tiny.llama, ids(rows=1, count=2)),
    "gpt2": (tiny.gpt2, ids()),
    "gpt2 with dropout": (lambda: tiny.gpt2().train(), ids()),
    "bert": (tiny.bert, named(ids(), attention_mask=torch.ones_like)),
    "t5": (t5, named(ids(), decoder_input_ids=lambda x: x[:, :6])),
    "albert": (albert, ids()),
    "mixtral": (experts, ids()),
    "vit": (vit, [{"pixel_values": x} for x in vectors(4, 3, 16, 16)]),
    "convolutions": (convolutions, vectors(4, 3, 16, 16)),
    "tied blocks": (lambda: Chain((0, 1, 2), tied=True), vectors(20, 32)),
    "another order": (lambda: Chain((2, 0, 1)), vectors(20, 32)),
    "one skipped": (lambda: Chain((0, 2)), vectors(20, 32)),
    "one twice": (lambda: Chain((0, 1, 1, 2)), vectors(20, 32)),
    "shared": (lambda: nn.Sequential(m := nn.Linear(32, 32), nn.ReLU(), m), vectors(20, 32)),
    "one linear": (lambda: nn.Sequential(nn.Linear(32, 32)), vectors(20, 32)),
    "no output to compare": (lambda: Vector((0, 1, 2)), vectors(20, 32)),
    "all zero": (lambda: Chain((0, 1, 2)), [torch.zeros(20, 32)] * 3),
    "layer drop": (lambda: Dropped(()), vectors(20, 32)),
    "an idle expert": (Mixture, vectors(20, 32)),
    "lstm": (Recurrent, vectors(4, 10, 24)),
    "named states": (Mixed, vectors(4, 10, 32)),
}


def answer(model, batch):
    with torch.no_grad():
        given = model.eval()(**batch) if isinstance(batch, dict) else model.eval()(batch)
    given = given[0] if isinstance(given, tuple) else given
    if not isinstance(given, torch.Tensor):
        given = next(v for v in given.values() if isinstance(v, torch.Tensor))
    return given.double()


def error(dense, model, data):
    wanted = torch.cat([answer(dense, batch).flatten() for batch in data])
    given = torch.cat([answer(model, batch).flatten() for batch in data])
    assert torch.isfinite(given).all()
    return float((given - wanted).norm() / wanted.norm())


def cut(model, data, keep):
    """What is left of a model that itself stays as it was, and how far its answers are off."""
    random = torch.get_rng_state()
    with tiny.untouched(model):
        result = bw.tensorize(model, keep=keep, data=data)
    assert torch.equal(torch.get_rng_state(), random)
    assert result.table.kept <= keep
    assert all(row.error is None or row.error == row.error for row in result.table)
    small = result.model
    assert all(torch.isfinite(p).all() for p in small.parameters())
    assert {p.dtype for p in small.parameters()} == {p.dtype for p in model.parameters()}
    modes = {n: m.training for n, m in model.named_modules()}
    assert all(m.training == modes.get(n, model.training) for n, m in small.named_modules())
    return small, error(deepcopy(model), deepcopy(small), data)


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_of_any_kind_is_cut_and_left_as_it_was(kind, brief, tmp_path):
    make, data = KINDS[kind]
    small, _ = cut(make(), data, 0.6)
    bw.save(small, tmp_path / "saved")
    again = bw.load(tmp_path / "saved", make())
    for batch in data[:2]:
        assert torch.equal(answer(again, batch), answer(small, batch))


@pytest.mark.parametrize(
    "kind", [k if k == "layer drop" else pytest.param(k, marks=pytest.mark.thorough) for k in KINDS]
)
def test_what_keeps_more_is_nearer(kind):
    make, data = KINDS[kind]
    model = make()
    errors = [cut(model, data, keep)[1] for keep in (0.4, 0.9)]
    assert errors[1] < errors[0]
