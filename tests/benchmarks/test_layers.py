"""The benchmark of layers times what it says it times, and its page says what its cells say."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import tensorly
import torch
from speed import clock, memory, page, summary
from speed.grid import FORMATS, KINDS, cases, random_cores
from speed.measure import Setting, _run, measure
from speed.subjects import (
    BUILT,
    CACHED,
    DENSE,
    EINSUM,
    OURS,
    PACKAGES,
    TLTORCH,
    TORCHTT,
    makers,
    missing,
    peer,
)

import bondwise as bw
import layers

MARKED = "# Benchmarks\n\n<!-- layers -->\n<!-- end of layers -->\n\nafter\n"


def cell(kind: str = "forward", batch: int = 256, macs: int = 50, **seconds: float) -> dict:
    named = {"kind": kind, "weight": [8, 8], "network": "low rank, 1/8", "cores": 2}
    counts = {"batch": batch, "macs": macs, "dense_macs": 100, "bonds": [2, 2]}
    return named | counts | {"seconds": seconds, "left_out": {}}


def test_a_run_without_peers_makes_results_and_a_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    for name, (_, package) in list(PACKAGES.items()):
        monkeypatch.setitem(PACKAGES, name, ("no_such_package", package))
    peer.cache_clear()
    target, results = tmp_path / "benchmarks.md", tmp_path / "results"
    target.write_text(MARKED, encoding="utf-8")
    flags = ["--weights", "24x16", "16x24", "--batches", "1", "3", "--repeats", "1"]
    flags += ["--least", "1e-6", "--results", str(results), "--target", str(target)]
    flags += ["--formats", "low rank, 1/3", "MPO, 2 sites, rank 4", "tree, 4 sites, rank 16"]
    layers.main(flags)
    peer.cache_clear()
    found = json.loads((results / "float32.json").read_text("utf-8"))
    assert found["setting"]["missing"] == [TLTORCH, TORCHTT]
    assert "pip install -c constraints.txt tensorly-torch==0.5.0 torchTT" in capsys.readouterr().out
    counts = {kind: len(summary.of_kind(found["cells"], kind)) for kind in KINDS}
    assert counts == {"forward": 12, "training": 12, "overhead": 8, "memory": 12}
    for own in summary.of_kind(found["cells"], "forward"):
        assert set(own["seconds"]) == {OURS, BUILT, DENSE, EINSUM, CACHED}
        assert own["left_out"] == {}
        assert own["dense_macs"] == own["batch"] * 24 * 16
    text = target.read_text("utf-8")
    assert text.endswith("<!-- end of layers -->\n\nafter\n")
    assert "Not installed, and left out: TensorLy-Torch, torchTT." in text
    assert "| tree, 4 sites, rank 16 |" in text
    assert (tmp_path / "pictures/benchmarks/layers-float32.svg").read_text("utf-8").count("<g ") > 3
    layers.main([*flags, "--page"])
    assert target.read_text("utf-8") == text


def test_a_page_without_marks_fails_before_the_run(tmp_path: Path) -> None:
    target = tmp_path / "benchmarks.md"
    target.write_text("# no marks", encoding="utf-8")
    with pytest.raises(ValueError, match="end of layers"):
        layers.main(["--results", str(tmp_path / "results"), "--target", str(target)])
    assert not (tmp_path / "results").exists()


@pytest.fixture
def backend() -> Iterator[None]:
    """TensorLy-Torch sets TensorLy's backend for the whole process."""
    before = tensorly.get_backend()
    tensorly.set_backend("pytorch")
    yield
    tensorly.set_backend(before)


@pytest.mark.parametrize("kind", ["forward", "training"])
def test_all_subjects_hold_the_same_cores(kind: str, backend: None) -> None:
    absent = missing()  # `make bench-layers` installs the peers; without them the rest is compared
    for case in cases([(48, 36)], list(FORMATS), [3], [kind]):
        (found,) = measure(case, Setting(torch.float64, repeats=1, least=1e-6))
        expected = {OURS, DENSE, EINSUM} | ({BUILT, CACHED} if kind == "forward" else set())
        if TLTORCH not in absent and case.family in ("mpo", "lowrank", "tucker", "cp"):
            expected |= {f"{TLTORCH}, factorized", f"{TLTORCH}, reconstructed"}
        if TORCHTT not in absent and case.family == "mpo":
            expected |= {f"{TORCHTT}, layer", f"{TORCHTT}, TT @ x"}
        assert found["left_out"] == {}, case
        assert set(found["seconds"]) == expected, case


@pytest.mark.parametrize("error", ["crash", "wrong"])
def test_a_peer_that_crashes_or_is_wrong_is_named_and_left_out(
    error: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(net: bw.Network, cores: list[torch.Tensor], batch: int, **_: bool) -> object:
        if error == "crash":
            raise RuntimeError("no memory\nat all")
        return expression(net, [2 * core for core in cores], batch)

    expression = makers.__globals__["expression"]
    monkeypatch.setattr("speed.subjects.expression", broken)
    (case,) = cases([(8, 6)], ["low rank, 1/3"], [2], ["forward"])
    (found,) = measure(case, Setting(repeats=1, least=1e-6, peers=(EINSUM,)))
    assert set(found["seconds"]) == {OURS, BUILT, DENSE}
    said = {"crash": "RuntimeError: no memory", "wrong": "off by 3.0e+00"}[error]
    assert found["left_out"] == {EINSUM: said, CACHED: said}


def test_a_training_run_gives_the_gradients_of_x_and_of_every_core() -> None:
    (case,) = cases([(8, 6)], ["MPO, 2 sites, rank 4"], [2], ["training"])
    cores = random_cores(case.network, torch.float64)
    x, pull = torch.randn(2, 6, dtype=torch.float64), torch.randn(2, 8, dtype=torch.float64)
    for name in (OURS, DENSE, EINSUM):
        subject = makers(case, cores, 2, (EINSUM,))[name]()
        grads = _run(subject, x, pull, train=True)()
        wanted = [x.shape] + [p.shape for p in subject.parameters]
        assert [grad.shape for grad in grads] == wanted
        torch.testing.assert_close(grads[0], pull @ bw.dense(case.network, cores))


def test_peak_memory_counts_what_dense_holds() -> None:
    out, inp, batch = 96, 64, 128
    (case,) = cases([(out, inp)], ["low rank, 1/8"], [batch], ["memory"])
    (found,) = measure(case, Setting())
    # W and its gradient; x, y and theirs
    assert found["peak_bytes"][DENSE] == 4 * (2 * out * inp + 2 * batch * (inp + out))
    assert found["peak_bytes"][OURS] > 4 * 2 * batch * (inp + out)
    held = memory.peak(lambda: Cached(inp), batch, inp, torch.float32)
    assert held >= 4 * (1000 + 3 * batch * inp)


class Cached(torch.nn.Module):
    """A layer that keeps something between steps."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(size))
        self.kept = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.kept is None:
            self.kept = torch.zeros(1000)
        return x * self.weight


def test_the_clock_counts_turns_and_spares_the_slow() -> None:
    calls = {"a": 0, "b": 0, "slow": 0}

    def count(name: str, seconds: float) -> None:
        calls[name] += 1
        clock.time.sleep(seconds)

    runs = {name: lambda name=name: count(name, 0.001) for name in ("a", "b")}
    runs["slow"] = lambda: count("slow", 0.05)
    times = clock.race(runs, repeats=3, least=1e-4, patience=0.02)
    assert [len(times[name]) for name in runs] == [3, 3, 1]
    assert calls == {"a": 4, "b": 4, "slow": 1}


def test_figures_are_ratios_of_the_cells_that_have_them() -> None:
    slow = cell(ours=2.0, dense=1.0, opt_einsum=4.0) | {"network": "MPO, 2 sites, rank 4"}
    fast = cell(ours=1.0, dense=4.0, opt_einsum=2.0)
    fast["seconds"][f"{TLTORCH}, factorized"] = 9.0
    fast["seconds"][f"{TLTORCH}, reconstructed"] = 8.0
    many = cell(batch=16, macs=10, ours=1.0, dense=1.0, opt_einsum=3.0)
    step = {"peak_bytes": {OURS: 3, DENSE: 2}} | cell("memory")
    bare = cell("overhead", ours=4.0, dense=2.0) | {"seconds": {OURS: 4.0, "F.linear": 1.0}}
    found = {ask.what: ask for ask in summary.asks([slow, fast, many, step, bare])}
    dense, peers = (
        found[f"forward, against {name}, worst cell"] for name in ("dense", "the fastest peer")
    )
    assert (dense.value, dense.met, len(dense.missed)) == (0.5, False, 1)
    assert (peers.value, peers.met) == (2.0, True)  # opt_einsum, not TensorLy-Torch's 8
    mean = found["forward, against the best peer, mean, networks of two and more bonds"]
    assert mean.value == pytest.approx((2 * 2 * 3) ** (1 / 3))
    ideal = found["share of the ideal, two cores, worst cell"]
    assert [value for value, _ in ideal.values] == [0.25, 2.0]  # not at batch 16
    most = found["peak memory of training over dense's, worst cell"]
    assert (most.value, most.met, len(most.missed)) == (1.5, False, 1)
    assert not found["64 x 64 at batch 1, over `F.linear`, worst network"].met
    assert "forward + backward, against the best peer, mean" not in found


def test_the_page_lists_what_is_slower_and_who_is_left_out() -> None:
    lost = cell(ours=2.0, dense=1.0, opt_einsum=2.1)
    lost["left_out"] = {f"{TORCHTT}, layer": "RuntimeError: why"}
    setting = {"dtype": "float32", "threads": 1, "repeats": 3, "least": 0.02, "missing": []}
    setting |= {
        "command": "benchmarks/layers.py",
        "torch": "2",
        "commit": "c",
        "processor": "P (AVX2)",
    }
    text = page.sections([{"setting": setting, "cells": [lost]}])
    assert "- 0.50 of dense: forward, low rank, 1/8, 8 x 8, batch 256" in text
    assert "- torchTT, layer, RuntimeError: 1 cells" in text
    assert "| low rank, 1/8 | 0.50, 1.05 |" in text
    assert "P (AVX2), torch 2" in text
    assert "| 0.50 (not met), low rank, 1/8, 8 x 8, batch 256 | 1 of 1 |" in text
    assert page.sections([]) == ""


def test_a_run_leaves_the_cells_that_it_does_not_measure(tmp_path: Path) -> None:
    file = tmp_path / "float32.json"
    old, again = cell(batch=1, ours=1.0), cell(batch=2, ours=1.0)
    layers.write(file, {"setting": {"commit": "first"}, "cells": [old, again]})
    assert layers.others(file, [cell(batch=2, ours=3.0)]) == [old | {"commit": "first"}]
    assert layers.others(tmp_path / "none.json", [again]) == []
    setting = {"commit": "second"}
    assert page._earlier(setting, [old | {"commit": "first"}, again]) == (
        " Cells of earlier runs: 1 of forward at first."
    )


def test_networks_of_the_grid_are_of_their_weight_and_outputs_about_as_large_as_inputs() -> None:
    for shape in [(768, 768), (3072, 768), (4096, 4096)]:
        for label, format_ in FORMATS.items():
            net = format_.build(*shape)
            assert net.shape == shape, label
            assert net.parameters < shape[0] * shape[1], (label, shape)
    for case in cases([(48, 64)], batches=[1], kinds=["forward"]):
        W = bw.dense(case.network, random_cores(case.network, torch.float32))
        assert W.norm().item() == pytest.approx(48**0.5, rel=1e-3)


@pytest.mark.parametrize("batch", [16, 128, 1024])
def test_a_layer_trains_in_no_more_memory_than_dense(batch: int) -> None:
    dense = memory.peak(lambda: torch.nn.Linear(192, 192, bias=False), batch, 192, torch.float32)
    for label, own in FORMATS.items():
        net = own.build(192, 192)
        if 3 * net.parameters > 2 * 192 * 192:
            continue  # with the gradients of as much, nothing is left to make
        ours = memory.peak(lambda net=net: bw.TensorLinear(net), batch, 192, torch.float32)
        assert ours <= dense, label
