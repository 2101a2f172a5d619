"""The section of docs/benchmarks.md on convolutions: tables of the results that there are."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from comparison.page import write_between

from convs.methods import METHODS
from convs.models import SUBJECTS
from convs.zoo import KINDS

Entry = dict[str, Any]


def refresh(folder: Path, page: Path) -> None:
    """Put all tables between the page's marks."""
    found = {
        file.stem: json.loads(file.read_text("utf-8")) for file in sorted(folder.glob("*.json"))
    }
    parts = [part for name in SUBJECTS for part in _subject(name, found)]
    parts += _formats([e for name, e in found.items() if name.startswith("formats-")])
    parts += _kinds([e for name, e in found.items() if name.startswith("kinds-")])
    parts += _stacks(found.get("stacks"))
    write_between(page, "convolutions", "\n\n".join(parts))


def _subject(name: str, found: dict[str, Entry]) -> list[str]:
    own = [e for e in found.values() if e.get("subject") == name and e.get("status") == "done"]
    if not own:
        return []
    speed = found.get(f"speed-{name}", {"rows": []})
    tests = list(own[0]["judged"])
    timings = sorted({(row["threads"], row["batch"]) for row in speed["rows"]})
    head = ["method", "numbers", "multiplications"]
    head += [f"{test}, as cut" for test in tests] + [f"{test}, healed" for test in tests]
    head += [f"speed, {_count(t, 'thread')}, batch {b}" for t, b in timings]
    order = list(METHODS)
    own.sort(key=lambda e: (-e["keep"], order.index(e["method"])))
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for entry in own:
        model = f"{name}-{entry['method']}-{entry['keep']:g}"
        lines.append(_row(entry, tests, [_speed(speed["rows"], model, *at) for at in timings]))
    for label, _ in SUBJECTS[name].others:
        extra = [_speed(speed["rows"], label, *at) for at in timings]
        if any(extra):
            lines.append("| " + " | ".join([label, "", "", *[""] * 2 * len(tests), *extra]) + " |")
    label = SUBJECTS[name].label
    return [f"### {label[0].upper()}{label[1:]} beside peers", _about(own), "\n".join(lines)]


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("s" if number > 1 else "")


def _row(entry: Entry, tests: Sequence[str], extra: Sequence[str]) -> str:
    healed = entry.get("healed", {}).get("judged", {})
    cells = [
        METHODS[entry["method"]].label,
        f"{entry['numbers'] / entry['dense_numbers']:.3f}",
        f"{entry['macs'] / entry['dense_macs']:.3f}",
        *(_share(entry["judged"].get(test)) for test in tests),
        *(_share(healed.get(test)) for test in tests),
        *extra,
    ]
    return "| " + " | ".join(cells) + " |"


def _share(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.2f} %"


def _speed(rows: Sequence[Entry], model: str, threads: int, batch: int) -> str:
    for row in rows:
        if (row["model"], row["threads"], row["batch"]) == (model, threads, batch):
            return f"{1 / row['ratio']:.2f}x"
    return ""


def _about(own: Sequence[Entry]) -> str:
    healed = sorted({e["healed"]["steps"] for e in own if "healed" in e})
    commits = ", ".join(sorted({e["commit"] for e in own}))
    tones = ", ".join(sorted({f"{e['tones']:,}" for e in own}))
    steps = ", ".join(map(str, healed))
    judged = f" {tones} tones a test." if own[0]["subject"] == "crepe" else " All 10,000 images."
    return (
        f"`make bench-conv`: numbers and multiplications over dense's; healing is {steps} steps of "
        f"AdamW on 32 samples towards dense's outputs, the same for all.{judged} Speed is dense's "
        f"seconds over the model's, median of turns in one process. {own[0]['processor']}, torch "
        f"{own[0]['torch']}, at commit {commits}."
    )


def _stacks(found: Entry | None) -> list[str]:
    """Seconds over dense's against multiplications over dense's, of torch's own convolutions."""
    if found is None:
        return []
    columns = sorted({(row["threads"], row["channels_last"]) for row in found["rows"]})
    named = [f"{_count(t, 'thread')}{', channels last' if last else ''}" for t, last in columns]
    lines = ["| convolution | stack | multiplications | " + " | ".join(named) + " |"]
    lines.append("|---" * (3 + len(columns)) + "|")
    by: dict[tuple[str, str], dict[tuple[int, bool], Entry]] = {}
    for row in found["rows"]:
        at = by.setdefault((row["case"], row["stack"]), {})
        at[row["threads"], row["channels_last"]] = row
    for (case, stack), at in by.items():
        first = next(iter(at.values()))
        if first["macs"] > 0.6:
            continue
        shown = [f"{at[c]['seconds']:.2f}" if c in at else "" for c in columns]
        lines.append(f"| {case} | {stack} | {first['macs']:.2f} | " + " | ".join(shown) + " |")
    about = (
        "`python benchmarks/convolutions.py --stacks`: chains of torch's own convolutions with "
        "random weights, over the dense one in the same layout; the least of the turns. "
        f"{found['processor']}, torch {found['torch']}."
    )
    return [
        "### What share of the multiplications gives what share of the seconds",
        about,
        "\n".join(lines),
    ]


def _formats(found: Sequence[Entry]) -> list[str]:
    """Each format down, each convolution across: error, multiplications and seconds."""
    if not found:
        return []
    parts = [
        "### Formats at equal numbers",
        (
            "`python benchmarks/convolutions.py --formats`: each convolution alone, fitted in the "
            "metric of its inputs; the relative error of its outputs on other inputs, and in "
            "brackets multiplications and seconds over dense's (batch 8, one thread). In bold what "
            f"errs least. {found[0]['processor']}, torch {found[0]['torch']}."
        ),
    ]
    rows = [row for entry in found for row in entry["rows"]]
    for subject in SUBJECTS:
        for share in sorted({row["share"] for row in rows}, reverse=True):
            own = [r for r in rows if r["subject"] == subject and r["share"] == share]
            if own:
                label = SUBJECTS[subject].label
                parts += [f"{label[0].upper()}{label[1:]}, {share:g} of a layer's numbers:"]
                parts += [_by_format(own)]
    return parts


def _by_format(own: Sequence[Entry]) -> str:
    layers = sorted({row["layer"] for row in own})
    least = {layer: min(r["error"] for r in own if r["layer"] == layer) for layer in layers}
    lines = ["| format | " + " | ".join(layers) + " |", "|---" * (len(layers) + 1) + "|"]
    for name in dict.fromkeys(row["format"] for row in own):
        at = {row["layer"]: row for row in own if row["format"] == name}
        cells = []
        for layer in layers:
            row = at.get(layer)
            if row is None:
                cells.append("")
                continue
            error = f"{row['error']:.3f}"
            error = f"**{error}**" if row["error"] == least[layer] else error
            cells.append(f"{error} ({row['macs']:.2f}, {row['seconds']:.2f})")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _kinds(found: Sequence[Entry]) -> list[str]:
    """A row for each model, and what became of its layers."""
    if not found:
        return []
    head = (
        "model",
        "threads",
        "numbers",
        "multiplications",
        "as built",
        "prepared",
        "error",
        "changed",
        "slower",
    )
    lines = [f"| {' | '.join(head)} |", "|---" * 9 + "|"]
    for entry in found:
        few = [row for row in entry["layers"] if row["macs"] <= 0.5]
        bad = [row for row in few if row["seconds"] > 1]
        lines.append(
            f"| {KINDS[entry['kind']].label} | {entry['threads']} | {entry['numbers']:.2f} | "
            f"{entry['macs']:.2f} | {entry['seconds']:.2f} | {entry['prepared']:.2f} | "
            f"{entry['error']:.2f} | {len(entry['layers'])} | {len(bad)} of {len(few)} |"
        )
    about = (
        "`python benchmarks/convolutions.py --kinds`: models with random weights whose spectra "
        "fall, compressed by `bw.tensorize(model, keep, data=..)` at keep 0.5 and 0.1; numbers, "
        "multiplications and seconds over dense's, one sample, as built and after "
        "`bw.prepare(model, x)`. The last column: layers that need at most half of the "
        "multiplications and are slower than dense as built. "
        f"{found[0]['processor']}, torch {found[0]['torch']}."
    )
    return [
        "### Models of other kinds",
        about,
        "\n".join(lines),
    ]
