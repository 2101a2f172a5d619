"""Rates: a file that is whole or left aside, and a model that is sane."""

import json
import warnings

import pytest
import torch

from bondwise.compute import machine, tune
from bondwise.compute.machine import STATED, Machine, Rates


@pytest.fixture
def tuning(tmp_path, monkeypatch):
    file = tmp_path / "deep" / "tuning.json"
    monkeypatch.setenv("BONDWISE_TUNING", str(file))
    machine._read.cache_clear()
    yield file
    machine._read.cache_clear()


def test_what_was_measured_is_read_again(tuning):
    assert machine.machine() == STATED
    found = Machine(Rates(peak=7e9), Rates(peak=9e9, half=(1.0, 2.0, 3.0)), measured=True)
    assert machine.keep(found) == tuning
    assert machine.machine() == found
    assert [child.name for child in tuning.parent.iterdir()] == ["tuning.json"]


def test_other_numbers_of_threads_are_kept_beside(tuning):
    machine.keep(Machine(Rates(peak=7e9)))
    whole = json.loads(tuning.read_text())
    whole["threads"]["97"] = whole["threads"]["1"]
    tuning.write_text(json.dumps(whole))
    machine.keep(Machine(Rates(peak=8e9)))
    assert json.loads(tuning.read_text())["threads"].keys() == {"1", "97"}
    assert machine.machine().single.peak == 8e9


def lose(whole):
    del whole["threads"]["1"]["single"]["peak"]


def blow(whole):
    whole["threads"]["1"]["half"]["call"] = float("nan")


@pytest.mark.parametrize(
    "change",
    [
        lambda whole: whole.update(schema=99),
        lambda whole: whole.update(processor="another"),
        lambda whole: whole.update(threads=3),
        lose,
        blow,
        lambda _: "[1]",
        lambda _: "{half",
    ],
)
def test_a_foreign_or_broken_file_is_left_aside_with_one_warning(tuning, change):
    machine.keep(Machine())
    whole = json.loads(tuning.read_text())
    tuning.write_text(change(whole) or json.dumps(whole))
    machine._read.cache_clear()
    with pytest.warns(UserWarning, match="left aside.*bondwise tune"):
        assert machine.machine() == STATED
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert machine.machine() == STATED  # warned once
    machine.keep(Machine(Rates(peak=5e9)))  # made anew over it
    assert machine.machine().single.peak == 5e9
    assert machine.machine().measured


@pytest.mark.parametrize("itemsize", [2, 4, 8])
def test_more_work_takes_longer(itemsize):
    rates = STATED.rates(itemsize)
    last = 0.0
    for side in (1, 8, 64, 512, 4096):
        took = rates.product((1, side, side, side), itemsize)
        assert took > last
        last = took
    assert rates.product((4, 64, 64, 64), itemsize) < rates.product((8, 64, 64, 64), itemsize)


def test_calibration_gives_rates_that_can_be_used(monkeypatch, tuning):
    monkeypatch.setattr(tune, "SHORTEST", 1e-5)
    monkeypatch.setattr(tune, "REPEATS", 1)
    monkeypatch.setattr(tune, "SIDES", (1, 8, 32))
    monkeypatch.setattr(tune, "SIDES_OF_BATCHES", (8, 32))
    seen = []
    found = tune.calibrate(lambda *where: seen.append(where))
    assert found.measured
    assert seen[-1] == ("measure", 2, 2)
    machine.keep(found)
    assert machine.machine() == found
    for rates in (found.single, found.half):
        assert torch.tensor([rates.peak, rates.call, rates.fresh, *rates.half]).gt(0).all()
