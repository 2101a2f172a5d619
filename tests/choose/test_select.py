import pytest
from torch import nn
from torch.nn.utils import parametrizations
from transformers import MixtralConfig, MixtralForCausalLM

from bondwise.choose.dry_run import plan_model
from bondwise.choose.select import matches, select
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
    assert "convolution" in why["conv.weight"]
    assert "LSTM" in why["lstm.weight_ih_l0"]
    assert "directly" in why["attention.out_proj"]
    assert "directly" in why["fused.linear1"]
    assert "sparse" in why["sparse"]
    assert why["plain"] == ""
    assert [w.name for w in select(model, ["linear", "embedding"])[0] if w.chosen] == ["plain"]


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
