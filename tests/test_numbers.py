"""Whole numbers, numbers and arrays of numpy are taken wherever ours are, and give the same."""

from inspect import unwrap

import numpy as np
import pytest
import torch
from torch import nn

import bondwise as bw
import tiny
from bondwise.errors import BondwiseError, BudgetError, DataError, NetworkError, ShapeError
from bondwise.topology import registry
from bondwise.train.recipe import healing

KINDS = [np.int32, np.int64, np.uint8, torch.tensor]


@pytest.mark.parametrize("kind", KINDS)
def test_sizes(kind):
    text = "o1 i1 a, a o2 i2 -> (o1 o2) (i1 i2)"
    sizes = {"o1": 4, "i1": 4, "a": 3, "o2": 2, "i2": 2}
    plain = bw.parse(text, **sizes)
    found = bw.parse(text, **{name: kind(size) for name, size in sizes.items()})
    assert found == plain == bw.mpo((kind(4), kind(2)), [kind(4), kind(2)], kind(3)).resize(a=3)
    assert all(type(size) is int for size in found.sizes.values())
    assert bw.lowrank(kind(6), kind(4), kind(2)) == bw.lowrank(6, 4, 2)
    assert found.resize(a=kind(2)).bonds == {"a": 2}


@pytest.mark.parametrize("name", registry.names())
def test_arrays_of_sizes_in_every_topology(name):
    build = registry.find(name).build
    assert build(np.array([4, 2]), np.array([2, 4]), np.int64(1)) == build((4, 2), (2, 4), 1)


@pytest.mark.parametrize("size", [np.float64(2), np.bool_(True), True, 2.0, "2", np.int64(0), None])
def test_what_is_no_size_is_refused(size):
    with pytest.raises(NetworkError, match="whole number"):
        unwrap(bw.Index.__init__)(object.__new__(bw.Index), "a", size)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_weights_and_metrics(dtype):
    W = np.random.default_rng(0).standard_normal((8, 6)).astype(dtype)
    C = (W.T @ W).astype(dtype)
    net = bw.lowrank(8, 6, 2)
    found = bw.fit(W, net, metric=C, held_out=C, seed=np.int64(0))
    wanted = bw.fit(torch.tensor(W), net, metric=torch.tensor(C), held_out=torch.tensor(C))
    assert all(map(torch.equal, found.cores, wanted.cores))
    assert found.error == wanted.error
    cores = [core.numpy() for core in found.cores]
    assert torch.equal(bw.dense(net, cores), bw.dense(net, found.cores))
    frozen = W.copy()
    frozen.flags.writeable = False
    assert torch.equal(bw.fit(frozen, net).cores[0], bw.fit(torch.tensor(W), net).cores[0])


def test_choices(brief):
    def made(whole, real):
        model, ids = tiny.llama(), tiny.tokens()
        return bw.tensorize(
            model, real(0.5), data=ids, seed=whole(1), windows=whole(8), length=whole(16)
        )

    one, two = (made(*kinds).model.state_dict() for kinds in ((int, float), (np.int64, np.float32)))
    assert all(map(torch.equal, one.values(), two.values()))
    recipe = healing(steps=np.int64(3), rate=np.float32(0.5), batch=np.uint8(4))
    assert recipe == healing(steps=3, rate=0.5, batch=4)
    assert type(recipe.steps) is type(recipe.batch) is int


@pytest.mark.parametrize(
    ("choice", "error", "says"),
    [
        ({"keep": "half"}, BudgetError, "keep='half' came; write a number"),
        ({"keep": None}, BudgetError, "keep=None came; write a number"),
        ({"seed": 0.5}, BudgetError, "seed=0.5 came; write a whole number"),
        ({"windows": 2.0}, DataError, "windows=2.0 came; write a whole number"),
        ({"length": np.ones(2)}, DataError, "came; write a whole number"),
    ],
)
def test_a_choice_that_is_no_number_is_one_sentence(choice, error, says):
    with pytest.raises(error, match=says) as caught:
        unwrap(bw.tensorize)(nn.Linear(4, 4), **choice)
    assert issubclass(error, BondwiseError)
    assert str(caught.value).endswith(".")


def test_ranks_that_are_none_are_refused():
    with pytest.raises(ShapeError, match=r"Rank 2\.5 came; a rank is a whole number"):
        unwrap(bw.lowrank)(4, 4, 2.5)
