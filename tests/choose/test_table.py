import json
from dataclasses import replace

import pytest
import torch

from bondwise.choose.candidates import Candidate, Group, candidates
from bondwise.choose.select import Weight
from bondwise.choose.table import Line, Table, decided, runner_up
from bondwise.layers.entries import Columns
from bondwise.topology.lowrank import lowrank


def made(weight, form, numbers, error):
    terms = () if form == "dense" else (lowrank(10, 10, 2),)
    return Candidate(weight, form, terms, numbers, numbers, numbers, numbers, error)


def test_the_runner_up_is_compared_at_equal_numbers():
    site = [
        made("w", "dense", 100, 0.0),
        made("w", "lowrank", 40, 0.2),
        made("w", "mpo", 30, 0.5),
        made("w", "mpo", 50, 0.1),
        made("w", "btt", 40, 0.4),
        made("w", "tree", 80, 0.1),
    ]
    assert runner_up(site[1], site) == ("mpo", pytest.approx(1.5))
    assert runner_up(site[0], site) is None
    assert runner_up(site[1], site[:2]) is None


def test_a_row_is_plain_data_and_says_what_its_candidate_does():
    site = candidates(Group({"q": torch.randn(24, 32), "k": torch.randn(8, 32)}))
    for chosen in (replace(c, seconds=(1.0, 2.0)) for c in site if c.network is not None):
        out = {"q": 24, "k": 8}[chosen.weight]
        row = decided(Weight(chosen.weight, "Linear", (out, 32)), chosen, site)
        assert (row.after, row.macs, row.seconds) == (chosen.numbers, chosen.macs, chosen.seconds)
        assert row.network.shape == (out, 32)
        back = json.loads(json.dumps(row.as_dict()))
        assert back["held_out"] ** 2 == pytest.approx(chosen.error)


def test_a_dense_candidate_is_a_row_left_alone():
    site = candidates(Group({"q": torch.randn(8, 8)}))
    row = decided(Weight("q", "Linear", (8, 8)), site[0], site)
    assert (row.changes, row.after, row.reason) == (False, 64, "dense at this budget")


def test_a_printed_row_says_who_won_and_by_how_much_within_a_hundred_columns():
    weight = Weight("model.layers.29.self_attn.k_proj", "Linear", (576, 1536))
    row = Line(
        weight, "", 497_664, "lowrank + columns",
        (lowrank(576, 1536, 384), Columns(15, (576, 1536))),
        held_out=0.1234, runner_up=("lowrank + columns", 1.0834),
    )  # fmt: skip
    assert [term["kind"] for term in row.as_dict()["terms"]] == ["network", "columns"]
    short = Line(Weight("q", "Linear", (8, 8)), "", 48, "mpo", (lowrank(8, 8, 2),), held_out=0.5)
    shown = str(Table((row, short), 0.6))
    assert " lowrank 384 + 15 columns" in shown
    assert "error 0.123; lowrank + columns would have 1.08 x its square" in shown
    assert "mpo 2, 64 -> 48, error 0.500\n" in shown
    assert max(map(len, shown.splitlines())) <= 104
