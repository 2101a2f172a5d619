"""The loop against plain torch, and what it does where a run is cut off, diverges or gets worse."""

import itertools
import json
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from bondwise.errors import DataError
from bondwise.train import loop
from bondwise.train.descent import Course
from bondwise.train.loop import train
from bondwise.train.nonfinite import first_nonfinite
from bondwise.train.recipe import MEASURED, Healing
from bondwise.train.schedule import scheduled
from bondwise.train.state import Store
from tiny import same, values

BATCH = 8


class Net(nn.Sequential):
    def __init__(self, drop=0.0):
        torch.manual_seed(0)
        super().__init__(nn.Linear(4, 16), nn.Tanh(), nn.Dropout(drop), nn.Linear(16, 2))


def course(net, parts=1, poison=None, measure=None):
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(64, 4, generator=draw, dtype=net[0].weight.dtype)
    y = torch.stack([x.prod(1), x.sum(1).sin()], 1)

    def loss(step, part):
        rows = (torch.arange(BATCH) + step * BATCH) % len(x)
        rows = rows.view(parts, -1)[part]
        entering = x[rows] * (float("nan") if step == poison else 1.0)
        return (net(entering) - y[rows]).square().mean() / parts

    def error():
        with torch.no_grad():
            return float((net(x) - y).square().mean())

    groups = [
        {"params": [net[0].weight, net[3].weight], "lr": 0.02},
        {"params": [net[0].bias, net[3].bias], "lr": 0.01, "weight_decay": 0.0},
    ]
    return Course(net, groups, loss, parts, measure or error, "error")


def recipe(**choices):
    return replace(Healing(steps=20, every=4, patience=0, clip=0.5, warmup=0.2), **choices)


def run(net, folder, task=None, steps=20, drill=None, **choices):
    store = Store(folder, dict(net.named_parameters()))
    return train(task or course(net), recipe(**choices), store, steps=steps, **(drill or {}))


def test_a_run_is_adamw_with_warm_up_cosine_and_clipping(tmp_path):
    net, other = Net(), Net()
    found = run(net, tmp_path, every=20, decay=0.1)
    task = course(other)
    own = [dict(group) for group in task.groups]
    optimizer = torch.optim.AdamW(own, betas=(0.9, 0.95), weight_decay=0.1)
    losses = []
    for step in range(20):
        for group, rate in zip(optimizer.param_groups, (0.02, 0.01), strict=True):
            group["lr"] = rate * scheduled(1.0, step, 20, 4, start=4)
        optimizer.zero_grad()
        loss = task.loss(step, 0)
        loss.backward()
        nn.utils.clip_grad_norm_(other.parameters(), 0.5)
        optimizer.step()
        losses.append(loss.item())
    torch.testing.assert_close(values(net), values(other), rtol=1e-5, atol=1e-6)
    assert [line["loss"] for line in found.history] == pytest.approx(losses, rel=1e-5)
    assert found.best < course(Net()).measure()
    assert found.best_step == 20


def test_the_parts_of_a_step_add_up_to_the_whole_batch(tmp_path):
    nets = {1: Net().double(), 4: Net().double()}
    for parts, net in nets.items():
        run(net, tmp_path / str(parts), course(net, parts))
    torch.testing.assert_close(*map(values, nets.values()), rtol=1e-10, atol=1e-12)


def cut_at(step):
    def progress(stage, done, total):
        if done == step:
            raise KeyboardInterrupt

    return progress


@pytest.mark.parametrize("cuts", [(1,), (3, 9), (8,), (11,), (19,), (20,)])
def test_a_run_that_is_cut_off_and_resumed_is_the_run_that_was_not(tmp_path, monkeypatch, cuts):
    """Dropout draws numbers; states are kept at every third step or so, so steps are lost."""
    whole = Net(drop=0.3)
    wanted = run(whole, tmp_path / "whole")
    ticks = itertools.count()
    monkeypatch.setattr(loop.time, "monotonic", lambda: next(ticks))
    for step in cuts:
        net = Net(drop=0.3)
        with pytest.raises(KeyboardInterrupt):
            run(net, tmp_path / "cut", drill={"progress": cut_at(step)}, save_every=3.0)
    net = Net(drop=0.3)
    found = run(net, tmp_path / "cut", save_every=3.0)
    assert same(values(net), values(whole))
    for line, other in zip(found.history, wanted.history, strict=True):
        untimed = dict.fromkeys(("seconds", "took"))
        assert line | untimed == other | untimed
    assert (found.best, found.best_step) == (wanted.best, wanted.best_step)


def test_a_run_that_had_ended_is_read_and_not_run_again(tmp_path):
    net, again = Net(), Net()
    wanted = run(net, tmp_path)
    found = run(again, tmp_path, drill={"progress": cut_at(1)})
    assert same(values(net), values(again))
    assert found == wanted
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [f"best-{wanted.best_step:08d}.safetensors", "run.json"]
    assert json.loads((tmp_path / "run.json").read_text())["done"]


def test_nan_stops_the_run_names_step_and_layer_and_keeps_the_best(tmp_path):
    net = Net()
    found = run(net, tmp_path, course(net, poison=6))
    assert "not finite at step 7, first in 0;" in found.stopped
    assert "after step 4 are kept" in found.stopped
    assert found.best_step == 4
    assert len(found.history) == 6
    assert found.best == pytest.approx(course(net).measure())


def test_a_gradient_that_is_not_finite_stops_the_run_too(tmp_path):
    net = nn.Linear(4, 2)

    def loss(step, part):
        return (net.weight * 0).sum().sqrt() if step == 2 else net.weight.square().sum()

    task = Course(net, [{"params": [net.weight], "lr": 0.1}], loss)
    store = Store(tmp_path, {"weight": net.weight})
    found = train(task, recipe(every=1), store, steps=5)
    assert "the gradient was not finite at step 3, first in the gradient of weight" in found.stopped
    assert torch.isfinite(net.weight).all()
    assert found.best is None


def test_a_student_that_is_broken_before_names_its_layer(tmp_path):
    net = Net()
    nn.init.constant_(net[3].bias, float("inf"))
    with pytest.raises(DataError, match=r"is inf before it is healed, first in 3 \(its bias is"):
        run(net, tmp_path)


def test_the_culprit_is_the_first_in_order_of_running():
    class Blocks(nn.Module):
        def __init__(self):
            super().__init__()
            self.late, self.early = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x):
            return {"out": [self.late(self.early(x))]}

    net = Blocks()
    nn.init.constant_(net.early.weight, float("nan"))
    x = torch.ones(1, 2)
    assert first_nonfinite(net, partial(net, x)) == "early (its weight is not finite)"
    assert first_nonfinite(Net(), lambda: None) == ""


@pytest.mark.parametrize(
    ("errors", "patience", "stopped", "looks"),
    [
        ([9.0, 5.0, 4.0, 4.5, 4.0, 6.0, 1.0], 3, "no better error in 3 looks up to step 10", 6),
        # it gets better, though the start was better yet
        ([3.0, 9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 2.0], 2, "", 8),
        ([3.0, 4.0, 5.0, 4.5, 1.0], 2, "no better error in 2 looks up to step 6", 4),
        ([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0], 0, "", 8),
    ],
)
def test_the_best_is_kept_and_the_run_stops_where_none_is_better(
    tmp_path, errors, patience, stopped, looks
):
    scripted, net, seen = iter(errors), Net(), []

    def measure():
        seen.append(values(net))
        return next(scripted)

    task = course(net, measure=measure)
    found = run(net, tmp_path, task, 14, every=2, patience=patience)
    best = min(errors[:looks])
    at = errors.index(best)
    assert (found.stopped, len(seen)) == (stopped, looks)
    assert (found.best, found.best_step) == (best, 2 * at)
    assert same(values(net), seen[at])


def test_without_a_measure_the_last_weights_are_kept(tmp_path):
    net, other = Net(), Net()
    run(net, tmp_path / "a", replace(course(net), measure=None))
    run(other, tmp_path / "b", every=20)
    assert same(values(net), values(other))


def test_a_time_becomes_steps_after_ten_measured_ones_and_the_rates_do_not_depend_on_when(tmp_path):
    timed = recipe(steps=None, minutes=1.0, every=None)
    asked = []

    def decide(per_step, per_look):
        asked.append((per_step, per_look))
        return 25

    nets, rates = [Net(), Net()], []
    for net, steps in zip(nets, (None, 25), strict=True):  # measured; and with the record of it
        store = Store(tmp_path / str(steps), dict(net.named_parameters()))
        found = train(course(net), timed, store, steps=steps, decide=decide)
        assert found.steps == len(found.history) == 25
        rates.append([line["rate"] for line in found.history])
        assert [line["step"] for line in found.history if "error" in line] == [12, 16, 20, 24, 25]
    assert len(asked) == 1
    assert all(0 < seconds < 10 for seconds in asked[0])
    short = Store(tmp_path / "short", dict((net := Net()).named_parameters()))
    found = train(course(net), timed, short, steps=None, decide=lambda *_: 0)
    assert len(found.history) == MEASURED  # the measured ones are run at least
    assert rates[0] == rates[1]
    assert rates[0][MEASURED - 1] == max(rates[0])
    assert same(values(nets[0]), values(nets[1]))


def test_a_listener_hears_the_start_and_every_step_as_plain_json(tmp_path):
    heard = []
    found = run(Net(), tmp_path, drill={"tell": heard.append})
    assert heard[0]["step"] == 0
    assert heard[1:] == found.history
    assert json.loads(json.dumps(found.history)) == found.history
    assert {"step", "loss", "rate", "seconds"} <= found.history[0].keys()


def test_the_callers_random_numbers_and_gradient_mode_are_left_alone(tmp_path):
    net = Net(drop=0.5)
    torch.manual_seed(7)
    wanted = torch.rand(3)
    torch.manual_seed(7)
    with torch.no_grad():
        run(net, tmp_path)
        assert torch.equal(torch.rand(3), wanted)
        assert not torch.is_grad_enabled()
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize("warm", [1, 5, 30])
def test_the_rate_rises_to_the_largest_and_falls_to_the_floor(warm):
    rates = [scheduled(1.0, step, 30, warm, floor=0.1, start=warm) for step in range(31)]
    assert all(a < b for a, b in itertools.pairwise(rates[:warm]))
    assert all(a >= b for a, b in itertools.pairwise(rates[warm:]))
    assert max(rates) == pytest.approx(1.0)
    assert warm == 30 or rates[30] == pytest.approx(0.1)
