"""How far the outputs of two models are apart on samples: for models of any kind."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bondwise.errors import DataError
from bondwise.flow.data import Batch, checked, evaluating, feed, samples
from bondwise.heal.outputs import answer


@torch.no_grad()
def compare_outputs(
    model: nn.Module,
    other: nn.Module,
    batches: Sequence[Batch],
    progress: Callable[[int, int], None],
) -> dict[str, Any]:
    """Relative error of a model's outputs, and how often both put the same class first.

    ``error`` is ``|y - y'| / |y'|`` over all samples, ``y'`` the other's output. ``agreement``
    is there where outputs look like scores of classes: one vector for each sample.

    Raises:
        DataError: samples that a model cannot run, or outputs of unlike shapes.

    >>> one, two = nn.Linear(2, 3), nn.Linear(2, 3)
    >>> compare_outputs(one, one, [torch.ones(4, 2)], lambda done, total: None)
    {'samples': 4, 'error': 0.0, 'agreement': 1.0}
    """
    checked(model, batches)
    apart = size = 0.0
    count = same = 0
    classes = True
    with evaluating(model), evaluating(other):
        for done, batch in enumerate(batches, start=1):
            given, wanted = (answer(feed(each, batch)) for each in (model, other))
            if given.shape != wanted.shape:
                raise DataError(
                    f"The models give {tuple(given.shape)} and {tuple(wanted.shape)} for the same "
                    "samples; give the model that it was made from as --vs."
                )
            wanted = wanted.to(given.device)
            apart += float((given.double() - wanted.double()).square().sum())
            size += float(wanted.double().square().sum())
            count += samples(batch)
            classes = classes and _are_classes(wanted, batch)
            if classes:
                same += int((given.argmax(-1) == wanted.argmax(-1)).sum())
            progress(done, len(batches))
    error = (apart / size) ** 0.5 if size else float(apart > 0)
    return {"samples": count, "error": error, "agreement": same / count if classes else None}


def _are_classes(output: Tensor, batch: Batch) -> bool:
    floats, vectors = output.is_floating_point(), output.ndim == 2 and output.shape[1] > 1
    return floats and vectors and len(output) == samples(batch)
