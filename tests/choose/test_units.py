"""Budgets in every unit, and weights that are protected, through whole runs."""

import pytest
import torch
from torch import nn

import bondwise as bw
import clocks
from bondwise.errors import BudgetError


def model():
    torch.manual_seed(0)
    layers = [nn.Linear(64, 96), nn.GELU(), nn.Linear(96, 96), nn.GELU(), nn.Linear(96, 64)]
    return nn.Sequential(*layers)


def macs(table):
    """Multiplications for a token, from the ranks alone: r (in - r) + r out, or out x in."""
    dense = kept = 0
    for row in table:
        if not row.weight.chosen:
            continue
        out, inp = row.weight.shape
        dense += out * inp
        (rank,) = row.network.bonds.values() if row.changes else (0,)
        kept += rank * (inp - rank + out) if row.changes else out * inp
    return kept / dense


@pytest.mark.parametrize("unit", ["params", "bytes", "macs", "seconds"])
@pytest.mark.parametrize("prefer", ["speed", "size"])
def test_every_unit_is_kept_within_two_percent(unit, prefer, brief, tmp_path):
    data, keep = torch.randn(600, 64), 0.7
    file = clocks.clock(model(), tmp_path / "m.json") if unit == "seconds" else None
    table = bw.tensorize(model(), keep, data, unit=unit, prefer=prefer, measurements=file).table
    if unit == "params":
        assert 0.98 * keep <= table.kept <= keep
        return
    (note,) = [note for note in table.notes if note.endswith(f"counted in {unit}")]
    kept = float(note.split()[1])
    assert 0.98 * keep - 1e-4 <= kept <= keep + 1e-4
    if unit == "macs":
        assert macs(table) == pytest.approx(kept, abs=1e-4)


@pytest.mark.parametrize("asked", [{}, {"format": "lowrank", "data": True}])
def test_a_unit_that_would_be_ignored_is_refused(asked):
    data = torch.randn(100, 64) if asked.pop("data", False) else None
    with pytest.raises(BudgetError, match="write unit='params'"):
        bw.tensorize(model(), 0.6, data, unit="bytes", **asked)


@pytest.mark.parametrize("data", [None, torch.randn(600, 64)])
def test_what_is_protected_stays_dense_and_counts(data, brief):
    dense = model()
    result = bw.tensorize(dense, 0.6, data, protect=["2"])
    assert torch.equal(result.model[2].weight, dense[2].weight)
    assert 0.98 * 0.6 <= result.table.kept <= 0.6
    smallest = "below what|below what these"
    with pytest.raises(BudgetError, match=smallest) as said:
        bw.tensorize(dense, 0.3, data, protect=["2"])
    reachable = float(str(said.value).rstrip(".").split("at least ")[1])
    assert bw.tensorize(dense, reachable, data, protect=["2"]).table.kept <= reachable
