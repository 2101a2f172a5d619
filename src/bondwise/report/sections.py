"""The parts of the page: headline, evaluation, sizes, samples, steps, weights, how to repeat it."""

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import yaml

from bondwise.report.groups import Report, Weight, becomes, changed, kept, left, shape, template
from bondwise.report.markup import Markup, el, figure, grid, join
from bondwise.report.pitch.shares import figures as pitch_figures
from bondwise.report.table import interval, windows
from bondwise.report.units import Number, count, decimal, duration, percent, size

WEIGHTS = ("weight", "kind", "shape", "becomes", "before", "after", "kept", "error")


def headline(report: Report) -> Markup:
    """What was kept and what it cost, at one glance."""
    target, whole, stored = report["targeted"], report["parameters"], report["bytes"]
    figures = [
        figure(
            percent(report["kept"]),
            "of the targeted numbers kept",
            f"{count(target['before'])} to {count(target['after'])}, asked for {report['keep']:g}",
        ),
        *_cost(report),
        figure(
            size(stored["after"]),
            "on disk",
            f"from {size(stored['before'])} dense, {count(whole['after'])} parameters",
        ),
    ]
    if report.get("steps"):
        seconds = sum(step["seconds"] for step in report["steps"])
        peak = max(step["peak_bytes"] for step in report["steps"])
        figures.append(figure(duration(seconds), "all steps", f"peak memory {size(peak)}"))
    notes = [el("p", str(note), class_="note") for note in report.get("notes") or []]
    return join([el("div", *figures, class_="figures"), _origin(stored), *notes])


def _cost(report: Report) -> list[Markup]:
    entries: Sequence[Mapping[str, Any]] = report.get("evaluation") or []
    if entries:
        first = entries[0]
        before, after = (first[side].get("perplexity") for side in ("before", "after"))
        figures = [
            figure(
                f"{decimal(first.get('ratio'), 2)} x",
                f"perplexity {first['text'].split(':')[0]}",
                f"{decimal(before, 2)} to {decimal(after, 2)}",
            )
        ]
        if first["after"].get("top1") is not None:
            also = f"KL divergence {decimal(first['after'].get('kl'))}"
            figures.append(figure(percent(first["after"]["top1"]), "top-1 agreement", also))
        return figures
    if report.get("pitch"):
        return pitch_figures(report)
    return [
        figure(decimal(entry["after"]), str(entry["name"]), f"from {decimal(entry['before'])}")
        for entry in (report.get("similarity") or [])[:2]
    ]


def _origin(stored: Mapping[str, Any]) -> Markup:
    origin = stored.get("source_file")
    if not origin:
        return Markup("")
    times = f"{stored['after'] / origin:.2f}"
    text = (
        f"The file the model came from holds {size(origin)}: on disk the result is {times} times "
        "its size. The comparison that counts here is stored numbers against quality."
    )
    return el("p", text, class_="note")


def evaluation(report: Report) -> Markup:
    """Quality before and after, with intervals."""
    language = [
        (
            f"{entry['text']} ({windows(entry)})",
            decimal(entry["before"].get("perplexity"), 2),
            decimal(entry["after"].get("perplexity"), 2),
            decimal(entry.get("ratio")),
            interval(entry),
            decimal(entry["after"].get("kl")),
            percent(entry["after"].get("top1")),
        )
        for entry in report.get("evaluation") or []
    ]
    heads = ("text", "before", "after", "ratio", "95 % interval", "KL", "top-1")
    ratings = [
        (str(entry["name"]), decimal(entry["before"]), decimal(entry["after"]))
        for entry in report.get("similarity") or []
    ]
    caption = (
        "Perplexity, its ratio with a bootstrap interval over windows; KL divergence (nats per "
        "token) and top-1 agreement are measured against the dense model."
    )
    return join(
        [
            *([grid(heads, language), el("p", caption, class_="note")] if language else []),
            *([grid(("human ratings", "before", "after"), ratings)] if ratings else []),
        ]
    )


def sizes(report: Report) -> Markup:
    """Stored numbers, bytes and memory, before and after."""
    stored = report["bytes"]
    pairs = [
        ("targeted numbers", report["targeted"], count),
        ("all parameters", report["parameters"], count),
        ("on disk", stored, size),
    ]
    if stored.get("source_file"):
        origin = {"before": stored["source_file"], "after": stored["after"]}
        pairs.append(("on disk, against the original file", origin, size))
    if report.get("resident"):
        pairs.append(("in memory", report["resident"], size))
    rows = [
        (
            label,
            unit(pair["before"]),
            unit(pair["after"]),
            decimal(pair["after"] / pair["before"] if pair["before"] else None),
        )
        for label, pair, unit in pairs
    ]
    return grid(("", "before", "after", "ratio"), rows)


def samples(report: Report) -> Markup:
    """What the model writes before and after, beside each other."""
    return join([_sample(sample) for sample in report.get("samples") or []])


def _sample(sample: Mapping[str, Any]) -> Markup:
    sides = [
        el("div", el("h3", side), el("p", el("i", str(sample["prompt"])), str(sample[side])))
        for side in ("before", "after")
    ]
    return el("div", *sides, class_="sample")


def steps(report: Report) -> Markup:
    """Seconds and peak memory of each step, with a bar for the time."""
    entries: Sequence[Mapping[str, Any]] = report.get("steps") or []
    if not entries:
        return Markup("")
    longest = max(step["seconds"] for step in entries) or 1
    rows = [
        el(
            "tr",
            el("th", str(step["name"]), scope="row"),
            el("td", duration(step["seconds"])),
            el("td", size(step["peak_bytes"])),
            el("td", _bar(step["seconds"] / longest), class_="wide"),
        )
        for step in entries
    ]
    heads = [el("th", head, scope="col") for head in ("step", "time", "peak memory")]
    head = el("tr", *heads, el("td"))
    return el("table", el("thead", head), el("tbody", *rows), class_="numbers")


def _bar(part: Number) -> Markup:
    return el("i", class_="bar", style=f"width:{100 * part:.1f}%")


def weights(report: Report) -> Markup:
    """Every weight on a line of its own: a table to sort and filter where scripts run."""
    box = el(
        "p",
        el(
            "label",
            "Filter ",
            el("input", type="search", id="filter", placeholder="q_proj, mpo, 3 .. "),
        ),
        el("output", f"{len(report['weights'])} weights", id="shown", for_="filter"),
        class_="scripted",
    )
    head = el("tr", *(el("th", head, scope="col") for head in WEIGHTS))
    rows = [_weight(weight) for weight in report["weights"]]
    table = el("table", el("thead", head), el("tbody", *rows), id="table", class_="all")
    region = el(
        "div", table, class_="scroll tall", tabindex=0, role="region", aria_label="all weights"
    )
    return Markup(box + region)


def _weight(weight: Weight) -> Markup:
    numbers = (weight["before"], weight["after"], kept(weight), weight["error"])
    texts = (count(numbers[0]), count(numbers[1]), decimal(numbers[2]), decimal(numbers[3]))
    what = becomes(weight)
    return el(
        "tr",
        el("th", str(weight["name"]), scope="row"),
        el("td", str(weight["kind"])),
        el("td", shape(weight), data_v=prod(weight["shape"])),
        el("td", what, title=str(weight["reason"]) or None),
        *(
            el("td", text, data_v=-1.0 if value is None else value)
            for text, value in zip(texts, numbers, strict=True)
        ),
    )


def untouched(report: Report) -> Markup:
    """What was left alone and why, one line per kind."""
    lines: dict[tuple[str, ...], list[str]] = {}
    for weight in left(report["weights"]):
        key = template(weight["name"]), str(weight["kind"]), shape(weight), str(weight["reason"])
        lines.setdefault(key, []).append(str(weight["name"]))
    rows = [
        (names[0] if len(names) == 1 else f"{name} ({len(names)})", kind, form, reason)
        for (name, kind, form, reason), names in lines.items()
    ]
    if not rows:
        return el("p", "Every weight became a network.")
    head = el("tr", *(el("th", head, scope="col") for head in ("weight", "kind", "shape", "why")))
    body = [
        el("tr", el("th", row[0], scope="row"), *(el("td", cell) for cell in row[1:]))
        for row in rows
    ]
    return el("div", el("table", el("thead", head), el("tbody", *body)), class_="scroll")


def repeat(report: Report) -> Markup:
    """The commands and the recipe that give this result again."""
    parts: list[Markup] = []
    if report.get("commands"):
        text = "\n".join(str(command) for command in report["commands"])
        parts.append(el("pre", el("code", text), tabindex=0, aria_label="commands"))
    if report.get("recipe"):
        recipe = yaml.safe_dump(dict(report["recipe"]), sort_keys=False, allow_unicode=True)
        parts.append(el("h3", "Recipe"))
        parts.append(el("pre", el("code", recipe), tabindex=0, aria_label="recipe"))
    return join(parts)


def opening(report: Report) -> str:
    """The page in one sentence."""
    done, all_of_them = len(changed(report["weights"])), len(report["weights"])
    return f"{done} of {all_of_them} weights stored as tensor networks."
