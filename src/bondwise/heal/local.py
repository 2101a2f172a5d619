"""The local stage: slices trained, each on its own, towards the teacher's cached activations.

Every slice of the student learns to give what the same slice of the teacher gives (Hubara et al.
2021, AdaQuant, for single layers). No slice needs what another one has learnt. So they are spread
over processes and machines that share a folder, and a run that was cut off goes on with the slices
that are missing.

What enters them is best the teacher's. From the compressed student's own states a slice learns to
take off the errors of those before it; but these are healed too, and what is taken off twice adds
up over the blocks. Slices that are chained, one waiting for the next, may take the student's
states (Wang et al. 2025, AA-SVD), and end better by a little.
"""

import tempfile
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from bondwise.errors import CheckpointError, DataError
from bondwise.flow.data import Batch, evaluating
from bondwise.flow.files import read, read_note
from bondwise.heal.work import ABOUT, Plan, Work, result
from bondwise.progress import Progress, silent
from bondwise.train.processes import wait


@dataclass(frozen=True)
class HealedSlice:
    """How far a slice's output is from the teacher's on held-out batches, relative and squared.

    Attributes:
        names: of its blocks, or of its layer.
        before: the error before it was trained.
        after: the error afterwards; never more.
        seconds: that its training took.
        stopped: the step, from 1, whose loss was not finite; 0 for none.
    """

    names: tuple[str, ...]
    before: float
    after: float
    seconds: float
    stopped: int = 0


def heal_locally(
    student: nn.Module,
    teacher: nn.Module,
    batches: Iterable[Batch],
    *,
    size: int = 1,
    inputs: float = 0.0,
    chained: bool = False,
    steps: int = 80,
    rate: float = 1e-3,
    train: str | Sequence[str] = "all",
    held_out: Sequence[int] | None = None,
    folder: Path | None = None,
    seed: int = 0,
    rank: int = 0,
    world: int = 1,
    progress: Progress = silent,
) -> list[HealedSlice]:
    """Train the slices of a student, in place, each on its own.

    With several processes, each trains its share and waits for the others where torch has a group
    for them; the student changes once all slices are there (`assemble` does it later).

    Args:
        student: the compressed model.
        teacher: the dense one, with the same blocks.
        batches: what both are shown.
        size: blocks in a slice; 0 for single layers, each towards the dense layer. That is also
            done where blocks do not run in a row.
        inputs: share of the batches whose inputs are the student's; the others' are the teacher's.
        chained: the student's inputs are what its healed slices give, each slice after the one
            before, in one process; otherwise what the student gave before any was healed.
        steps: of Adam for each slice, one batch each.
        rate: the largest step for a dense weight; each core's follows from its shape.
        train: what trains, as `bondwise.train.rates.groups` takes it.
        held_out: batches that are only measured; None for the last eighth.
        folder: where borders and results are kept, for going on and for several processes; None
            for one that is gone afterwards.
        seed: of the order of the batches.
        rank: which process this is.
        world: how many there are.
        progress: called with ("local", slices done, slices).

    Returns:
        What became of each slice that is done; of layers that no token reached there is none.

    Raises:
        DataError: slices that do not line up; no batch, or a model that does not give numbers.
        SelectionError: nothing trains.
        BudgetError: a share, rate, process or number of steps outside its range.
        CheckpointError: the folder is of another run, or cannot be written (a full disk).

    >>> from bondwise import TensorLinear, lowrank
    >>> _ = torch.manual_seed(0)
    >>> teacher = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))
    >>> first = TensorLinear.from_linear(teacher[0], lowrank(8, 8, 4))
    >>> student = nn.Sequential(first, nn.Tanh(), teacher[2])
    >>> data = list(torch.randn(8, 32, 8))
    >>> first, second = heal_locally(student, teacher, data)
    >>> first.names, first.after < first.before
    (('0', '1'), True)
    """
    shown = list(batches)
    held = _held_out(len(shown)) if held_out is None else list(held_out)
    plan = Plan(size, inputs, steps, rate, train, held, seed, chained)
    plan.check(len(shown), rank, world, folder)
    own_folder: AbstractContextManager[str | Path] = (
        tempfile.TemporaryDirectory() if folder is None else nullcontext(folder)
    )
    with own_folder as path, evaluating(student), evaluating(teacher):
        where = Path(path)
        work = Work(student, teacher, shown, plan, where)
        count = len(work.parts)
        mine = range(rank, count, world)
        for done, k in enumerate(mine):
            progress("local", done, len(mine))
            if not result(where, k).exists():
                work.heal(k, world)
        progress("local", len(mine), len(mine))
        wait()
        if all(result(where, k).exists() for k in range(count)):
            found = assemble(student, where)
            work.forget()
        else:
            found = _notes([result(where, k) for k in mine])
        wait()
        return found


def assemble(student: nn.Module, folder: Path) -> list[HealedSlice]:
    """Put what was trained into a student; what becomes of each slice.

    Args:
        student: as it was given to `heal_locally`.
        folder: where the results are.

    Raises:
        DataError: slices are missing.
        CheckpointError: a result cannot be read, or is not of this student.
    """
    count = len(read_note(folder / ABOUT)["slices"])
    results = [result(folder, k) for k in range(count)]
    missing = [path for path in results if not path.exists()]
    if missing:
        raise DataError(
            f"{len(missing)} of {count} slices are not healed yet; "
            "run the processes that are missing again, or one with world=1."
        )
    own = dict(student.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for path in results:
            for name, tensor in read(path).items():
                if name not in own or own[name].shape != tensor.shape:
                    raise CheckpointError(
                        f"{path} holds {name} of shape {tuple(tensor.shape)}, which "
                        f"{type(student).__name__} lacks; give the student that was healed."
                    )
                own[name].copy_(tensor)
    return _notes(results)


def _notes(results: Iterable[Path]) -> list[HealedSlice]:
    """What became of each slice that was reached."""
    notes = [read_note(path) for path in results if path.exists()]
    whole = [note for note in notes if note]
    return [HealedSlice(names=tuple(note.pop("names")), **note) for note in whole]


def _held_out(count: int) -> list[int]:
    """The last eighth of the batches, at least one where there are three."""
    return list(range(count - (count // 8 or int(count > 2)), count))
