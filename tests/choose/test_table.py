import json

import pytest
import torch

from bondwise.choose.candidates import Candidate, Group, candidates
from bondwise.choose.select import Weight
from bondwise.choose.table import Line, Table, decided, runner_up
from bondwise.topology.lowrank import lowrank


def made(weights, form, numbers, errors, nets=True):
    nets = tuple(lowrank(10, 10, 2) for _ in weights) if nets else ()
    return Candidate(weights, form, nets, numbers, numbers, numbers, (1.0, 2.0), numbers, errors)


def test_the_runner_up_is_compared_at_equal_numbers():
    site = [
        made(("w",), "dense", 100, (0.0,), nets=False),
        made(("w",), "lowrank", 40, (0.2,)),
        made(("w",), "mpo", 30, (0.5,)),
        made(("w",), "mpo", 50, (0.1,)),
        made(("w",), "btt", 40, (0.4,)),
        made(("w",), "tree", 80, (0.1,)),
    ]
    assert runner_up(site[1], "w", site) == ("mpo", pytest.approx(1.5))
    assert runner_up(site[0], "w", site) is None
    assert runner_up(site[1], "w", site[:2]) is None


def test_a_shared_core_is_charged_by_size():
    site = [
        made(("q",), "dense", 300, (0.0,), nets=False),
        made(("k",), "dense", 100, (0.0,), nets=False),
        made(("q",), "lowrank", 90, (0.3,)),
        made(("k",), "lowrank", 30, (0.6,)),
        made(("q", "k"), "shared lowrank", 120, (0.1, 0.3)),
    ]
    assert runner_up(site[4], "q", site) == ("lowrank", pytest.approx(3.0))
    assert runner_up(site[4], "k", site) == ("lowrank", pytest.approx(2.0))


def test_rows_of_weights_that_share_add_up_and_are_plain_data():
    site = candidates(Group({"q": torch.randn(24, 32), "k": torch.randn(8, 32)}))
    found = [c for c in site if c.format == "shared lowrank"]
    assert found
    for chosen in found:
        rows = [
            decided(Weight(name, "Linear", shape), chosen, site)
            for name, shape in (("q", (24, 32)), ("k", (8, 32)))
        ]
        assert sum(row.after for row in rows) == chosen.numbers
        assert [row.shared for row in rows] == [("k",), ("q",)]
        assert sum(row.seconds[1] for row in rows) == pytest.approx(chosen.seconds[1])
        back = json.loads(json.dumps([row.as_dict() for row in rows]))
        assert [row["held_out"] ** 2 for row in back] == pytest.approx(list(chosen.errors))


def test_a_dense_candidate_is_a_row_left_alone():
    site = candidates(Group({"q": torch.randn(8, 8)}))
    row = decided(Weight("q", "Linear", (8, 8)), site[0], site)
    assert (row.changes, row.after, row.reason) == (False, 64, "dense at this budget")


def test_a_printed_row_says_who_won_and_by_how_much_within_a_hundred_columns():
    weight = Weight("model.layers.29.self_attn.k_proj", "Linear", (576, 1536))
    row = Line(
        weight, "", 497_664, "shared lowrank", lowrank(576, 1536, 384), held_out=0.1234,
        runner_up=("lowrank + columns", 1.0834), remainder=15,
    )  # fmt: skip
    short = Line(Weight("q", "Linear", (8, 8)), "", 48, "mpo", lowrank(8, 8, 2), held_out=0.5)
    shown = str(Table((row, short), 0.6))
    assert "shared lowrank 384 + 15 columns" in shown
    assert "error 0.123; lowrank + columns would have 1.08 x its square" in shown
    assert "mpo 2, 64 -> 48, error 0.500\n" in shown
    assert max(map(len, shown.splitlines())) <= 104
