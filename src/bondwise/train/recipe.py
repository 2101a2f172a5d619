"""The recipe of a healing: everything that decides a run, as plain numbers and words."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from math import ceil, isfinite, sqrt
from typing import Annotated, Any, SupportsFloat

from tyro.conf import arg

from bondwise.choices import TIME, Patterns, Switch
from bondwise.errors import BudgetError, DataError, as_whole

PRECISIONS = ("auto", "float32", "bfloat16")
MEASURED = 10  # steps after which a time becomes a number of steps
VALIDATIONS = 8  # over a run, where `every` is not given
WINDOWS, SAMPLES = 2, 8  # of a step, where no batch is given: of text, and of anything else
ROOM, MOST = 2**16, 64  # numbers, and samples, that a step takes of small samples
BOLD = 6e-5  # the rate of a step of eight, where none is given
_TIME = arg(name="time", help_behavior_hint="(default: 15m)")
_RATE = arg(help_behavior_hint="(default: 6e-5 sqrt(batch / 8))")
_BATCH = arg(
    help_behavior_hint=f"(default: {WINDOWS} of text, {SAMPLES} to {MOST} of anything else)"
)
_WINDOWS = arg(help_behavior_hint="(default: all that there are)")
_EVERY = arg(help_behavior_hint="(default: for eight looks)")


@dataclass(frozen=True)
class Mix:
    """The weights of the parts of a loss, and the temperature at which the teacher is heard.

    ``distil T^2 KL(teacher || student) + task nats(text) + hidden |h~ - h|^2 / |h|^2``. The factor
    ``T^2`` keeps the gradient's size at every temperature (Hinton, Vinyals and Dean 2015).

    Raises:
        DataError: a temperature that is not above 0, a weight below 0, or none above it.

    >>> Mix(temperature=2.0, distil=0.9, task=0.1)
    Mix(temperature=2.0, distil=0.9, task=0.1, hidden=0.0)
    """

    temperature: float = 1.0
    distil: float = 1.0
    task: float = 0.0
    hidden: float = 0.0

    def __post_init__(self) -> None:
        if not (self.temperature > 0 and isfinite(self.temperature)):
            raise DataError(
                f"temperature={self.temperature} came; write a number above 0, such as 1."
            )
        weights = {"distil": self.distil, "task": self.task, "hidden": self.hidden}
        for name, weight in weights.items():
            if not (weight >= 0 and isfinite(weight)):
                raise DataError(f"{name}={weight} came as a weight of the loss; write 0 or more.")
        if not any(weights.values()):
            raise DataError("All weights of the loss are 0; write distil=1, or another above 0.")


@dataclass(frozen=True)
class Healing:
    """Everything that decides the outcome of one healing.

    Where no batch is given, it is two windows of text, eight samples of anything else (up to 64 of
    small ones, then all at once), and one for each process at least. Where no rate is given, it is
    ``6e-5 sqrt(batch / 8)``: Adam's steps go with the square root of the batch (Malladi, Lyu,
    Panigrahi and Arora 2022).

    >>> Healing(steps=100).check()
    """

    steps: int | None = None  # Steps in place of a time.
    # Time for it; after ten measured steps it becomes a number of steps.
    minutes: Annotated[float | None, TIME, _TIME] = None
    # What trains: all, cores, norms, or patterns of names.
    train: Patterns = ("all",)
    # Largest step of AdamW for a dense weight; each core's follows from its shape.
    rate: Annotated[float, _RATE] = BOLD * sqrt(WINDOWS / SAMPLES)
    # Share of the steps over which the rate rises; with a time, the ten measured steps.
    warmup: float = 0.05
    floor: float = 0.0  # The rate at the end, as a share of the largest.
    clip: float = 1.0  # Largest length of the gradient; 0 for none.
    decay: float = 0.0  # Of the weights, per step and unit of the rate.
    # Windows (samples) of a step, of all processes together.
    batch: Annotated[int, _BATCH] = WINDOWS
    micro: int = 4  # Windows at once; the gradients of several add up to those of the batch.
    length: int = 256  # Tokens of a window.
    windows: Annotated[int | None, _WINDOWS] = None  # Windows to train on, at most.
    validate: int = 16  # Windows held out, at most a fifth of all.
    every: Annotated[int | None, _EVERY] = None  # Steps between two looks at them.
    # Looks that are no better than one before them, the start aside, after which the run stops; 0
    # for never.
    patience: int = 4
    temperature: float = 1.0  # At which the teacher is heard.
    top_k: int = 64  # Tokens of the teacher that are kept for each position.
    distil: float = 1.0  # Weight of the divergence from the teacher in the loss.
    task: float = 0.0  # Weight of the text itself in the loss.
    hidden: float = 0.0  # Weight of the relative error of the last hidden state in the loss.
    checkpointing: Switch = False  # Compute activations twice: less memory, a third more time.
    precision: str = "auto"  # Of products: float32, bfloat16, or auto: bfloat16 where it is fast.
    seed: int = 0  # Seed of every random choice.
    save_every: float = 60.0  # Seconds between two states on disk.

    @property
    def mix(self) -> Mix:
        """The weights of the loss."""
        return Mix(self.temperature, self.distil, self.task, self.hidden)

    @property
    def choice(self) -> str | list[str]:
        """What trains, as one word or as patterns."""
        one = len(self.train) == 1 and self.train[0] in ("all", "cores", "norms")
        return self.train[0] if one else list(self.train)

    def check(self) -> None:
        """Refuse a recipe that cannot be followed.

        Raises:
            BudgetError: both or neither of steps and minutes, or a value outside its range.
            DataError: weights of the loss that are none.
        """
        if (self.steps is None) == (self.minutes is None):
            raise BudgetError(
                f"steps={self.steps} and minutes={self.minutes} came; give one of the two."
            )
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if value is not None and not (isfinite(value) and low <= value <= high):
                raise BudgetError(f"{name}={value} came; write {_range(low, high)}.")
        if not (self.minutes is None or self.minutes > 0):
            raise BudgetError(f"minutes={self.minutes} came; write a time above 0, such as 15.")
        if not self.train:
            raise BudgetError("train=() came; write all, cores, norms or patterns of names.")
        if self.precision not in PRECISIONS:
            raise BudgetError(
                f"precision={self.precision!r} came; write one of {', '.join(PRECISIONS)}."
            )
        _ = self.mix

    def to_json(self) -> dict[str, Any]:
        """The recipe as JSON has it, patterns as a list."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


_MANY = 2**63 - 1
_RANGES: dict[str, tuple[float | int, float | int]] = {
    "steps": (1, _MANY), "rate": (0, 1), "warmup": (0, 1), "floor": (0, 1), "clip": (0, _MANY),
    "decay": (0, _MANY), "batch": (1, _MANY), "micro": (1, _MANY), "length": (2, _MANY),
    "windows": (1, _MANY), "validate": (0, _MANY), "every": (1, _MANY), "patience": (0, _MANY),
    "top_k": (1, _MANY), "seed": (0, 2**62), "save_every": (0, _MANY),
}  # fmt: skip


def healing(**choices: Any) -> Healing:
    """A recipe from choices by name; None leaves a field as it is by default.

    Raises:
        BudgetError: a choice that there is none of, of another kind, or outside its range.

    >>> healing(steps=20, train="norms").train
    ('norms',)
    """
    known = {field.name: field.default for field in fields(Healing)}
    given = dict[str, Any]()
    for name, value in choices.items():
        if name not in known:
            raise BudgetError(f"{name}={value!r} came; a healing has {', '.join(known)}.")
        if value is not None:
            given[name] = _as(name, value, known[name])
    recipe = Healing(**given)
    recipe.check()
    return recipe


def suited(
    recipe: Healing,
    given: Mapping[str, Any],
    is_causal: bool,
    processes: int = 1,
    numbers: int | None = None,
) -> Healing:
    """A recipe whose batch and rate, where they were not given, are those of what is healed.

    Args:
        recipe: as `healing` made it.
        given: the choices that it was made of.
        is_causal: whether a language model is healed.
        processes: that share a batch.
        numbers: of one sample, where it has fractions (frames, images): of small ones a step takes
            as many as have `ROOM` numbers, all at once; None for anything else.

    >>> found = suited(healing(steps=9), {}, is_causal=False)
    >>> found.batch, found.rate
    (8, 6e-05)
    >>> found = suited(healing(steps=9), {}, is_causal=False, numbers=1024)  # of sound
    >>> found.batch, found.micro, round(found.rate, 6)
    (64, 64, 0.00017)
    """
    batch, micro, rate = recipe.batch, recipe.micro, recipe.rate
    many = WINDOWS if is_causal else SAMPLES
    if numbers is not None:
        many = min(max(SAMPLES, ROOM // max(1, numbers) // SAMPLES * SAMPLES), MOST)
    if given.get("batch") is None:
        batch = ceil(many / processes) * processes
    if given.get("micro") is None and many > SAMPLES:
        micro = min(batch, many)
    if given.get("rate") is None:
        rate = BOLD * sqrt(batch / SAMPLES)
    return replace(recipe, batch=batch, micro=micro, rate=rate)


def _as(name: str, value: Any, default: Any) -> Any:
    """A value of the kind of its field."""
    if name == "train":
        given = (value,) if isinstance(value, str) else value
        if not isinstance(given, tuple | list) or not all(isinstance(p, str) for p in given):
            raise BudgetError(
                f"train={value!r} came; write all, cores, norms or patterns of names."
            )
        return tuple(given)
    kind = _kind(name, default)
    if kind is int and as_whole(value) is not None:
        return as_whole(value)
    if kind is float and isinstance(value, SupportsFloat) and not isinstance(value, bool):
        return float(value)
    if type(value) is not kind:
        raise BudgetError(f"{name}={value!r} came; write a value of type {kind.__name__}.")
    return value


def _kind(name: str, default: Any) -> type:
    if name == "minutes":
        return float
    return int if default is None else type(default)


def _range(low: float | int, high: float | int) -> str:
    return f"{low:g} or more" if high >= _MANY else f"{low:g} to {high:g}"
