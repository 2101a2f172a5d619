"""What `bondwise eval` does: perplexity of a model on a text, beside the dense model if given."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from bondwise.checkpoint.loading import load_model, reader
from bondwise.checkpoint.others import check_other, is_other, named_code, shown
from bondwise.errors import DataError
from bondwise.evaluate.language import compare, perplexity
from bondwise.evaluate.outputs import compare_outputs
from bondwise.flow.forms.door import opened
from bondwise.flow.forms.samples import is_samples, read_samples
from bondwise.flow.text import check_draw, fitting, read_text, windows

Progress = Callable[[str, int, int], None]


def evaluate(
    model: str,
    data: str,
    vs: str | None,
    draw: tuple[int, int, int],
    device: str,
    dtype: Any,
    progress: Progress,
    code: str | None = None,
) -> dict[str, Any]:
    """The report of one evaluation; ``draw`` is windows, tokens of a window, and the seed.

    On a text a language model's perplexity, on samples how far any model's outputs are from those
    of another one. ``code`` makes the model of a folder that code made; ``vs`` does where it is
    code.

    Raises:
        DataError: the text is missing or too short; samples cannot be used, or came without ``vs``.
        CheckpointError: a model cannot be loaded.
    """
    count, length, seed = draw
    if is_samples(data):
        entry = _on_samples((model, vs), data, device, dtype, code, progress)
        return {"source": model, "vs": vs, "seed": seed, "evaluation": [entry]}
    for path in (model, vs):
        if path is not None and is_other(path):
            check_other(path, text=True)
    text = read_text(Path(data))
    check_draw(count, length)
    progress("load", 0, 1)
    loaded = load_model(model, dtype, device, task="causal")
    teacher = None if vs is None else load_model(vs, dtype, device, task="causal")
    progress("load", 1, 1)
    length = fitting(loaded.model, length)
    drawn = windows(reader(loaded, model), text, count, length, seed)
    step = partial(progress, "evaluate")
    step(0, count)
    entry: dict[str, Any] = {"text": data, "windows": count, "length": length}
    if teacher is None:
        score = perplexity(loaded.model, drawn, progress=step)
        entry |= {"before": {}, "after": {"perplexity": score.perplexity}}
    else:
        entry |= compare(loaded.model, teacher.model, drawn, seed=seed, progress=step).entry(data)
    return {"source": model, "vs": vs, "seed": seed, "evaluation": [entry]}


def _on_samples(
    paths: tuple[str, str | None],
    data: str,
    device: str,
    dtype: Any,
    code: str | None,
    progress: Progress,
) -> dict[str, Any]:
    """The entry of an evaluation on samples."""
    model, vs = paths
    shown_to = read_samples(data)
    if vs is None:
        raise DataError(
            "Samples came without a model to compare with; add --vs MODEL, the dense one."
        )
    progress("load", 0, 2)
    ours = load_model(model, dtype, device, code=code or named_code(vs)).model
    progress("load", 1, 2)
    theirs = load_model(vs, dtype, device, code=code).model
    progress("load", 2, 2)
    batches = opened(shown(theirs, shown(ours, shown_to)))
    assert isinstance(batches, list)
    found = compare_outputs(ours, theirs, batches, partial(progress, "evaluate"))
    return {"data": data, "samples": found.pop("samples"), "before": {}, "after": found}
