"""Runs take turns, and rates and ratios are of the right things."""

import pytest
import torch

from bondwise.bench.run import BATCH, Load
from bondwise.bench.speed import clock, interleaved, rates, ratios, spreads


def test_jobs_take_turns_and_keep_their_own_results():
    order, told = [], []

    def job(name):
        order.append(name)
        return {name: float(order.count(name))}

    jobs = [lambda: job("A"), lambda: job("B")]
    found = interleaved(jobs, 3, lambda done, total: told.append((done, total)))
    assert "".join(order) == "ABABAB"
    assert found == [[{name: k} for k in (1.0, 2.0, 3.0)] for name in "AB"]
    assert told == [(0, 3), (1, 3), (2, 3), (3, 3)]


def test_an_encoder_has_a_rate_for_one_text_and_for_many():
    found = rates({"forward": 0.5, "batched": 2.0}, Load(prompt=10))
    assert found == {"forward": 20.0, "batched": BATCH * 5.0}


def test_a_ratio_is_taken_round_by_round():
    # the second round was slow for both: a ratio of medians would not be 2
    ours = [{"decode": 20.0}, {"decode": 2.0}, {"decode": 18.0}]
    other = [{"decode": 10.0}, {"decode": 1.0}, {"decode": 9.0}]
    assert ratios(ours, other) == {"decode": {"median": 2.0, "low": 2.0, "high": 2.0}}
    assert spreads(ours) == {"decode": {"median": 18.0, "low": 2.0, "high": 20.0}}


def test_the_clock_only_grows():
    now = clock(torch.device("cpu"))
    first, second = now(), now()
    assert second >= first


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
def test_the_clock_waits_for_the_device():
    x = torch.randn(4096, 4096, device="cuda")
    now, done = clock(x.device), torch.cuda.Event()
    for _ in range(20):
        x = x @ x
    done.record()
    now()
    assert done.query()
