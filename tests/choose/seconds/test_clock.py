"""Seconds between those that were measured, and what was not measured is said."""

import json
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import bondwise as bw
import clocks
from bondwise.choose.candidates import Group, candidates
from bondwise.choose.fitted import fitted
from bondwise.choose.kinds.kernels import Moves
from bondwise.choose.seconds.clock import Clock, check_measured
from bondwise.choose.seconds.interpolate import multiplications
from bondwise.choose.seconds.place import Place
from bondwise.compute.kernels.geometry import Geometry
from bondwise.errors import BudgetError, DataError
from bondwise.layers.prepare.measurement import moving
from bondwise.layers.prepare.measurements import Measurements

LINEAR = Place("linear", (48, 32), "float32")


def clock(*entries, **more):
    return Clock(Measurements.here(entries), "m.json", **more)


def rungs(points, place=LINEAR, rows=1):
    """Low rank at some ranks, with seconds over dense's."""
    return [
        clocks.entry(place.host, place.shape, bw.lowrank(*place.shape, rank), rows, ratio)
        for rank, ratio in points
    ]


RATIOS = st.dictionaries(st.integers(1, 32), st.floats(0.01, 2.0), min_size=1, max_size=6)


@settings(deadline=None, max_examples=60)
@given(RATIOS, st.integers(1, 31))
def test_a_ladder_rises_and_is_a_line_between_its_rungs(points, rank):
    found = clock(*rungs(points.items())).on({"w": LINEAR})
    (dense,) = found.seconds("w")
    ranks = sorted(points)
    rising = np.maximum.accumulate([points[r] for r in ranks])
    macs = [r * (48 + 32 - r) for r in (rank, *ranks)]  # gauge-free
    wanted = np.interp(macs[0], macs[1:], rising)
    (seconds,) = found.seconds("w", (bw.lowrank(48, 32, rank),))
    assert seconds / dense == pytest.approx(wanted)
    more = found.seconds("w", (bw.lowrank(48, 32, rank + 1),))
    assert more[0] >= seconds


def test_each_number_of_rows_has_its_ladder_and_counts_alike():
    both = [*rungs([(4, 0.5)], rows=1), *rungs([(4, 0.1)], rows=256)]
    found = clock(*both).on({"a": LINEAR, "b": LINEAR})
    dense, ours = found.seconds("a"), found.seconds("a", (bw.lowrank(48, 32, 4),))
    assert found.loads == (1, 256)
    assert [o / d for o, d in zip(ours, dense, strict=True)] == pytest.approx([0.5, 0.1])
    assert found.share(dense) == pytest.approx(0.5)  # of two weights
    assert found.share(ours) == pytest.approx(0.5 * (0.5 + 0.1) / 2)


def test_only_numbers_of_rows_count_that_all_weights_were_measured_at():
    other = replace(LINEAR, shape=(16, 16))
    entries = [*rungs([(4, 0.5)]), *rungs([(4, 0.4)], rows=64), *rungs([(2, 0.3)], other)]
    assert clock(*entries).on({"a": LINEAR, "b": other}).loads == (1,)
    assert clock(*entries).on({"a": LINEAR}).loads == (1, 64)
    apart = [*rungs([(4, 0.5)], rows=64), *rungs([(2, 0.3)], other)]
    with pytest.raises(DataError, match=r"no number of rows for which all .* with one --prompt"):
        clock(*apart).on({"a": LINEAR, "b": other})


def test_rows_of_a_sample_are_counted():
    here = replace(LINEAR, rows=50)
    found = clock(*rungs([(4, 0.5)], rows=50), *rungs([(4, 0.4)], rows=400)).on({"w": here})
    assert found.loads == (1, 8)
    with pytest.raises(DataError, match="no number of rows"):
        clock(*rungs([(4, 0.5)], rows=64)).on({"w": here})


def test_what_was_not_measured_is_no_candidate_and_is_named():
    x = torch.randn(400, 32)
    group = Group({"w": torch.randn(48, 32)}, x.T @ x)
    every = candidates(group, formats=("dense", "lowrank", "lowrank + columns"))
    every += list(fitted(group, formats=["btt"], prefer="size"))
    watch = clock(*rungs([(4, 0.5), (20, 0.9)])).on({"w": LINEAR})
    known, left = watch.timed(every)
    assert {c.format for c in known} == {"dense", "lowrank"}
    assert all(len(c.seconds) == 1 for c in known)
    assert {c.format for c in left} == {"btt"}
    (note,) = watch.unmeasured((c.format, c.weight) for c in left)
    assert note == "btt was not measured for 48 x 32: it is no candidate there"


def test_shapes_and_terms_beside_have_ladders_of_their_own():
    one, two = bw.mpo((6, 8), (4, 8), 3), bw.mpo((8, 6), (8, 4), 3)
    entries = [
        *rungs([(4, 0.5)]),
        clocks.entry("linear", (48, 32), one, 1, 0.7),
        clocks.entry("linear", (48, 32), bw.lowrank(48, 32, 4), 1, 0.6, beside=("columns",)),
    ]
    watch = clock(*entries).on({"w": LINEAR})
    (dense,) = watch.seconds("w")
    assert watch.seconds("w", (bw.mpo((6, 8), (4, 8), 9),)) == (pytest.approx(0.7 * dense),)
    assert watch.seconds("w", (two,)) is None
    beside = bw.layers.entries.Columns(1, (48, 32))
    assert watch.seconds("w", (bw.lowrank(48, 32, 4), beside)) == (pytest.approx(0.6 * dense),)
    assert watch.seconds("w", (one, beside)) is None


def test_dense_is_the_median_of_what_was_measured_in_turns():
    entries = [
        replace(rung, dense_seconds=seconds)
        for rank, seconds in ((1, 1.0), (2, 9.0), (3, 2.0))
        for rung in rungs([(rank, 0.5)])
    ]
    assert clock(*entries).on({"w": LINEAR}).seconds("w") == (2.0,)


def test_a_convolution_is_known_by_how_it_moves_and_over_what():
    conv = nn.Conv2d(8, 16, 3, padding=1)
    net, geometry = bw.tucker2(16, 8, (3, 3), (8, 4)), Geometry.of(conv)
    more = {"geometry": moving(geometry), "size": (9, 7)}
    entry = clocks.entry("convolution 2d", (16, 72), net, 8, 0.4, **more)
    here = Place.of(conv, Moves(geometry, (9, 7)))
    own = clock(entry)
    assert own.on({"c": here}).seconds("c", (net,)) == (pytest.approx(0.4 * entry.dense_seconds),)
    assert multiplications(net, here.moves) > multiplications(net, None)
    for other in (Moves(geometry, (9, 9)), Moves(replace(geometry, stride=(2, 2)), (9, 7))):
        with pytest.raises(DataError, match=r"c \(convolution 2d 16 x 72, float32, kernel 3x3"):
            own.on({"c": replace(here, moves=other)})
    assert own.placed(conv) == here  # where no input is known, that of the file
    two = clock(entry, replace(entry, size=(5, 5)))
    with pytest.raises(DataError, match="at 2 input sizes"):
        two.placed(conv)


def test_another_dtype_may_be_asked_for():
    entries = [clocks.entry("linear", (48, 32), None, 1, 1.0, dtype="bfloat16")]
    assert clock(*entries, dtype="bfloat16").on({"w": LINEAR}).loads == (1,)
    with pytest.raises(DataError, match="linear 48 x 32, float32"):
        clock(*entries).on({"w": LINEAR})


def test_a_network_that_is_none_is_one_sentence():
    bad = replace(rungs([(4, 0.5)])[0], network="o a, a i -> (o) (i", sizes={})
    with pytest.raises(DataError, match=r"Measurements m.json hold no network \(") as said:
        clock(bad).on({"w": LINEAR}).seconds("w", (bw.lowrank(48, 32, 4),))
    assert "\n" not in str(said.value)


def model(width=48):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, width), nn.GELU(), nn.Linear(width, 32), nn.Linear(32, 32))


@pytest.mark.parametrize("keep", [0.3, 0.6, 0.9])
def test_a_plan_meets_its_seconds(keep, tmp_path):
    """Where seconds go as multiplications, so do those that are kept."""
    file = clocks.clock(model(), tmp_path / "m.json")
    table = bw.plan_model(model(), keep, unit="seconds", measurements=file)
    (note,) = [note for note in table.notes if note.endswith("counted in seconds")]
    assert 0.95 * keep <= float(note.split()[1]) <= keep  # ranks of such small weights are coarse
    macs = sum(
        (sum(row.weight.shape) - (r := row.network.bonds["a"])) * r if row.changes else row.before
        for row in table
        if row.weight.chosen
    )
    dense = sum(row.before for row in table if row.weight.chosen)
    assert macs / dense == pytest.approx(float(note.split()[1]), abs=0.02)
    assert any("seconds are those of prepared layers at 1 and 256 rows" in n for n in table.notes)


def test_without_data_a_model_is_cut_to_its_seconds(tmp_path):
    file = clocks.clock(model(), tmp_path / "m.json")
    plan = bw.plan_model(model(), 0.6, unit="seconds", measurements=file)
    result = bw.tensorize(model(), 0.6, unit="seconds", measurements=file)
    assert [row.after for row in result.table] == [row.after for row in plan]
    assert result.table.notes == plan.notes


def test_what_is_no_faster_stays_dense(tmp_path):
    """Low rank of the small weight takes as long as dense whatever its rank: it is not cut."""
    small = [clocks.entry("linear", (32, 32), bw.lowrank(32, 32, r), 1, 1.0) for r in (1, 15)]
    wide = [e for s in ((48, 32), (32, 48)) for e in clocks.ladder("linear", s, 1)]
    Measurements.here([*small, *wide]).write(tmp_path / "m.json")
    file = tmp_path / "m.json"
    for table in (
        bw.plan_model(model(), 0.7, unit="seconds", measurements=file),
        bw.tensorize(model(), 0.7, torch.randn(300, 32), unit="seconds", measurements=file).table,
    ):
        assert [row.changes for row in table if row.weight.chosen] == [True, True, False]


def test_with_data_a_budget_of_seconds_is_met_where_few_multiplications_take_long(brief, tmp_path):
    file = clocks.clock(model(), tmp_path / "m.json", rate=lambda share, _: share**0.5)
    data = torch.randn(600, 32)
    kept = {}
    for keep in (0.8, 0.9):
        one = bw.tensorize(model(), keep, data, unit="seconds", measurements=file).table
        (note,) = [note for note in one.notes if note.endswith("counted in seconds")]
        assert 0.97 * keep <= float(note.split()[1]) <= keep + 1e-4
        kept[keep] = one.kept
        assert all(row.seconds is None or len(row.seconds) == 2 for row in one)
    assert kept[0.8] < kept[0.9] < 1


def test_the_same_file_gives_the_same_result(brief, tmp_path):
    file = clocks.clock(model(), tmp_path / "m.json")
    data = torch.randn(400, 32)
    one, two = (
        bw.tensorize(model(), 0.6, data, unit="seconds", measurements=where)
        for where in (file, str(file))
    )
    assert all(map(torch.equal, one.model.state_dict().values(), two.model.state_dict().values()))
    assert one.table.notes == two.table.notes


@pytest.mark.parametrize("data", [None, torch.randn(200, 32)])
def test_a_file_of_another_models_shapes_is_refused_by_name(data, tmp_path):
    file = clocks.clock(model(40), tmp_path / "m.json")
    with pytest.raises(DataError) as said:
        bw.tensorize(model(48), 0.6, data, unit="seconds", measurements=file)
    assert str(said.value) == (
        f"0 (linear 48 x 32, float32) was not measured in {file} (1 more kinds of weights "
        "neither); write `bondwise bench MODEL --measurements FILE` for the model."
    )


@pytest.mark.parametrize(
    ("asked", "error", "says"),
    [
        ({"unit": "seconds"}, BudgetError, "unit='seconds' came without measurements; give"),
        ({"measurements": "m.json"}, BudgetError, "with unit='params', which counts no seconds"),
        ({"unit": "seconds", "measurements": "gone.json"}, DataError, "gone.json cannot be read"),
        ({"unit": "hours"}, BudgetError, "unit='hours' came"),
        ({"unit": "macs"}, BudgetError, "unit='macs' came"),
    ],
)
def test_what_cannot_be_counted_is_one_sentence(asked, error, says):
    for run in (bw.plan_model, bw.tensorize):
        with pytest.raises(error, match=r"came|cannot be read") as said:
            run(model(), 0.6, **asked)
        assert says in str(said.value)
        assert "\n" not in str(said.value)


def test_what_is_no_path_is_refused():
    with pytest.raises(BudgetError, match="A int came as measurements; give the path of a file"):
        check_measured("seconds", 3)


def test_a_format_that_was_not_measured_is_one_sentence(tmp_path):
    file = clocks.clock(model(), tmp_path / "m.json")
    with pytest.raises(DataError, match=r"mpo was not measured for 48 x 32.* another format"):
        bw.plan_model(model(), 0.6, format="mpo", unit="seconds", measurements=file)


def test_another_machine_is_warned_of_and_its_seconds_are_taken(tmp_path):
    file = clocks.clock(model(), tmp_path / "m.json")
    found = json.loads(file.read_text()) | {"processor": "Abacus 3", "threads": 7}
    file.write_text(json.dumps(found))
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        table = bw.plan_model(model(), 0.6, unit="seconds", measurements=file)
    assert any("Abacus 3" in str(warning.message) for warning in seen)
    assert any("Abacus 3" in note and "7 threads" in note for note in table.notes)
