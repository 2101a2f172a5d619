"""One call from a student and its teacher to a healed student."""

import tempfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, SupportsFloat, SupportsIndex

import torch
from torch import nn

from bondwise.compress.swap import check_copy
from bondwise.errors import BudgetError, DataError, SelectionError
from bondwise.flow.copies import normal
from bondwise.flow.doors import check_call, check_place, check_switch, check_tokenizer, check_whole
from bondwise.heal.distil import Teacher
from bondwise.heal.modes import as_float32
from bondwise.heal.run import Healed, Wrap, prepare
from bondwise.layers.module import tensor_layers
from bondwise.progress import Progress, silent
from bondwise.train.allocator import kept
from bondwise.train.loop import Callback, no_callback
from bondwise.train.rates import groups
from bondwise.train.recipe import healing
from bondwise.train.state import RunFolder

STEPS = 100  # where neither steps nor a time is given


@torch.inference_mode(False)
def heal(
    student: nn.Module,
    teacher: nn.Module | Callable[[], nn.Module],
    data: Any,
    *,
    tokenizer: Any = None,
    steps: SupportsIndex | None = None,
    minutes: SupportsFloat | None = None,
    validation: Any = None,
    state: str | Path | None = None,
    resume: bool = True,
    inplace: bool = False,
    wrap: Wrap | None = None,
    progress: Progress = silent,
    tell: Callback = no_callback,
    **choices: Any,
) -> Healed:
    """Train a compressed student towards the model that it was made from.

    Language models learn what the teacher says of each token, other models to give what it gives.
    Parameters are trained in float32 and given back in their own dtype.

    Args:
        student: a model with networks in it; a dense one learns likewise.
        teacher: the dense model, or what loads it: then it is in memory only while it is needed.
        data: text, chats (what the assistant says is learned), token ids, rows, batches, samples, a
            ``datasets.Dataset``, a DataLoader or a generator: see `bondwise.flow.forms.door`.
        tokenizer: for text, chats and padding.
        steps: of AdamW; or give ``minutes``. Without either there are `STEPS`.
        minutes: of steps.
        validation: other data to judge on; None holds out the end of ``data``.
        state: a folder in which the run is kept, so that it goes on after it was cut off.
        resume: go on with what the folder holds; otherwise it is emptied.
        inplace: train the student itself and not a copy; what it shares with the teacher becomes
            its own.
        wrap: called with the student before the first step, for DDP or FSDP.
        progress: is told a stage, what is done and what there is.
        tell: is told each entry of the history.
        choices: the other fields of `Healing`.

    Raises:
        BudgetError: a choice outside its range.
        DataError: data that cannot be used, models that do not belong together, or numbers that
            are not finite before anything was trained.
        SelectionError: nothing trains, or the student's numbers are not all here.
        CheckpointError: a state of another run, or one that cannot be written (a full disk).

    >>> from bondwise import TensorLinear, lowrank
    >>> _ = torch.manual_seed(0)
    >>> teacher = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 4))
    >>> first = TensorLinear.from_linear(teacher[0], lowrank(8, 8, 4))
    >>> student = nn.Sequential(first, nn.Tanh(), teacher[2])
    >>> healed = heal(student, teacher, torch.randn(256, 8), steps=40, rate=0.01)
    >>> healed.after < healed.before
    True
    """
    _check(student, teacher, inplace)
    check_switch("resume", resume)
    check_tokenizer(tokenizer)
    check_place("state", state)
    for name, call in {"wrap": wrap, "progress": progress, "tell": tell}.items():
        check_call(name, call)
    steps = STEPS if steps is None and minutes is None else steps
    recipe = healing(steps=steps, minutes=minutes, **choices)
    if student is teacher:
        raise DataError("The student is the teacher; give the compressed model and the dense one.")
    networks = [m is not None and any(tensor_layers(m)) for m in (student, _module(teacher))]
    if networks == [False, True]:
        raise DataError(
            "The student is dense and the teacher has tensor networks; give the compressed model "
            "as the student and the dense one as the teacher."
        )
    groups(student, recipe.rate, recipe.choice)
    with _folder(state) as folder:
        run = prepare(student, Teacher(teacher), recipe, data, tokenizer, validation, choices)
        place = RunFolder(folder, run.identity, resume)
        own = run.own(inplace)
        try:
            with kept(), as_float32(own):
                return run.run(own, place, wrap, progress, tell)
        except (BudgetError, DataError, SelectionError):
            if not place.begun:  # what is refused will be asked in another way
                place.forget()
            raise


def _module(teacher: object) -> nn.Module | None:
    return teacher if isinstance(teacher, nn.Module) else None


def _check(student: object, teacher: object, inplace: object) -> None:
    """Refuse what is no model, or none that can be trained."""
    for name, model in {"student": student, "teacher": teacher}.items():
        if not isinstance(model, nn.Module) and (name == "student" or not callable(model)):
            raise DataError(
                f"A {name} of type {type(model).__name__} came; give a module, "
                "such as the .model of what tensorize gives."
            )
    check_whole(student)
    check_switch("inplace", inplace)
    assert isinstance(student, nn.Module)
    if not inplace:
        check_copy(student)
    elif normal(student) is not student:
        raise SelectionError(
            f"This {type(student).__name__} was made under torch.inference_mode and cannot train; "
            "write inplace=False."
        )


@contextmanager
def _folder(state: str | Path | None) -> Generator[Path]:
    """Where the run is kept; one that is gone afterwards where none is given."""
    if state is not None:
        yield Path(state)
        return
    with tempfile.TemporaryDirectory() as made:
        yield Path(made) / "state"
