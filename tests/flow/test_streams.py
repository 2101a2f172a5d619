"""What enters all chains of a model, by one run for each batch."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bondwise.errors import DataError
from bondwise.flow.chains.blocks import capture
from bondwise.flow.chains.streams import Streams
from bondwise.progress import silent

ROOM = 2**20


class Up(nn.Module):
    def __init__(self):
        super().__init__()
        self.lift = nn.Conv1d(6, 6, 3, padding=1)

    def forward(self, x, beside, scale=None):
        return self.lift(x) + beside + (0 if scale is None else scale["by"])


class Net(nn.Module):
    """Skips, a stack, and tensors that are written into after they entered."""

    def __init__(self):
        super().__init__()
        self.one, self.up, self.rare = nn.Conv1d(4, 6, 3, padding=1), Up(), nn.Linear(5, 5)
        self.row = nn.Sequential(*[nn.Conv1d(6, 6, 3, padding=1) for _ in range(3)])
        self.out = nn.Conv1d(6, 2, 1)
        self.runs = 0

    def forward(self, x):
        self.runs += 1
        skip = F.relu(self.one(x))
        y = self.up(self.row(skip), skip, scale={"by": skip})
        if x.sum() > 0:
            y = self.rare(y)
        skip.mul_(0)
        return self.out(F.relu_(y) + skip)


def streams(room=ROOM):
    torch.manual_seed(0)
    model = Net()
    batches = [torch.randn(3, 4, 5).abs().neg() for _ in range(3)]
    return model, batches, Streams(model, batches, room, silent)


CHAINS = [("one",), ("row.0", "row.1", "row.2"), ("up",), ("out",)]


def test_one_run_for_each_batch_gives_what_one_for_each_chain_does():
    model, batches, found = streams()
    assert all(map(found.runs, CHAINS))
    assert found.take(CHAINS)
    assert model.runs == len(batches) + 1  # the first once more, to see whether the stack is one
    for blocks in CHAINS:
        ours, alone = found.of(blocks), capture(model, blocks, batches, silent)
        assert ours.bytes == alone.bytes
        assert len(ours.later) == len(alone.later)
        assert ours.masks == alone.masks
        for k in range(len(batches)):
            assert torch.equal(ours.hidden[k], alone.hidden[k])
            (beside, named), (other, others) = ours.calls[k], alone.calls[k]
            assert all(map(torch.equal, beside, other))
            if blocks == ("up",):
                assert beside[0].any()
                assert torch.equal(named["scale"]["by"], others["scale"]["by"])


def test_what_finds_no_room_is_captured_when_it_is_asked_for():
    model, batches, found = streams(room=2 * 3 * 3 * 4 * 5 * 4)
    assert found.take(CHAINS)
    runs = model.runs
    assert torch.equal(found.of(("one",)).hidden[2], batches[2])
    assert model.runs == runs
    other = found.of(("out",))
    assert model.runs == runs + len(batches)
    assert all(map(torch.equal, other.hidden, capture(model, ("out",), batches, silent).hidden))


def test_a_chain_that_some_batch_does_not_reach_is_refused_and_the_others_are_not_lost():
    model, batches, found = streams()
    batches[0] = -batches[0]
    assert not found.take([*CHAINS, ("rare",)])
    assert not found.runs(("rare",))
    runs = model.runs
    assert found.take(CHAINS)
    assert len(found.of(("out",))) == len(batches)
    assert model.runs == runs


def test_what_is_not_finite_is_refused_by_the_name_of_what_it_enters():
    _, batches, found = streams()
    batches[1][0, 0, 0] = torch.inf
    with pytest.raises(DataError, match="Inputs of one with NaN"):
        found.take(CHAINS)
