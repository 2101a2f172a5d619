import pytest
import torch
from torch import nn

import bondwise as bw
from bondwise.errors import SelectionError
from bondwise.layers.module import TensorLayer
from tiny import untouched


class Counting(nn.Linear):
    def count(self):
        return self.in_features


class Asks(nn.Module):
    """Calls a method that the networks in its place do not have."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(Counting(32, 32), nn.GELU())

    def forward(self, x):
        return self.inner(x) / self.inner[0].count()


class Large(nn.Module):
    """Its middle is beyond float16."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(32, 32), nn.Linear(32, 32)

    def forward(self, x):
        return self.down(1e6 * self.up(x)).tanh()


class Noisy(nn.Module):
    """Statistics that move with every call in training, dropout, and no numbers for one sample."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(32, 32), nn.BatchNorm1d(32), nn.Dropout(0.5))
        self.out = nn.Linear(32, 32)

    def forward(self, x):
        return {"y": self.out(self.body(x)), "zero": [x.new_tensor(float("inf"))]}


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize(
    ("make", "dtype", "says"),
    [
        (Large, torch.float16, r"gives NaN or inf.* first at \S+; write another dtype or none, or"),
    ],
)
def test_a_result_that_gives_no_numbers_is_refused_and_nothing_changes(
    make, dtype, says, inplace, brief
):
    model, x = make(), torch.randn(64, 32)
    asked = {"keep": 0.6, "data": x, "format": "lowrank", "inplace": inplace}
    with untouched(model), pytest.raises(SelectionError, match=says):
        bw.tensorize(model, dtype=dtype, **asked)
    assert isinstance(bw.tensorize(model, **asked).model.up, TensorLayer)


@pytest.mark.parametrize("inplace", [False, True])
def test_a_result_that_stops_is_refused_with_the_layer(inplace, brief):
    model, x = nn.Sequential(Asks()), torch.randn(64, 32)
    asked = {"keep": 0.6, "format": "lowrank", "inplace": inplace}
    says = r"compressed Sequential does not run \(AttributeError: .*, first at 0; .* ignore='0'"
    with untouched(model), pytest.raises(SelectionError, match=says):
        bw.tensorize(model, data=x, **asked)


@pytest.mark.parametrize("training", [False, True])
def test_the_run_leaves_no_trace(training, brief):
    model, x = Noisy().train(training), torch.randn(64, 32)
    with untouched(model):
        torch.manual_seed(3)
        result = bw.tensorize(model, 0.6, x, format="lowrank")
        drawn = torch.rand(3)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(3))
    norm = result.model.body[1]
    assert result.model.training is training
    assert int(norm.num_batches_tracked) == 0
    assert torch.equal(norm.running_mean, model.body[1].running_mean)
    single = bw.tensorize(model, 0.6, x[:1], format="lowrank")  # no statistics of one sample
    assert isinstance(single.model.out, TensorLayer)


def test_branches_that_no_data_reaches_are_named_inside_blocks_too(brief):
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.spare = nn.Linear(32, 32), nn.Linear(32, 32)

        def forward(self, x, deep=False):
            return x + (self.spare if deep else self.used)(x).tanh()

    model = nn.Sequential(Block(), Block())
    result = bw.tensorize(model, 0.6, torch.randn(64, 32), format="lowrank")
    said = "no token but zeros reached {}.spare: fitted to the weight alone"
    assert {said.format(0), said.format(1)} <= set(result.report()["notes"])
    for k in (0, 1):
        alone = bw.fit(model[k].spare.weight, result.table[f"{k}.spare"].network)
        expected = bw.dense(alone.network, alone.cores)
        torch.testing.assert_close(result.model[k].spare.dense(), expected)
