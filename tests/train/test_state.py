"""A run on disk: whole or not at all, and only gone on with where it is the same run."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from bondwise.errors import CheckpointError
from bondwise.flow import files
from bondwise.train import state
from bondwise.train.state import RunFolder, Store


def adam(net, fused=True):
    """Three steps."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1, fused=fused)
    for _ in range(3):
        optimizer.zero_grad()
        net(torch.ones(2, 3, dtype=net.weight.dtype)).square().sum().backward()
        optimizer.step()
    return optimizer


def made(seed=0, dtype=torch.float32):
    torch.manual_seed(seed)
    return nn.Linear(3, 4).to(dtype)


def store(folder, net):
    return Store(folder, dict(net.named_parameters()))


def names(folder):
    return sorted(path.name for path in Path(folder).iterdir())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_kept_comes_back_to_the_bit(tmp_path, dtype):
    net = made(dtype=dtype)
    optimizer, own = adam(net, fused=False), store(tmp_path, net)
    own.keep(2)
    own.save(3, {"a": [1, None]}, optimizer)
    other = made(1, dtype)
    fresh = torch.optim.AdamW(other.parameters(), lr=0.1)
    assert store(tmp_path / "none", other).load(fresh) is None
    assert store(tmp_path, other).load(fresh) == {"a": [1, None], "done": False}
    for p, q in zip(net.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)
        for kind, value in optimizer.state[p].items():
            assert torch.equal(value, fresh.state[q][kind])
            assert value.dtype == fresh.state[q][kind].dtype


def test_a_fused_optimizer_counts_its_steps_where_it_computes(tmp_path):
    net = made()
    store(tmp_path, net).save(3, {}, adam(net))
    other = made().to("meta")  # any device but the processor
    fresh = torch.optim.AdamW(other.parameters())
    for fused, where in ((False, "cpu"), (True, "meta")):
        fresh.param_groups[0]["fused"] = fused
        store(tmp_path, other).load(fresh)
        assert {fresh.state[p]["step"].device.type for p in other.parameters()} == {where}


def test_parameters_of_any_stride_come_back(tmp_path):
    net = nn.Module()
    net.weight = nn.Parameter(torch.randn(4, 3).T)
    wanted, own = net.weight.detach().clone(), store(tmp_path, net)
    own.keep(0)
    nn.init.zeros_(net.weight)
    own.restore()
    assert torch.equal(net.weight, wanted)


def test_only_the_last_state_and_the_best_that_it_names_stay(tmp_path):
    net = made()
    optimizer, own = adam(net), store(tmp_path, net)
    own.keep(0)
    own.save(1, {}, optimizer)
    own.keep(2)
    kept = [f"{name}.safetensors" for name in ("at-00000001", "best-00000000", "best-00000002")]
    assert names(tmp_path) == [*kept, "run.json"]
    own.keep(3)
    own.save(4, {}, optimizer)
    wanted = ["at-00000004.safetensors", "best-00000003.safetensors", "run.json"]
    assert names(tmp_path) == wanted
    own.finish(4, {})
    assert names(tmp_path) == wanted[1:]


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), PermissionError(13, "no")]
)
def test_a_disk_that_fills_leaves_the_state_before(tmp_path, monkeypatch, error):
    net = made()
    optimizer, own = adam(net), store(tmp_path, net)
    own.keep(0)
    own.save(1, {"at": 1}, optimizer)
    before, wanted = names(tmp_path), net.weight.detach().clone()

    def full(_tensors, path, **named):
        Path(path).write_bytes(b"half")
        raise error

    def full_later(*_, **named):
        raise error

    adam(net)
    said = f"cannot be written .*{error.strerror}.*kept before is still there"
    save = partial(own.save, 2, {"at": 2}, optimizer)
    for place, name, spoilt, act in (
        (files, "save_file", full, save),
        (files, "save_file", full, lambda: own.keep(2)),
        (Path, "write_text", full_later, save),
    ):
        assert names(tmp_path) == before
        with monkeypatch.context() as patch:
            patch.setattr(place, name, spoilt)
            with pytest.raises(CheckpointError, match=said):
                act()
    other = made(1)
    assert store(tmp_path, other).load(adam(other)) == {"at": 1, "done": False}
    assert torch.equal(other.weight, wanted)


def test_files_that_cannot_be_read_are_one_sentence(tmp_path):
    net = made()
    own, optimizer = store(tmp_path, net), adam(net)
    own.keep(0)
    own.save(1, {}, optimizer)
    (tmp_path / "at-00000001.safetensors").write_bytes(b"cut")
    with pytest.raises(CheckpointError, match=r"at-00000001.safetensors cannot be read"):
        store(tmp_path, net).load(optimizer)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"run.json cannot be read"):
        store(tmp_path, net).load(optimizer)


def test_what_was_decided_stays(tmp_path):
    place = RunFolder(tmp_path / "a" / "b", {"rate": 0.1})
    assert place.decided("steps") is None
    place.decide(steps=40)
    again = RunFolder(tmp_path / "a" / "b", {"rate": 0.1})
    again.decide(spent=1.5)
    assert (again.decided("steps"), place.decided("spent")) == (40, 1.5)


def test_a_state_of_another_version_is_named_and_not_gone_on_with(tmp_path):
    RunFolder(tmp_path, {"rate": 0.1})
    about = json.loads((tmp_path / "heal.json").read_text())
    (tmp_path / "heal.json").write_text(json.dumps(about | {"schema": 1}))
    with pytest.raises(CheckpointError, match=r"schema 1, .* goes on from 4; .*resume=False"):
        RunFolder(tmp_path, {"rate": 0.1})
    RunFolder(tmp_path, {"rate": 0.1}, resume=False)


def test_another_run_is_named_and_not_gone_on_with(tmp_path):
    RunFolder(tmp_path, {"rate": 0.1, "seed": 0}).decide(steps=40)
    said = r"another healing \(rate 0.1, not 0.2\).*resume=False"
    with pytest.raises(CheckpointError, match=said):
        RunFolder(tmp_path, {"rate": 0.2, "seed": 0})
    (tmp_path / "steps").mkdir()
    fresh = RunFolder(tmp_path, {"rate": 0.2, "seed": 0}, resume=False)
    assert fresh.decided("steps") is None
    assert names(tmp_path) == [state.ABOUT]


def test_a_folder_that_is_not_ours_is_left_alone(tmp_path):
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "dear.txt").write_text("x")
    for resume in (True, False):
        with pytest.raises(CheckpointError, match="holds no state of a healing"):
            RunFolder(tmp_path / "letters", {}, resume)
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match="holds no state of a healing"):
        RunFolder(tmp_path / "file", {})
    assert names(tmp_path / "letters") == ["dear.txt"]


@pytest.mark.parametrize(("text", "why"), [("[]", r" \(it holds a list\)"), ("[1", "")])
def test_a_state_that_is_no_table_is_one_sentence(tmp_path, text, why):
    (tmp_path / state.ABOUT).write_text(text)
    with pytest.raises(CheckpointError, match=f"cannot be read{why}"):
        RunFolder(tmp_path, {})
