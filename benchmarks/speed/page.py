"""The section "Layers" of docs/benchmarks.md, from the files of results that there are."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from comparison.page import write_between

from speed import plot
from speed.subjects import DENSE, EINSUM, OURS, PEERS, TLTORCH, TORCHTT
from speed.summary import (
    SLOWER,
    Ask,
    Entry,
    Ratio,
    asks,
    at_most_half,
    bare,
    batches,
    mean,
    memory,
    networks,
    of_kind,
    over,
    over_best,
    over_dense,
    place,
    share,
)

PICTURE = "pictures/benchmarks/layers-{dtype}.svg"
LISTED = 20
ABOUT = f"""Every layer of the grid has random cores and no bias, and is timed beside `nn.Linear`
with the multiplied-out weight and beside each peer that can hold the same cores:

- **{EINSUM}** 3.4: `contract_expression` of the cores and x, its path sought once for each batch;
  in forward also with the cores as constants, so that it keeps what it makes of them alone; the
  better counts;
- **{TLTORCH}** 0.5.0: `FactorizedLinear`, factorized and reconstructed, of MPO, Tucker, CP and low
  rank (CP with one mode a side); its better mode counts;
- **{TORCHTT}** 0.5.0: `LinearLayerTT` and `TT @ x`, of MPO; the better counts.

They take turns in one process on the same threads, after outputs (and gradients of x) were found
to agree; a time is the median of the turns. Forward is that of
layers that `bw.prepare` made ready for the batch, under `no_grad`, with the same layer as built
beside it; forward + backward is that of layers as built, by the plan of fewest multiplications or
by the weight made whole, and gives the gradients of x and of all parameters. Ratios are speeds:
above 1 ours is faster. Means are geometric. The ideal time is dense's times the ratio of
multiplications, ours the least that `bw.plan(.., goal="macs")` finds. Peak memory is what torch's
allocator holds at once in a step of training: parameters, caches, inputs, gradients and whatever
lies between."""


def refresh(folder: Path, page: Path) -> None:
    """Put the results of a folder between the page's markers, and a plot for each beside it."""
    found = [json.loads(file.read_text("utf-8")) for file in sorted(folder.glob("*.json"))]
    found = [result for result in found if result["cells"]]
    for result in found:
        file = page.parent / PICTURE.format(dtype=result["setting"]["dtype"])
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(picture(result), encoding="utf-8")
    write_between(page, "layers", sections(found))


def sections(results: Sequence[dict[str, Any]]) -> str:
    """All tables, in Markdown; float32 first."""
    if not results:
        return ""
    order = sorted(results, key=lambda result: result["setting"]["dtype"] != "float32")
    parts = ["## Layers", ABOUT]
    for result in order:
        parts += _section(result["setting"], result["cells"])
    return "\n\n".join(parts)


def _section(setting: Entry, cells: Sequence[Entry]) -> list[str]:
    forward, training, overhead = (of_kind(cells, k) for k in ("forward", "training", "overhead"))
    dtype = setting["dtype"]
    parts = [f"### Layers in {dtype}", _run(setting, cells)]
    if setting["missing"]:
        parts.append(f"Not installed, and left out: {', '.join(setting['missing'])}.")
    if dtype == "float32":  # what was asked for
        parts.append(_asked(asks(cells)))
    if forward:
        parts += [
            f"![Speed against batch, one line per network]({PICTURE.format(dtype=dtype)})",
            f"Forward: speed over dense, and over the fastest peer, mean over {_weights(forward)}:",
            _table(forward, lambda own: _pair(mean(own, over_dense), mean(own, over_best))),
        ]
    if half := at_most_half(forward):
        parts += [
            "Share of the ideal speed where the least multiplications are at most half, mean:",
            _table(half, lambda own: _number(mean(own, share))),
        ]
    if training:
        parts += [
            f"Forward + backward: the same, mean over {_weights(training)}:",
            _table(training, lambda own: _pair(mean(own, over_dense), mean(own, over_best))),
        ]
    if steps := of_kind(cells, "memory"):
        parts += [
            "Peak memory of a step of training over dense's, mean over the same weights:",
            _table(steps, lambda own: _number(mean(own, memory))),
        ]
    parts += _against_each([("forward", forward), ("forward + backward", training)])
    if overhead:
        parts += [_small(overhead)]
    return parts + _slower(forward, training) + _left_out(cells)


def _run(setting: Entry, cells: Sequence[Entry]) -> str:
    return (
        f"`{setting['command']}`: {len(cells)} cells, threads: {setting['threads']}, "
        f"{setting['repeats']} turns of at least "
        f"{1000 * setting['least']:g} ms, {setting['processor']}, torch {setting['torch']}, "
        f"at commit {setting['commit']}.{_earlier(setting, cells)}"
    )


def _earlier(setting: Entry, cells: Sequence[Entry]) -> str:
    """Which cells earlier runs measured."""
    now = setting["commit"]
    old = Counter((c["commit"], c["kind"]) for c in cells if c.get("commit", now) != now)
    parts = [f"{n} of {kind} at {commit}" for (commit, kind), n in old.items()]
    return f" Cells of earlier runs: {', '.join(parts)}." if parts else ""


def _asked(found: Sequence[Ask]) -> str:
    lines = ["| figure | asked | measured | cells that miss it |", "|---|---|---|---|"]
    for ask in found:
        side = "at least" if ask.at_least else "at most"
        mark = "" if ask.met else " (not met)"
        where = f", {place(ask.values[0][1])}" if ask.worst else ""
        missed = f"{len(ask.missed)} of {len(ask.values)}" if ask.worst else ""
        asked, value = f"{side} {ask.asked:g}", _number(ask.value)
        lines.append(f"| {ask.what} | {asked} | {value}{mark}{where} | {missed} |")
    return "\n".join(lines)


def _table(cells: Sequence[Entry], show: Any) -> str:
    """Networks down, batches across."""
    across = batches(cells)
    head = "| batch |" + "".join(f" {batch} |" for batch in across)
    lines = [head, "|---" * (len(across) + 1) + "|"]
    for name in networks(cells):
        own = [cell for cell in cells if cell["network"] == name]
        row = [show([cell for cell in own if cell["batch"] == batch]) for batch in across]
        lines.append(f"| {name} |" + "".join(f" {shown} |" for shown in row))
    row = [show([cell for cell in cells if cell["batch"] == batch]) for batch in across]
    lines.append("| all |" + "".join(f" {shown} |" for shown in row))
    return "\n".join(lines)


def _against_each(kinds: Sequence[tuple[str, Sequence[Entry]]]) -> list[str]:
    """Dense and the peers, and each mode that a peer has."""
    lines = ["| ours over | " + " | ".join(kind for kind, _ in kinds) + " |"]
    lines.append("|---" * (len(kinds) + 1) + "|")
    for name in (DENSE, *PEERS):
        modes = {
            who: None
            for _, cells in kinds
            for cell in cells
            for who in cell["seconds"]
            if who.startswith(f"{name},")
        }
        rows = [(name if not modes else f"{name}, its best mode", over(name))]
        rows += [(mode, _over_mode(mode)) for mode in modes]
        for label, ratio in rows:
            shown = [_mean_of(cells, ratio) for _, cells in kinds]
            if any(shown):
                lines.append(f"| {label} | " + " | ".join(shown) + " |")
    title = "Mean speed over each, in brackets the number of cells that it has:"
    return [title, "\n".join(lines)] if len(lines) > 2 else []


def _over_mode(mode: str) -> Ratio:
    return lambda c: c["seconds"][mode] / c["seconds"][OURS] if mode in c["seconds"] else None


def _mean_of(cells: Sequence[Entry], ratio: Ratio) -> str:
    count = sum(ratio(cell) is not None for cell in cells)
    return f"{_number(mean(cells, ratio))} ({count})" if count else ""


def _small(cells: Sequence[Entry]) -> str:
    lines = [
        "| 64 x 64, batch 1 | microseconds | over `F.linear` | over `nn.Linear` |",
        "|---|---|---|---|",
    ]
    for cell in cells:
        ours = cell["seconds"][OURS]
        row = (f"{1e6 * ours:.1f}", f"{bare(cell):.2f}", f"{ours / cell['seconds'][DENSE]:.2f}")
        lines.append(f"| {cell['network']} | {' | '.join(row)} |")
    return "\n".join(lines)


def _slower(forward: Sequence[Entry], training: Sequence[Entry]) -> list[str]:
    """Every cell that loses to dense or to a peer, the worst first, as many as can be read."""
    lines: list[tuple[float, str]] = []
    for kind, cells in (("forward", forward), ("forward + backward", training)):
        for against, ratio in (("dense", over_dense), ("the fastest peer", over_best)):
            found = [(value, c) for c in cells if (value := ratio(c)) is not None]
            lines += [
                (value, f"- {value:.2f} of {against}: {kind}, {place(cell)}")
                for value, cell in found
                if value < SLOWER
            ]
    if not lines:
        return []
    shown = [text for _, text in sorted(lines)[:LISTED]]
    more = f"; the worst {LISTED}" if len(lines) > LISTED else ""
    return [f"Below {SLOWER:g} times another's speed ({len(lines)}{more}):", "\n".join(shown)]


def _left_out(cells: Sequence[Entry]) -> list[str]:
    """Peers that crashed or disagreed, and in how many cells."""
    reasons: dict[tuple[str, str], list[Entry]] = {}
    for cell in cells:
        for name, why in cell.get("left_out", {}).items():
            reasons.setdefault((name, why.split(":")[0].split(" by ")[0]), []).append(cell)
    lines = [
        f"- {name}, {why}: {len(own)} cells, the first {place(own[0])}"
        for (name, why), own in reasons.items()
    ]
    return ["Left out of cells:", "\n".join(lines)] if lines else []


def picture(result: Entry) -> str:
    """Forward, speed over dense and over the fastest peer against batch."""
    cells = of_kind(result["cells"], "forward")
    panels = {
        title: {
            name: [
                (batch, value)
                for batch in batches(cells)
                if (value := mean(_at(cells, name, batch), ratio)) is not None
            ]
            for name in networks(cells)
        }
        for title, ratio in (
            ("speed over dense", over_dense),
            ("speed over the fastest peer", over_best),
        )
    }
    return plot.svg(panels, f"Layers in {result['setting']['dtype']}: speed against batch")


def _at(cells: Sequence[Entry], name: str, batch: int) -> list[Entry]:
    return [cell for cell in cells if (cell["network"], cell["batch"]) == (name, batch)]


def _weights(cells: Sequence[Entry]) -> str:
    found = dict.fromkeys(tuple(cell["weight"]) for cell in cells)
    return ", ".join(f"{out} x {inp}" for out, inp in found)


def _pair(first: float | None, second: float | None) -> str:
    return f"{_number(first)}, {_number(second)}" if second is not None else _number(first)


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.2f}" if value < 10 else f"{value:,.0f}"
