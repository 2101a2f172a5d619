"""What `bondwise eval` does: perplexity of a model on a text, beside the dense model if given."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from bondwise.checkpoint.loading import load_model, reader
from bondwise.evaluate.language import compare, perplexity
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
) -> dict[str, Any]:
    """The report of one evaluation; ``draw`` is windows, tokens of a window, and the seed.

    Raises:
        DataError: the text is missing or too short.
        CheckpointError: a model cannot be loaded.
    """
    count, length, seed = draw
    text = read_text(Path(data))
    check_draw(count, length)
    progress("load", 0, 1)
    loaded = load_model(model, dtype, device, task="causal")
    teacher = None if vs is None else load_model(vs, dtype, device, task="causal")
    progress("load", 1, 1)
    length = fitting(loaded.model, length)
    shown = windows(reader(loaded, model), text, count, length, seed)
    step = partial(progress, "evaluate")
    step(0, count)
    entry: dict[str, Any] = {"text": data, "windows": count, "length": length}
    if teacher is None:
        score = perplexity(loaded.model, shown, progress=step)
        entry |= {"before": {}, "after": {"perplexity": score.perplexity}}
    else:
        entry |= compare(loaded.model, teacher.model, shown, seed=seed, progress=step).entry(data)
    return {"source": model, "vs": vs, "seed": seed, "evaluation": [entry]}
