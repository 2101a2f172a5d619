"""One loop that heals a student of any method: the same steps, inputs, targets and optimizer."""

import copy
from math import cos, pi
from pathlib import Path

import torch
from torch import Tensor, nn

from convs.models import Subject, through

SIZE = 32  # samples a step
WARMUP = 0.05
RATES = (3e-4, 1e-3)  # each student is healed at both; the better on samples of its own is taken


def targets(subject: Subject, teacher: nn.Module, steps: int, folder: Path) -> Tensor:
    """The teacher's outputs on all that students are healed on (steps x samples x out), once."""
    file = folder / f"{subject.name}-teacher-{steps}.pt"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        outs = torch.stack([through(teacher, subject.batch(k, SIZE)) for k in range(steps)])
        torch.save(outs.clone(), file)
    return torch.load(file, weights_only=True)


def healed(
    subject: Subject, student: nn.Module, wanted: Tensor, rates: tuple[float, ...] = RATES
) -> tuple[nn.Module, float]:
    """The student after all steps, and the rate it was healed at; the given one stays as it is.

    The last tenth of the samples is not trained on: the rate with the least loss there is taken.
    Batch norms keep the mean and deviation that they came with.
    """
    held = max(1, len(wanted) // 10)
    found = [(_run(subject, student, wanted[:-held], rate), rate) for rate in rates]
    if len(found) == 1:
        return found[0]
    return min(found, key=lambda pair: _loss(subject, pair[0], wanted, held))


def _run(subject: Subject, student: nn.Module, wanted: Tensor, rate: float) -> nn.Module:
    model = copy.deepcopy(student).eval()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.0)
    steps = len(wanted)
    for step, target in enumerate(wanted):
        done = step / steps
        scale = done / WARMUP if done < WARMUP else 0.5 + 0.5 * cos(pi * done)
        for group in optimizer.param_groups:
            group["lr"] = rate * max(scale, 1 / steps)
        loss = subject.loss(model(subject.batch(step, SIZE)), target)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
    return model


@torch.no_grad()
def _loss(subject: Subject, model: nn.Module, wanted: Tensor, held: int) -> float:
    last = range(len(wanted) - held, len(wanted))
    found = [float(subject.loss(model(subject.batch(k, SIZE)), wanted[k])) for k in last]
    return sum(found) / len(found) if all(x == x for x in found) else float("inf")
