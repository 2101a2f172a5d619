from copy import deepcopy

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForMaskedLM

import bondwise as bw
from bondwise.compress.swap import apart, check_copy
from bondwise.errors import SelectionError
from bondwise.layers.module import TensorLayer
from tiny import SIZES, bert, gpt2, llama, tokens, untouched


class Shared(nn.Module):
    """A module used twice, two parameters that view the same numbers, buffers of two kinds."""

    def __init__(self):
        super().__init__()
        self.first, self.again = [nn.Linear(16, 16)] * 2
        self.one, self.two = nn.Linear(16, 16), nn.Linear(16, 16)
        self.two.weight = nn.Parameter(self.one.weight.data)
        self.register_buffer("wide", torch.ones(1, 16).expand(4, 16), persistent=False)
        self.register_buffer("other", self.wide, persistent=False)
        self.norm = nn.BatchNorm1d(16)

    def forward(self, x):
        y = self.again(self.first(x).tanh()) * self.wide[0].to(x)
        return self.norm(self.two(self.one(y).tanh())) + self.other[1].to(x)


def places(model):
    """Where every parameter and buffer lies in memory, by address of its storage."""
    stored = [*model.named_parameters(), *model.named_buffers()]
    return {t.untyped_storage().data_ptr(): name for name, t in stored if t.numel()}


def apart_in_memory(*models):
    """No tensor, no storage and no config of one is another's."""
    for k, one in enumerate(models):
        for other in models[:k]:
            common = places(one).keys() & places(other).keys()
            assert not common, [places(one)[at] for at in common]
            ids = [{id(m.config) for m in each.modules() if hasattr(m, "config")}
                   for each in (one, other)]  # fmt: skip
            assert not ids[0] & ids[1]


ASKED = [
    {},
    {"dtype": torch.bfloat16},
    {"data": True},
    {"data": True, "dtype": torch.bfloat16, "format": "lowrank"},
]
MADE = {
    "llama": llama,
    "tied": lambda: llama(tied=True),
    "gpt2": gpt2,
    "bert": bert,
    "shared": Shared,
    "row": lambda: nn.Sequential(nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 16)),
}


@pytest.mark.parametrize("kind", MADE)
@pytest.mark.parametrize("asked", ASKED, ids=str)
def test_nothing_is_shared_and_nothing_of_the_source_changes(kind, asked, brief, tmp_path):
    model = MADE[kind]()
    shown = tokens() if hasattr(model, "config") else torch.randn(40, 16)
    with untouched(model):
        asked = asked | ({"data": shown} if "data" in asked else {})
        small = bw.tensorize(model, 0.6, **asked).model
        dense = bw.merge(small)
        healed = bw.heal(small, model, shown, steps=1, batch=2).model
        again = bw.load(bw.save(small, tmp_path / "it"), model=model)
        apart_in_memory(model, small, dense, healed, again)
        for made in (small, dense, healed, again):
            made.half().requires_grad_(False)


def test_ties_and_shared_modules_are_kept_among_themselves(brief):
    for asked in ASKED[:2]:
        model = bw.tensorize(llama(tied=True), 0.5, data=tokens(), **asked).model
        assert model.lm_head.weight is model.model.embed_tokens.weight
        layers = [m for m in model.modules() if hasattr(m, "config")]
        assert all(m.config is model.config for m in layers)  # one place says which attention runs
        small = bw.tensorize(Shared(), 0.5, ignore=["one", "two"], **asked).model
        for made in (small, bw.merge(small), apart(small)):
            assert made.first is made.again
            assert made.one.weight.data_ptr() == made.two.weight.data_ptr()
            assert made.wide is made.other
            assert made.wide.stride() == (16, 0) or made.wide.stride(0) == 0


def test_a_tied_bias_stays_tied_when_its_layer_becomes_a_network():
    config = BertConfig(hidden_size=32, intermediate_size=64, tie_word_embeddings=False, **SIZES)
    model = BertForMaskedLM(config)
    head = model.cls.predictions
    head.decoder.bias = head.bias
    for inplace in (False, True):
        made = bw.tensorize(model, 0.7, targets=["cls.predictions.decoder"], inplace=inplace).model
        assert isinstance(made.cls.predictions.decoder, TensorLayer)
        assert made.cls.predictions.decoder.bias is made.cls.predictions.bias


@pytest.mark.parametrize("data", [None, tokens()], ids=["alone", "data"])
def test_what_is_frozen_stays_frozen(data, brief):
    def asks(model):
        return {name: p.requires_grad for name, p in model.named_parameters()}

    model = gpt2().requires_grad_(False)
    assert not any(asks(bw.tensorize(model, 0.6, data).model).values())

    model = gpt2()
    frozen = model.transformer.h[0].mlp.c_fc
    frozen.weight.requires_grad_(False)
    model.transformer.h[1].mlp.c_fc.bias.requires_grad_(False)
    model.transformer.ln_f.requires_grad_(False)
    for inplace in (False, True):
        given = deepcopy(model)
        small = bw.tensorize(given, 0.6, data, inplace=inplace, format="lowrank").model
        made = asks(small)
        kept = asks(model).items() & made.items()
        assert {n for n in made if n in asks(model)} == {n for n, _ in kept}
        layer = small.transformer.h[0].mlp.c_fc
        assert isinstance(layer, TensorLayer)
        assert not any(core.requires_grad for core in layer.matrices())
        assert layer.bias.requires_grad
        assert all(p.requires_grad for p in small.transformer.h[1].mlp.c_fc.matrices())
        assert asks(bw.merge(small)) == asks(model)


def test_in_place_the_parameters_and_blocks_stay_the_same_objects(brief):
    model = llama()
    block, norm = model.model.layers[0], model.model.layers[0].input_layernorm.weight
    config, before = model.config, norm.detach().clone()
    made = bw.tensorize(model, 0.5, data=tokens(), format="lowrank", inplace=True).model
    assert made is model
    assert model.model.layers[0] is block
    assert block.input_layernorm.weight is norm
    assert not torch.equal(norm, before)  # refined
    assert block.self_attn.config is config is model.config
    other = bw.tensorize(llama(), 0.5, data=tokens(), format="lowrank").model
    ids = tokens(2)
    assert torch.equal(model(ids).logits, other(ids).logits)


def test_only_what_is_not_replaced_is_copied():
    model = nn.Sequential(nn.Linear(64, 64), nn.LayerNorm(64))
    data = torch.ones(3, 2**10)
    model[1].register_buffer("part", data[:1, :4])  # as a file in memory holds it
    copy = apart(model, {"0": nn.Identity()})
    assert copy[1].part.untyped_storage().nbytes() == 4 * 4
    model[1].weight.kind = "norm"
    assert apart(model)[1].weight.kind == "norm"
    assert type(apart(model)[0]) is nn.Linear


def test_what_hangs_on_a_graph_is_copied_and_what_cannot_be_is_one_sentence():
    model = nn.Sequential(nn.Linear(16, 16))
    model.seen = model(torch.ones(1, 16))
    assert bw.tensorize(model, 0.5).model.seen.is_leaf
    model.lines = (line for line in "ab")
    with pytest.raises(SelectionError, match=r"Sequential cannot be copied .*generator"):
        check_copy(model)
    with untouched(nn.Sequential()), pytest.raises(SelectionError, match="cannot be copied"):
        bw.tensorize(model, 0.5)
    assert isinstance(bw.tensorize(model, 0.5, inplace=True).model[0], TensorLayer)
