"""The page docs/benchmarks.md: tables and a plot of the cells that there are, and no others."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from comparison import plot
from comparison.cells import read
from comparison.methods import METHODS, REFERENCES

DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "benchmarks.md"
PLOT = "pictures/benchmarks/quality.svg"  # a folder below: the pictures beside are of networks
TEXTS = ("in domain", "out of domain")
RATINGS = ("Lee", "WordSim", "SimLex")

Entry = dict[str, Any]
Show = Callable[[Entry], str]


def refresh(folder: Path, page: Path = PAGE) -> None:
    """Put the results of a folder between the page's markers, and the plot beside it."""
    found = read(folder)
    write_between(page, "quality", sections(found))
    drawn = picture([entry for entry in found if entry["model"] == "smollm2"])
    if drawn:
        file = page.parent / PLOT
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(drawn, encoding="utf-8")


def write_between(page: Path, name: str, text: str) -> None:
    """Replace what stands between ``<!-- name -->`` and ``<!-- end of name -->``."""
    start, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    before, _, rest = page.read_text("utf-8").partition(start)
    _, marked, after = rest.partition(end)
    if not marked:
        raise ValueError(f"{page} has no lines {start} and {end}; write them where tables belong")
    body = f"\n{text.strip()}\n" if text.strip() else ""
    page.write_text(f"{before}{start}\n{body}{end}{after}", encoding="utf-8")


def sections(found: Sequence[Entry]) -> str:
    """All tables, in Markdown."""
    parts: list[str] = []
    for model, make in (("smollm2", _language), ("minilm", _encoder)):
        own = [entry for entry in found if entry["model"] == model]
        if any(entry["status"] == "done" for entry in own):
            parts += make(own)
        parts += _without_numbers(own)
    return "\n\n".join(parts)


def picture(found: Sequence[Entry]) -> str:
    """The plot, or nothing where no cell has numbers."""
    done = [entry for entry in found if entry["status"] == "done"]
    panels = {
        f"{text}: perplexity over dense": {
            METHODS[name].label: [
                (entry["keep"], entry["texts"][text]["ratio"])
                for entry in done
                if entry["method"] == name
            ]
            for name in METHODS
            if any(entry["method"] == name for entry in done)
        }
        for text in TEXTS
    }
    title = "SmolLM2-135M: perplexity over dense against the fraction of numbers kept"
    bold, dashed = (
        [METHODS[name].label for name in names] for names in (("fast", "best"), REFERENCES)
    )
    return plot.svg(panels, title, bold, dashed) if done else ""


def _language(own: Sequence[Entry]) -> list[str]:
    done = [entry for entry in own if entry["status"] == "done"]
    first = done[0]
    about = (
        f"Perplexity over the dense model's, on {first['windows']} windows of {first['length']} "
        "tokens, with a 95 % interval (bootstrap over windows, both models' together). "
        f"{_run(done)}"
    )
    parts = [
        "## SmolLM2-135M",
        about,
        f"![Perplexity over dense against keep, one line per method]({PLOT})",
        f"Above {plot.MOST:g} a point is drawn hollow, at the edge.",
    ]
    for text in TEXTS:
        parts += [f"### {text.capitalize()}", f"Dense perplexity {_dense(first, text)}."]
        parts += [matrix(done, lambda entry, text=text: _ratio(entry["texts"][text]))]
        parts += [
            "Nats per token from the dense model (KL), and how often both put the same first:"
        ]
        parts += [matrix(done, lambda entry, text=text: _distance(entry["texts"][text]))]
    return [*parts, "### What it stores and takes", *_costs(done)]


def _encoder(own: Sequence[Entry]) -> list[str]:
    done = [entry for entry in own if entry["status"] == "done"]
    about = (
        "Correlation of cosine similarity with people's ratings: Lee (Pearson, 50 news texts), "
        f"WordSim-353 and SimLex-999 (Spearman, pairs of words). {_run(done)}"
    )
    parts = ["## all-MiniLM-L6-v2", about]
    for name in RATINGS:
        parts += [f"### {name}", f"Dense {done[0]['similarity'][name]['dense']:.3f}."]
        parts += [matrix(done, lambda entry, name=name: _correlation(entry, name))]
    parts += [f"### Bytes of the linear weights, in MB (dense {_mb(done[0]['dense_bytes'])})"]
    parts += ["Numbers in 16 bits; masks, pivots and scales included."]
    parts += [matrix(done, lambda entry: _mb(entry["bytes"]))]
    parts += _own_size(done)
    return [*parts, "### What it stores and takes", *_costs(done)]


def _run(done: Sequence[Entry]) -> str:
    model, first = done[0]["model"], done[0]
    flags = f"--models {model}"
    if (first["windows"], first["length"]) != (64, 512):
        flags += f" --windows {first['windows']} --length {first['length']}"
    if {entry["threads"] for entry in done} != {2}:
        flags += f" --threads {first['threads']}"
    commits = ", ".join(sorted({entry["commit"] for entry in done}))
    threads = ", ".join(sorted({str(entry["threads"]) for entry in done}))
    return (
        f"`python benchmarks/quality.py {flags}`: {len(done)} cells, threads: {threads}, torch "
        f"{first['torch']}, at commit {commits}."
    )


def _costs(done: Sequence[Entry]) -> list[str]:
    return [
        "Numbers stored, as a fraction; in brackets with the bits of masks:",
        matrix(done, _kept),
        "Seconds to compress, calibration included, and the process's peak memory, model included:",
        matrix(done, lambda e: f"{e['seconds']:.0f} s, {e['peak_bytes'] / 2**30:.1f} GiB"),
    ]


def _own_size(done: Sequence[Entry]) -> list[str]:
    """Methods that no budget sizes: one row each."""
    rows = [entry for entry in done if not METHODS[entry["method"]].sized]
    if not rows:
        return []
    head = ["| rounding | MB |" + "".join(f" {name} |" for name in RATINGS), "|---" * 5 + "|"]
    body = [
        f"| {METHODS[entry['method']].label} | {_mb(entry['bytes'])} |"
        + "".join(f" {_correlation(entry, name)} |" for name in RATINGS)
        for entry in sorted(rows, key=lambda entry: -entry["bytes"])
    ]
    return ["Rounding for comparison; it does not exclude any of the above.", _lines(head + body)]


def matrix(done: Sequence[Entry], show: Show) -> str:
    """Methods down, keeps across; a cell that was not measured stays empty."""
    rows = [name for name, method in METHODS.items() if method.sized]
    cells = {(entry["method"], entry["keep"]): entry for entry in done if entry["method"] in rows}
    keeps = sorted({keep for _, keep in cells}, reverse=True)
    lines = [
        "| keep |" + "".join(f" {keep:g} |" for keep in keeps),
        "|---" * (len(keeps) + 1) + "|",
    ]
    for name in rows:
        row = [cells.get((name, keep)) for keep in keeps]
        if any(row):
            shown = "".join(f" {show(entry) if entry else ''} |" for entry in row)
            lines.append(f"| {METHODS[name].label} |{shown}")
    return _lines(lines)


def _without_numbers(own: Sequence[Entry]) -> list[str]:
    lines = [
        f"- {METHODS[entry['method']].label}, keep {entry['keep']:g}: {_why(entry)}"
        for entry in own
        if entry["status"] != "done"
    ]
    return [f"Without numbers on {own[0]['model']}:", _lines(lines)] if lines else []


def _why(entry: Entry) -> str:
    if entry["status"] == "did not finish":
        return f"did not finish in {entry['limit']:.0f} s"
    return f"{entry['status']}: {entry['why']}"


def _lines(lines: Sequence[str]) -> str:
    return "\n".join(lines)


def _dense(entry: Entry, text: str) -> str:
    return f"{entry['texts'][text]['dense']:.2f}"


def _number(ratio: float) -> str:
    return f"{ratio:.3f}" if ratio < 10 else f"{ratio:,.0f}"


def _ratio(found: Entry) -> str:
    low, high = found["interval"]
    return f"{_number(found['ratio'])} [{_number(low)}, {_number(high)}]"


def _distance(found: Entry) -> str:
    return f"{found['kl']:.3f}, {100 * found['top1']:.1f} %"


def _correlation(entry: Entry, name: str) -> str:
    found = entry["similarity"][name]
    return f"{found['correlation']:.3f} ({found['correlation'] - found['dense']:+.3f})"


def _kept(entry: Entry) -> str:
    everything = entry["bytes"] / entry["dense_bytes"]
    beside = f" ({everything:.3f})" if everything - entry["kept"] > 5e-4 else ""
    return f"{entry['kept']:.3f}{beside}"


def _mb(size: float) -> str:
    return f"{size / 1e6:.1f}"
