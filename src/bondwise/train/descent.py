"""One step of training: the losses of its parts, their gradient, and the optimizer's move.

All that is random in a step follows from the seed and the number of the step.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from math import isfinite
from typing import Any, cast

import torch
from torch import Tensor, nn

from bondwise.errors import SelectionError
from bondwise.train.processes import agreed, world
from bondwise.train.recipe import Healing

Groups = Sequence[Mapping[str, Any]]
Loss = Callable[[int, int], Tensor]
"""Of a step and one of its parts: its share of the step's loss; the parts add up to it."""


@dataclass(frozen=True)
class Course:
    """What is trained, on what, and how it is judged.

    Attributes:
        student: whose layers are named where a loss is not finite.
        groups: what trains, as `bondwise.train.rates.groups` gives it.
        loss: of step and part.
        parts: of a step.
        measure: what is to be small on samples held out; None where there are none.
        measured: what that is called in the history.
        wrapped: the student as it is called, where DDP wraps it.
    """

    student: nn.Module
    groups: Groups
    loss: Loss
    parts: int = 1
    measure: Callable[[], float] | None = None
    measured: str = "perplexity"
    wrapped: nn.Module | None = None


class Descent:
    """What moves the parameters, a step at a call.

    Args:
        course: what is trained.
        recipe: how.
    """

    def __init__(self, course: Course, recipe: Healing) -> None:
        self.course, self.recipe = course, recipe
        self.optimizer, self._rates = _optimizer(course.groups, recipe)
        self.parameters = [p for group in self.optimizer.param_groups for p in group["params"]]

    def __call__(self, step: int, risen: float) -> tuple[float, float]:
        """One step at a share of the largest rate, unless a number in it is not finite.

        Returns:
            The loss, in the mean over the processes, and the norm of its gradient.
        """
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * risen
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.parameters[0].device)
        for loss in self.losses(step):
            if not loss.requires_grad:
                raise SelectionError(
                    f"train={self.recipe.train!r} came, and none of it is in the loss; "
                    "write what the model's output is made with."
                )
            loss.backward()  # pyright: ignore[reportUnknownMemberType]
            total += loss.detach()
        found = _whole(torch.nn.utils.get_total_norm(_grads(self.parameters)))
        norm = float(found)
        mean = agreed([float(total), norm], "sum", total.device)[0] / world()
        if not (isfinite(mean) and isfinite(norm)):
            return mean, norm
        if self.recipe.clip and norm > self.recipe.clip:
            torch.nn.utils.clip_grads_with_norm_(self.parameters, self.recipe.clip, found)
        self.optimizer.step()  # pyright: ignore[reportUnknownMemberType]
        return mean, norm

    def losses(self, step: int) -> Generator[Tensor]:
        """The parts of a step's loss, one after another, as they are drawn in that step."""
        torch.manual_seed(_seed(self.recipe.seed, step))
        for part in range(self.course.parts):
            with self._unsynced(part + 1 < self.course.parts):
                yield self.course.loss(step, part)

    @contextmanager
    def _unsynced(self, more: bool) -> Generator[None]:
        """DDP adds up the gradients of all processes once, after the last part."""
        later = getattr(self.course.wrapped, "no_sync", None)
        with later() if more and later is not None else nullcontext():
            yield


def _optimizer(groups: Groups, recipe: Healing) -> tuple[torch.optim.AdamW, list[float]]:
    """AdamW with one kernel for all of a group, where there is one; and the groups' own rates."""
    own = [dict(group) for group in groups]
    tensors = [cast(Tensor, p) for group in own for p in group["params"]]
    fused = all(p.device.type in ("cpu", "cuda") and not hasattr(p, "to_local") for p in tensors)
    made = torch.optim.AdamW(
        own, lr=recipe.rate, betas=(0.9, 0.95), weight_decay=recipe.decay, fused=fused
    )
    return made, [group["lr"] for group in own]


def _grads(parameters: Sequence[Tensor]) -> list[Tensor]:
    return [p.grad for p in parameters if p.grad is not None]


def _whole(tensor: Tensor) -> Tensor:
    """A number that all processes have, of one that is spread over them."""
    gather = getattr(tensor, "full_tensor", None)
    return gather() if gather is not None else tensor


def _seed(seed: int, step: int) -> int:
    """Of all that is drawn in a step."""
    return (seed * 1_000_003 + step) % 2**63
