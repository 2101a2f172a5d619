"""The benchmark's methods do what they are named, and its page says what its cells say."""

import json
import re
from pathlib import Path

import formats
import numpy as np
import pytest
import torch
from comparison import cells, methods, page, plot
from comparison.subjects import SUBJECTS, Draw, Remembered, Subject, language_judge

import bondwise as bw
import tiny
from bondwise.evaluate.language import compare
from bondwise.fit.metric import Metric

CALIBRATION = methods.Calibration(tiny.text(), tiny.tokenizer(), windows=8, length=32)
ELSEWHERE = [tiny.text(seed=1)]


def random(out: int, inp: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(out, inp, generator=torch.Generator().manual_seed(seed))


def metric(size: int, tokens: int = 400) -> Metric:
    inputs = random(tokens, size, seed=1) * torch.linspace(0.1, 3, size)
    return Metric(inputs.T @ inputs, tokens, 0.5)


@pytest.mark.parametrize("method", [methods.plain_svd, methods.svd_llm])
def test_svd_is_of_the_weight_or_of_it_times_a_cholesky_factor(method) -> None:
    weight, given = random(24, 40), metric(40)
    found = method(weight, given, 0.5)
    rank, factor = int(0.5 * 24 * 40 / 64), np.eye(40)
    if method is methods.svd_llm:
        factor = np.linalg.cholesky(given.second_moment.double().numpy())  # no shrinkage
    left, values, right = np.linalg.svd(weight.double().numpy() @ factor)
    expected = (left[:, :rank] * values[:rank]) @ right[:rank] @ np.linalg.inv(factor)
    assert found.numbers == rank * (24 + 40)
    atol = 1e-5 if method is methods.plain_svd else 1e-4
    np.testing.assert_allclose(found.weight.numpy(), expected, atol=atol)


def test_without_the_gauge_a_larger_rank_fits_the_same_budget() -> None:
    weight, given = random(24, 40), metric(40)
    found = methods.gauge_free_svd(weight, given, 0.5)
    rank = int(np.linalg.matrix_rank(found.weight.numpy(), tol=1e-4))
    assert rank > int(0.5 * 24 * 40 / 64)
    assert rank * (24 + 40 - rank) < found.numbers <= 0.5 * 24 * 40


@pytest.mark.parametrize("keep", [0.9, 0.5])
def test_a_data_free_train_has_the_ranks_it_is_charged_for(keep: float) -> None:
    weight = random(24, 60)
    found = methods.train_svd(weight, metric(60), keep)
    assert 0.8 * keep * weight.numel() < found.numbers <= keep * weight.numel()
    # rows 2 x 3 x 4 and columns 3 x 4 x 5, by numpy alone
    rows, cols = (methods.balanced(size, 3) for size in weight.shape)
    sites = [r * c for r, c in zip(rows, cols, strict=True)]
    values = found.weight.numpy().reshape(*rows, *cols).transpose(0, 3, 1, 4, 2, 5)
    first = int(np.linalg.matrix_rank(values.reshape(sites[0], -1), tol=1e-5))
    last = int(np.linalg.matrix_rank(values.reshape(-1, sites[2]), tol=1e-5))
    assert found.numbers == sites[0] * first + first * sites[1] * last + last * sites[2]


def test_wanda_keeps_the_largest_products_of_every_row() -> None:
    weight, given = random(6, 10), metric(10)
    found = methods.wanda(weight, given, 0.6)
    for row, kept in zip(weight, found.weight, strict=True):
        score = row.abs() * given.second_moment.diagonal().sqrt()
        stay = set(score.argsort(descending=True)[:6].tolist())
        assert set(kept.nonzero().flatten().tolist()) == stay
    assert (found.numbers, found.bits) == (36, 36 * 16 + 60)


@pytest.mark.parametrize("bits", [8, 4])
def test_rounding_is_within_half_a_step_of_its_group(bits: int) -> None:
    weight = random(4, 96)
    found = methods.rounded(bits)(weight, metric(96), 1.0)
    step = weight.reshape(4, 3, 32).abs().amax(dim=-1, keepdim=True) / (2 ** (bits - 1) - 1)
    error = (found.weight - weight).reshape(4, 3, 32).abs()
    assert (error <= 0.5 * step * 1.01 + 0.01 * weight.reshape(4, 3, 32).abs()).all()
    assert found.bits == weight.numel() * bits + 12 * 16


def test_a_remembered_teacher_is_the_teacher(tmp_path: Path) -> None:
    teacher, shown = tiny.llama(), tiny.tokens(3, 16)
    for _ in range(2):  # written, then read
        again = Remembered(teacher, shown, tmp_path / "states.pt").eval()
        for ids in shown.split(1):
            assert torch.equal(again(ids).logits, teacher(ids).logits)
    assert compare(again, teacher, shown).ratio == 1.0


@pytest.fixture
def subject(tmp_path: Path) -> Subject:
    model = tiny.llama()
    texts = {"in domain": ELSEWHERE, "out of domain": ELSEWHERE}
    judge = language_judge(model, CALIBRATION.tokenizer, texts, Draw(2, 32), tmp_path / "states")
    return Subject(model, CALIBRATION, judge)


SMALL = ("svd", "tt-svd", "svd-llm", "gauge-free", "lowrank", "wanda")


def test_cells_become_a_page_and_a_plot(subject: Subject, tmp_path: Path) -> None:
    before = {name: p.clone() for name, p in subject.model.named_parameters()}
    setting = cells.Setting(tmp_path / "results", Draw(2, 32), threads=1)
    for method in SMALL:
        cell = cells.Cell("smollm2", method, 0.6)
        entry = cells.measure(cell, subject, setting)
        assert entry["status"] == "done"
        assert 0.4 < entry["kept"] <= 0.6
        cells.write(setting.folder / cell.name, entry)
        assert cells.finished(setting.folder / cell.name, limit=1e9)
    assert all(torch.equal(p, before[name]) for name, p in subject.model.named_parameters())
    target = tmp_path / "docs" / "benchmarks.md"
    target.parent.mkdir()
    target.write_text("above\n<!-- quality -->\nold\n<!-- end of quality -->\nbelow\n")
    page.refresh(setting.folder, target)
    text = target.read_text()
    assert text.startswith("above\n")
    assert text.endswith("below\n")
    assert "old" not in text
    for entry in cells.read(setting.folder):
        shown = page._ratio(entry["texts"]["in domain"])
        label = re.escape(methods.METHODS[entry["method"]].label)
        assert re.search(rf"\| {label} \| {re.escape(shown)} \|", text)
    assert "MiniLM" not in text
    drawn = (target.parent / page.PLOT).read_text()
    assert drawn.count("<circle") == 2 * len(SMALL)


def test_a_cell_that_had_no_time_runs_again_only_with_more(tmp_path: Path) -> None:
    late, wrong = tmp_path / "late.json", tmp_path / "wrong.json"
    cells.write(late, {"status": "did not finish", "limit": 60})
    cells.write(wrong, {"status": "not possible", "why": "keep is out of reach"})
    assert cells.finished(late, 60)
    assert not cells.finished(late, 61)
    assert cells.finished(wrong, 1e9)
    assert not cells.finished(tmp_path / "none.json", 1)


def test_what_cannot_be_is_a_result(subject: Subject, tmp_path: Path) -> None:
    cell = cells.Cell("smollm2", "lowrank", 0.0001)
    entry = cells.measure(cell, subject, cells.Setting(tmp_path, Draw(2, 32)))
    assert entry["status"] == "not possible"
    assert "keep=0.0001" in page.sections([entry])


def test_wanted_cells_round_only_what_was_never_rounded() -> None:
    found = cells.wanted(SUBJECTS, ["svd", "int4"], [0.8, 0.5])
    svds = {f"{model}-svd-{keep}.json" for model in ("smollm2", "minilm") for keep in (0.8, 0.5)}
    assert {cell.name for cell in found} == svds | {"minilm-int4-1.json"}


def test_the_encoders_tables_have_rounding_apart() -> None:
    rated = {name: {"dense": 0.7, "correlation": 0.65} for name in page.RATINGS}
    common = {"model": "minilm", "status": "done", "similarity": rated, "threads": 1, "windows": 64,
              "length": 512, "torch": "2", "commit": "a", "seconds": 1.0, "kept": 0.6,
              "peak_bytes": 2**30, "dense_bytes": 2e6}  # fmt: skip
    pruned = common | {"method": "wanda", "keep": 0.6, "bytes": 1.325e6}
    rounded = common | {"method": "int4", "keep": 1.0, "bytes": 0.5625e6}
    text = page.sections([pruned, rounded])
    assert "| Wanda pruning, masks not counted | 0.650 (-0.050) |" in text
    assert "| 4-bit rounding, groups of 32 | 0.6 | 0.650 (-0.050) |" in text
    assert "| 0.600 (0.662) |" in text
    assert text.count("4-bit") == 1


def test_the_plot_keeps_what_is_off_the_axis_at_its_edge() -> None:
    drawn = plot.svg({"a": {"x": [(0.9, 1.1), (0.5, 400.0)]}}, "t")
    heights = [float(y) for y in re.findall(r'cy="([\d.]+)"', drawn)]
    assert heights[1] == plot.TOP < heights[0] < plot.TOP + plot.HEIGHT
    assert drawn.count("fill:var(--panel,#fff)") == 1 + 1  # the panel itself


def test_formats_meet_their_budget_and_report_the_output_error() -> None:
    weight, given = random(48, 96), metric(96)
    C, W = given.second_moment.double().numpy(), weight.double().numpy()
    for name, build in formats.FORMATS.items():
        net = formats.at_keep(build, 48, 96, 0.6)
        assert net is not None, name
        assert net.shape == (48, 96), name
        assert 0.4 * weight.numel() < formats.numbers(net) <= 0.6 * weight.numel(), name
        found = formats.measure(weight, net, given, given)["weight"]
        fit = bw.fit(weight, net)
        lost = (weight - bw.dense(fit.network, fit.cores)).double().numpy()
        expected = np.sqrt(np.trace(lost @ C @ lost.T) / np.trace(W @ C @ W.T))
        assert found["error"] == pytest.approx(expected, rel=1e-6), name


def test_formats_page_compares_with_the_matrix() -> None:
    def entry(name: str, block: int, error: float) -> dict:
        found = {
            key: {"error": e, "seconds": 1.0} for key, e in (("metric", error), ("weight", 0.5))
        }
        return found | {"format": name, "kind": "v_proj", "block": block, "keep": 0.6}

    mpo = "MPO, 2 sites"
    found = [entry("low rank", 0, 0.2), entry("low rank", 9, 0.4), entry(mpo, 0, 0.1)]
    found += [entry(mpo, 9, 0.44)]
    text = formats.page(json.loads(json.dumps(found)))
    assert "| v_proj | 0.300 | 0.800 (1 of 2) |" in text  # 0.5 and 1.1
    assert "| all | 0.600 | 0.880 |" in text  # 0.4, 0.8, 0.2, 0.88
    assert formats.page([]) == ""
