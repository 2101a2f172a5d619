"""Layers that meet one input run together, and only when it is one."""

import copy
import gc
import threading

import pytest
import torch
from torch import Tensor, nn

import bondwise as bw
from bondwise.layers.prepare import contest
from nets import random_cores


class Block(nn.Module):
    """Three projections of one input, as attention has them."""

    def __init__(self, form: str = "lowrank", bias: bool = True, between=None) -> None:
        super().__init__()
        nets = {
            "lowrank": [bw.lowrank(n, 16, 3) for n in (24, 8, 8)],
            "mpo": [bw.mpo((4, n), (4, 4), 3) for n in (6, 2, 2)],
        }[form]
        self.q, self.k, self.v = (bw.TensorLinear(n, random_cores(n), bias) for n in nets)
        self.between = between
        self.float().eval()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q = self.q(x)
        if self.between is not None:
            x = self.between(x)
        return q, self.k(x), self.v(x)


@pytest.fixture(autouse=True)
def together(monkeypatch, briefly):
    """Joined ways win, however long they take."""
    win(monkeypatch, "joined")


def win(monkeypatch, words: str) -> None:
    monkeypatch.setattr(
        contest.Entrant,
        "took",
        property(lambda own: own.seconds[0] * (1e-6 if words in own.name else 1)),
    )


def equal(found, right) -> bool:
    return all(torch.allclose(a, b, atol=1e-4) for a, b in zip(found, right, strict=True))


@pytest.mark.parametrize("form", ["lowrank", "mpo"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("words", ["joined dense", "first cores"])
def test_outputs_stay(monkeypatch, form, bias, words):
    win(monkeypatch, words)
    block = Block(form, bias)
    made = bw.prepare(block, example=torch.randn(2, 16), rows=(1, 64), room=10**6)
    if form == "lowrank" or words == "joined dense":
        assert all(choice.joined == ("q", "k", "v") for choice in made)
    for shape in ((1, 16), (5, 16), (2, 40, 16), (0, 16)):
        x = torch.randn(shape)
        with torch.no_grad():
            found = block(x)
            assert equal(found, [x @ own.dense().mT + (own.bias if bias else 0)
                                 for own in (block.q, block.k, block.v)])  # fmt: skip
            assert all(y.is_contiguous() for y in found)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_each_call_is_of_its_own_input(mode):
    block = Block()
    bw.prepare(block, example=torch.randn(2, 16), room=10**6)
    with mode():
        for _ in range(3):
            x = torch.randn(2, 16)
            right = [x @ own.dense().mT + own.bias for own in (block.q, block.k, block.v)]
            assert equal(block(x), right)
            assert equal(block(x), right)
            other = torch.randn(2, 16)
            assert torch.allclose(
                block.k(other), other @ block.k.dense().mT + block.k.bias, atol=1e-4
            )


def test_an_input_that_is_written_into_is_another():
    block = Block(between=lambda x: x.mul_(2))
    bw.prepare(block, example=torch.randn(2, 16), room=10**6)
    assert block.q.served is not None
    block.between = None
    made = bw.prepare(block, example=torch.randn(2, 16), room=10**6)
    assert any(choice.joined for choice in made)
    block.between = lambda x: x.mul_(2)
    x = torch.randn(2, 16)
    with torch.no_grad():
        right = [x @ block.q.dense().mT + block.q.bias, 2 * x @ block.k.dense().mT + block.k.bias]
        assert equal(block(x)[:2], right)


def test_layers_of_other_inputs_are_not_joined():
    block = Block(between=lambda x: x * 1)
    made = bw.prepare(block, example=torch.randn(2, 16), room=10**6)
    assert [choice.joined for choice in made if choice.name == "q"] == [(), (), ()]
    assert next(choice.joined for choice in made if choice.name == "k") == ("k", "v")


def test_nothing_is_kept_of_a_call():
    block = Block()
    bw.prepare(block, example=torch.randn(2, 16), room=10**6)
    run = block.q.served.chosen[None][1].run
    shared = run.args[0]
    with torch.no_grad():
        x = torch.randn(1, 16)
        block.q(x)
        assert shared.made is not None
        del x
        gc.collect()
        assert shared.made is None
        block(torch.randn(1, 16))
        assert shared.made is None


def test_a_copy_runs_on_its_own():
    block = Block()
    bw.prepare(block, example=torch.randn(2, 16), room=10**6)
    other = copy.deepcopy(block)
    x = torch.randn(2, 16)
    with torch.no_grad():
        block.q.core_0.add_(1)
        assert equal(other(x)[:1], [x @ other.q.dense().mT + other.q.bias])
        assert equal(
            block(x), [x @ own.dense().mT + own.bias for own in (block.q, block.k, block.v)]
        )


def test_threads_do_not_mix():
    block = Block()
    bw.prepare(block, example=torch.randn(2, 16), room=10**6)
    wrong = []

    def work(seed: int) -> None:
        draw = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for _ in range(100):
                x = torch.randn(2, 16, generator=draw)
                right = [x @ own.dense().mT + own.bias for own in (block.q, block.k, block.v)]
                if not equal(block(x), right):
                    wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_room_is_kept():
    block = Block()
    made = bw.prepare(block, example=torch.randn(2, 16), room=0)
    assert made.bytes == 0
    assert not any(choice.joined for choice in made)
    dense = 40 * 16 * 4
    assert bw.prepare(block, example=torch.randn(2, 16), rows=1).bytes <= dense
