"""Which parameters train, and the rate of each core: by hand, and by what a step does."""

import pytest
import torch
from torch import nn

import tiny
from bondwise.compute.stack import stack
from bondwise.errors import SelectionError
from bondwise.fit.fit import fit
from bondwise.gauge.compact import compact
from bondwise.layers.embedding import TensorEmbedding
from bondwise.layers.hosts.registry import host_of
from bondwise.layers.linear import TensorLinear
from bondwise.layers.networks import compacted
from bondwise.network.network import parse
from bondwise.topology.btt import btt
from bondwise.topology.cp import cp
from bondwise.topology.lowrank import lowrank
from bondwise.topology.mpo import mpo
from bondwise.train.rates import groups, multipliers, only


def gauge_free(out, inp, rank):
    torch.manual_seed(0)
    linear = nn.Linear(inp, out)
    fitted = fit(linear.weight.detach(), lowrank(out, inp, rank))
    return host_of(linear).build(linear, [compacted(compact(fitted.network, fitted.cores))])


@pytest.mark.parametrize(
    ("net", "wanted"),
    [
        # (in / fan-in) / cores, core by core in the order of the network
        (lowrank(64, 64, 16), (64 / 16 / 2, 64 / 64 / 2)),
        (lowrank(64, 32, 16), (32 / 16 / 2, 32 / 32 / 2)),
        (btt((8, 8), (8, 8), 2), (64 / 16 / 2, 64 / 8 / 2)),
        (btt((8, 8), (8, 8), 4), (64 / 32 / 2, 64 / 8 / 2)),
        (parse("o i -> (o) (i)", o=4, i=8), (1.0,)),  # one core is a dense weight
    ],
)
def test_rates_by_hand(net, wanted):
    assert multipliers(net) == pytest.approx(wanted)


@pytest.mark.parametrize(
    "net", [cp((8, 16), (8, 8), 3), mpo((4, 4, 8), (8, 4, 4), 6), lowrank(8, 512, 2)]
)
def test_no_rate_is_far_from_the_dense_one(net):
    found = multipliers(net)
    assert len(found) == len(net.cores)
    assert all(0.25 <= f <= 4 for f in found)


@pytest.mark.parametrize(
    "net",
    [lowrank(96, 96, 24), btt((8, 12), (8, 12), 3), mpo(96, 96, 1), mpo((4, 6), (8, 2), 3)],
)
def test_a_step_of_adam_moves_the_outputs_as_much_as_a_dense_one(net):
    # the meaning of the formula: gradients of one sign, the state before each core of size 1
    scale = multipliers(net)
    ones = [torch.ones([i.size for i in core]) for core in net.cores]
    st = stack(net, ones)
    moved = 0.0
    for factor, core in zip(st, st.order, strict=True):
        fan_in = factor.to_dense().sum(1)  # inputs that each output of the core sums
        assert len(fan_in.unique()) == 1
        moved += float(fan_in[0]) * scale[core]
    assert moved == pytest.approx(net.shape[1])  # every entry by 1, every input 1


def test_a_table_looks_rows_up_and_sums_the_bond():
    net = lowrank(1000, 64, 16)
    looking, summing = multipliers(net, table=True)
    assert looking == 4.0  # one row: nothing is summed, and the cap holds
    assert summing == pytest.approx(64 / 16 / 2)
    layer = TensorEmbedding(lowrank(40, 16, 4))
    assert sorted(g["lr"] for g in groups(layer, 1.0)) == [16 / 4 / 2, 4.0]


def test_gauge_free_cores_go_by_their_network():
    layer = gauge_free(24, 32, 8)
    assert layer.core_1.shape == (8, 24)  # stored: without the identity block
    rates = {id(p): g["lr"] for g in groups(layer, 1.0) for p in g["params"]}
    assert rates[id(layer.core_0)] == pytest.approx(32 / 8 / 2)
    assert rates[id(layer.core_1)] == pytest.approx(32 / 32 / 2)
    assert rates[id(layer.bias)] == 1.0


def small():
    torch.manual_seed(0)
    model = tiny.llama(tied=True)
    for block in model.model.layers:
        block.self_attn.q_proj = TensorLinear(lowrank(48, 48, 8))
        block.mlp.up_proj = TensorLinear(mpo((8, 12), (6, 8), 4), bias=True)
    return model


def ids(found):
    return [id(p) for g in found for p in g["params"]]


def test_all_parameters_train_once():
    model = small()
    found = groups(model, 0.01)
    assert sorted(ids(found)) == sorted({id(p) for p in model.parameters()})
    assert len(ids(found)) == len(set(ids(found)))  # tied: the head is the embedding
    norms = next(g for g in found if g["name"] == "vectors")
    assert norms["weight_decay"] == 0
    assert all(p.ndim == 1 for p in norms["params"])
    dense = next(g for g in found if g["name"] == "matrices")
    assert dense["lr"] == 0.01
    assert "weight_decay" not in dense
    torch.optim.AdamW(found, lr=0.5, weight_decay=0.1)


@pytest.mark.parametrize(
    ("train", "wanted"),
    [
        ("cores", lambda n: "q_proj" in n or "up_proj" in n),  # all that networks store
        ("norms", lambda n: "norm" in n),
        ("q_proj", lambda n: "q_proj" in n),
        ("model.layers.1.*", lambda n: n.startswith("model.layers.1.")),
        ("layers.0", lambda n: ".layers.0." in n),
        (["down_proj", "norms"], lambda n: "down_proj" in n or "norm" in n),
        ("LlamaMLP", lambda n: ".mlp." in n),
        ("re:core_1$", lambda n: n.endswith("core_1")),
        ("lm_head", lambda n: n.endswith("embed_tokens.weight")),  # by its other name
    ],
)
def test_patterns(train, wanted):
    model = small()
    found = ids(groups(model, 0.01, train))
    assert sorted(found) == sorted(id(p) for n, p in model.named_parameters() if wanted(n))
    if train == "norms":
        assert len(ids(groups(nn.Sequential(nn.LayerNorm(4), nn.BatchNorm1d(4)), 1.0, train))) == 4


def test_what_is_frozen_or_no_fraction_stays():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[0].requires_grad_(False)
    model.register_parameter("counts", nn.Parameter(torch.zeros(3).int(), requires_grad=False))
    assert ids(groups(model, 1.0)) == [id(p) for p in model[1].parameters()]


def test_only_some_ask_for_gradients_for_a_while():
    model = small()
    model.model.norm.requires_grad_(False)
    asked = {n: p.requires_grad for n, p in model.named_parameters()}
    chosen = groups(model, 0.01, "cores")
    with only(model, chosen):
        assert {id(p) for p in model.parameters() if p.requires_grad} == set(ids(chosen))
        model(tiny.tokens(1, 8)).logits.sum().backward()
    assert {n: p.requires_grad for n, p in model.named_parameters()} == asked
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ("no_such", "train='no_such' came, and nothing trains .nothing of the model"),
        ("cores", "train='cores' came"),
        ([], r"train=\[\] came"),
        ("0", "all 2 are frozen"),
    ],
)
def test_nothing_to_train_is_named(train, message):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    with pytest.raises(SelectionError, match=message):
        groups(model, 1.0, train)
