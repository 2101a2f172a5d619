"""The file of measurements: what is written is read, and what cannot be used is one sentence."""

import json
import os
import warnings
from dataclasses import replace

import pytest
import torch

import bondwise as bw
from bondwise.compute.kernels.geometry import Geometry
from bondwise.errors import DataError
from bondwise.layers.entries import columns
from bondwise.layers.networks import network
from bondwise.layers.prepare import measurements
from bondwise.layers.prepare.measurement import Measurement, moving
from bondwise.layers.prepare.measurements import Measurements


def one(rank=2, seconds=1e-6, **changes):
    layer = bw.TensorLinear(bw.lowrank(6, 4, rank))
    made = Measurement.of(layer, 256, "path", (seconds, 2e-6, 3e-6))
    return replace(made, **changes)


def test_what_is_written_is_read(tmp_path):
    entries = [one(1), one(2, rows=1), one(3, size=(4, 4), beside=("columns",))]
    written = Measurements.here(entries).write(tmp_path / "m.json")
    found = Measurements.read(tmp_path / "m.json")
    assert found == written
    assert {entry.key for entry in found.entries} == {entry.key for entry in entries}
    assert found.threads == torch.get_num_threads()
    assert len(found.digest) == 64
    assert [path.name for path in tmp_path.iterdir()] == ["m.json"]  # nothing beside it is left


def test_newer_ones_take_the_place_of_older_and_the_others_stay(tmp_path):
    file = tmp_path / "m.json"
    Measurements.here([one(1), one(2, 1e-6)]).write(file)
    both = Measurements.here([one(2, 5e-6, way="dense"), one(3)]).write(file)
    assert Measurements.read(file) == both
    seconds = {entry.sizes["a"]: (entry.seconds, entry.way) for entry in both.entries}
    assert seconds == {1: (1e-6, "path"), 2: (5e-6, "dense"), 3: (1e-6, "path")}


def test_the_order_of_writing_changes_no_byte(tmp_path):
    entries = [one(rank, rows=rows) for rank in (1, 2, 3) for rows in (1, 256)]
    for name, some in (("a", entries), ("b", entries[::-1])):
        Measurements.here(some).write(tmp_path / name)
    assert Measurements.read(tmp_path / "a").digest == Measurements.read(tmp_path / "b").digest


def test_a_layer_says_what_it_is():
    net = bw.lowrank(6, 4, 2)
    beside = columns(torch.tensor([1]), torch.ones(6, 1), (6, 4))
    layer = bw.TensorLinear.of([network(net, [torch.ones(6, 2), torch.ones(2, 4)]), beside])
    found = Measurement.of(layer.to(torch.bfloat16), 1, "path", (1.0, 1.0, 1.0))
    assert (found.host, found.beside, found.dtype) == ("linear", ("columns",), "bfloat16")
    assert (found.pinned, found.geometry, found.size) == ((None, None), "", ())
    conv = bw.TensorConv2d(bw.tucker2(8, 4, (3, 3), 2), padding=1)
    found = Measurement.of(conv, 8, "stack", (1.0, 1.0, 1.0), (9, 7))
    assert (found.host, found.shape, found.size) == ("convolution 2d", (8, 36), (9, 7))
    assert found.geometry == moving(Geometry.of(torch.nn.Conv2d(4, 8, 3, padding=1)))
    assert found.geometry != moving(Geometry.of(torch.nn.Conv2d(4, 8, 3, padding=1, stride=2)))


def edited(file, **head):
    found = json.loads(file.read_text()) | head
    file.write_text(json.dumps(found))


def spoilt(file, **values):
    found = json.loads(file.read_text())
    found["entries"][0] |= values
    file.write_text(json.dumps(found))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda file: file.unlink(), "cannot be read (No such file or directory)"),
        (lambda file: file.write_text(""), "is no file of measurements (no JSON)"),
        (lambda file: file.write_bytes(b"\xff\xfe\x00"), "is no file of measurements (no JSON)"),
        (lambda file: file.write_text("[1, 2]"), "is no file of measurements;"),
        (lambda file: file.write_text('{"schema": 1}'), "is no file of measurements;"),
        (lambda file: edited(file, schema=2), "are of schema 2, and this version reads 1"),
        (lambda file: edited(file, entries=[]), "are empty"),
        (lambda file: edited(file, entries=None), "cannot be used"),
        (lambda file: edited(file, entries=[{}]), "cannot be used (no 'seconds')"),
        (lambda file: edited(file, threads="two"), "'two' where a whole number"),
        (lambda file: spoilt(file, seconds=float("nan")), "cannot be used (seconds of nan)"),
        (lambda file: spoilt(file, dense_seconds=0), "dense_seconds of 0"),
        (lambda file: spoilt(file, built_seconds=-1.0), "built_seconds of -1"),
        (lambda file: spoilt(file, rows=0), "0 where a whole number of 1 or more"),
        (lambda file: spoilt(file, sizes=[1]), "cannot be used"),
        (lambda file: spoilt(file, colour="red"), "an entry with a 'colour'"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_sentence(tmp_path, spoil, says):
    file = tmp_path / "m.json"
    Measurements.here([one()]).write(file)
    spoil(file)
    with pytest.raises(DataError) as said:
        Measurements.read(file)
    assert says in str(said.value)
    assert str(file) in str(said.value)
    assert "`bondwise bench MODEL --measurements FILE`" in str(said.value)
    assert "\n" not in str(said.value)


def test_a_file_of_another_machine_is_not_written_to(tmp_path, monkeypatch):
    file = tmp_path / "m.json"
    monkeypatch.setattr(measurements, "processor", lambda _="cpu": "Abacus 3")
    Measurements.here([one()]).write(file)
    before = file.read_bytes()
    monkeypatch.undo()
    with pytest.raises(DataError, match=r"are of Abacus 3, torch .* name another file"):
        Measurements.here([one(1)]).write(file)
    assert file.read_bytes() == before


def test_where_nothing_can_be_written_is_one_sentence(tmp_path):
    own = Measurements.here([one()])
    with pytest.raises(DataError, match="there is no such folder"):
        own.write(tmp_path / "gone" / "m.json")
    (tmp_path / "m.json").mkdir()
    with pytest.raises(DataError, match="it cannot be replaced"):
        own.write(tmp_path / "m.json")
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(DataError, match="is no file of measurements"):
        own.write(tmp_path / "note.txt")
    assert (tmp_path / "note.txt").read_text() == "mine"


@pytest.mark.skipif(os.name == "nt", reason="files have no such owner there")
def test_others_may_read_the_file(tmp_path):
    (tmp_path / "plain").write_text("")
    Measurements.here([one()]).write(tmp_path / "m.json")
    modes = [(tmp_path / name).stat().st_mode for name in ("plain", "m.json")]
    assert modes[0] == modes[1]


@pytest.mark.parametrize("changes", [{"processor": "Abacus 3"}, {"threads": 77}])
def test_another_machine_is_warned_of_once_in_one_sentence(changes):
    own = Measurements.here([one()])
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        assert own.compared() is own
        replace(own, **changes).compared()
    (said,) = [str(warning.message) for warning in seen]
    assert str(next(iter(changes.values()))) in said
    assert "\n" not in said
