import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations
from transformers import MixtralConfig, MixtralForCausalLM
from transformers.pytorch_utils import Conv1D

from bondwise import merge, tensorize
from bondwise.choose.dry_run import plan_model
from bondwise.choose.select import listed, matches, select
from bondwise.errors import SelectionError
from bondwise.layers.module import TensorLayer
from tiny import bert, gpt2, llama, untouched


def reasons(model, targets="linear", ignore=()):
    return {w.name: w.reason for w in select(model, targets, ignore)[0]}


def test_every_parameter_has_a_row():
    for model in (llama(), gpt2(), bert(), llama(tied=True)):
        names = {name for name, _ in model.named_parameters()}
        rows = {w.name for w in select(model)[0]}
        assert {n if n in rows else n.removesuffix(".weight") for n in names} <= rows


def test_a_llama_changes_its_seven_linears_a_block_and_nothing_else():
    why = reasons(llama())
    chosen = [name for name, reason in why.items() if not reason]
    assert len(chosen) == 14
    assert all(name.endswith("_proj") for name in chosen)
    assert why["lm_head"] == "the head is ignored by default"
    assert why["model.embed_tokens"] == "no target matches it"
    assert why["model.norm.weight"] == "not a matrix"


def test_gpt2_has_conv1d_with_out_times_in():
    found = {w.name: w for w in select(gpt2())[0]}
    assert found["transformer.h.0.attn.c_attn"].chosen
    assert found["transformer.h.0.attn.c_attn"].shape == (96, 32)


def test_tied_weights_are_left_alone_even_when_named():
    why = reasons(llama(tied=True), ["lm_head", "embedding", "linear"])
    assert why["model.embed_tokens"] == "tied with lm_head"
    assert why["lm_head"] == "tied with model.embed_tokens"


def test_the_head_can_be_named():
    assert reasons(llama(), ["lm_head"])["lm_head"] == ""


@pytest.mark.parametrize(
    ("pattern", "path", "yes"),
    [
        ("linear", "a.b", True),
        ("Linear", "a.b", True),
        ("a.b", "a.b", True),
        ("a", "a.b", True),
        ("b", "a.b", True),
        ("b", "a.b.c", True),
        ("a.*", "a.b", True),
        ("re:b$", "a.b", True),
        ("b", "a.bb", False),
        ("embedding", "a.b", False),
        ("re:^b", "a.b", False),
    ],
)
def test_patterns(pattern, path, yes):
    assert matches(pattern, path, nn.Linear(2, 2)) is yes


def test_ignored_by_pattern_and_a_pattern_that_matches_nothing_is_reported():
    weights, notes = select(llama(), "linear", ["down_proj", "nowhere"])
    why = {w.name: w.reason for w in weights}
    assert why["model.layers.0.mlp.down_proj"] == "ignored by 'down_proj'"
    assert notes == ["ignore pattern 'nowhere' matches nothing"]


def test_routers_are_left_alone():
    config = MixtralConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, num_local_experts=4, vocab_size=32,
    )  # fmt: skip
    why = reasons(MixtralForCausalLM(config))
    routers = [reason for name, reason in why.items() if ".gate" in name and "proj" not in name]
    assert routers
    assert all(routers)
    experts = [reason for name, reason in why.items() if "experts" in name]
    assert experts
    assert all(experts)


def test_what_cannot_be_swapped_says_why():
    model = nn.ModuleDict(
        {
            "conv": nn.Conv2d(3, 4, 3),
            "lstm": nn.LSTM(4, 4),
            "attention": nn.MultiheadAttention(4, 2),
            "fused": nn.TransformerEncoderLayer(4, 2, 8),
            "normed": parametrizations.weight_norm(nn.Linear(4, 4)),
            "sparse": nn.Embedding(8, 4, sparse=True),
            "plain": nn.Linear(4, 4),
        }
    )
    why = reasons(model, ["linear", "embedding"])
    assert why["conv"] == "no target matches it"
    assert "LSTM" in why["lstm.weight_ih_l0"]
    assert "directly" in why["attention.out_proj"]
    assert "directly" in why["fused.linear1"]
    assert "sparse" in why["sparse"]
    assert why["plain"] == ""
    assert [w.name for w in select(model, ["linear", "embedding"])[0] if w.chosen] == ["plain"]


class Counting(nn.Linear):
    """No forward of its own."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.kind = "counted"

    def count(self):
        return self.weight.numel()


class Scaled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


class Gained(nn.Linear):
    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.gain = nn.Parameter(torch.ones(1))


class Called(nn.Linear):
    def __call__(self, x):
        return -super().__call__(x)


class Table(nn.Embedding):
    pass


class ScaledTable(nn.Embedding):
    def forward(self, ids):
        return 3 * super().forward(ids)


class Turned(Conv1D):
    def forward(self, x):
        return -super().forward(x)


def replaced():
    layer = nn.Linear(16, 16)
    layer.forward = lambda x: 5 * F.linear(x, layer.weight, layer.bias)
    return layer


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: Counting(16, 16), ""),
        (lambda: Scaled(16, 16), "a Scaled with a forward of its own"),
        (lambda: Called(16, 16), "a Called with a forward of its own"),
        (lambda: Gained(16, 16), "a Gained, which is more than a Linear"),
        (lambda: Turned(16, 16), "a Turned with a forward of its own"),
        (lambda: Table(16, 16), ""),
        (lambda: ScaledTable(16, 16), "a ScaledTable with a forward of its own"),
        (replaced, "a Linear with a forward of its own"),
    ],
)
def test_a_subclass_is_changed_only_where_it_computes_as_its_parent(make, why, brief):
    layer = make()
    is_table = isinstance(layer, nn.Embedding)
    model = nn.Sequential(layer, nn.Linear(16, 16))
    x = torch.randint(16, (40, 3)) if is_table else torch.randn(40, 16)
    asked = {"keep": 0.7, "targets": ["linear", "embedding"] if is_table else "linear"}
    for data in (None, x):
        result = tensorize(model, data=data, format="lowrank", **asked)
        row = next(row for row in result.table if row.name in ("0", "0.weight"))
        assert row.reason == why
        assert isinstance(result.model[0], TensorLayer) is not bool(why)
        merged = merge(result.model)
        assert torch.allclose(merged(x), result.model(x), atol=1e-5)
        assert type(merged[0]) is (type(layer) if why else type(layer).__mro__[1])
        if why:
            assert torch.equal(merged[0](x), layer(x))


def test_a_model_of_networks_says_so_whatever_its_targets_match():
    for model in (llama(), nn.Sequential(nn.Linear(16, 16))):
        small = tensorize(model, 0.5).model
        with pytest.raises(SelectionError, match=r"already\); give the dense model, or merge"):
            tensorize(small, 0.5)


@pytest.mark.parametrize("given", [3, [3], None, {"linear"}])
def test_patterns_are_names(given):
    with pytest.raises(SelectionError, match="came; write a name such as 'linear', or a list"):
        listed(given)


def test_shared_modules_have_one_row():
    shared = nn.Linear(8, 8)
    (row,) = [w for w in select(nn.Sequential(shared, nn.ReLU(), shared))[0] if w.chosen]
    assert row.name == "0"
    assert row.aliases == ("2",)


def test_plan_model_only_looks():
    model = llama()
    with untouched(model):
        table = plan_model(model, keep=0.5)
    assert 0.49 <= table.kept <= 0.5
    assert "lowrank" in str(table)
    assert "left alone: not a matrix" in str(table)
