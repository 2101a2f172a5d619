"""What every verb is: a dataclass whose fields are its flags, docstring and comments their help."""

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import OmitArgPrefixes, Positional, Suppress, arg

from bondwise.choices import Switch
from bondwise.cli.show import say, show
from bondwise.progress import Bars

if TYPE_CHECKING:
    import torch

    from bondwise.checkpoint.loading import Loaded

Folder = Positional[Annotated[str, arg(metavar="DIR")]]
Code = Annotated[
    str | None,
    arg(
        metavar="MODULE:ATTRIBUTE",
        help="What makes the model of a folder that code made: it is imported because you name it.",
        help_behavior_hint="",
    ),
]

Threads = Annotated[int | None, arg(help_behavior_hint="(default: as many as torch takes)")]


@dataclass(frozen=True)
class Talk:
    """Flags of every verb."""

    json: Switch = False  # One JSON object on standard output, the rest on stderr.
    # No progress bars.
    quiet: Annotated[Switch, arg(aliases=("-q",), help_behavior_hint="")] = False


@dataclass(frozen=True)
class Usual(Talk):
    """Flags of every verb."""

    seed: int = 0  # Seed of every random choice.
    device: str = "cpu"  # Where to compute: cpu, cuda, cuda:1, ..
    dtype: str = "auto"  # auto (as stored), float32, bfloat16 or float16.

    def checked(self) -> "torch.dtype | None":
        """The dtype, where it is one and the device can be used here."""
        from bondwise.compress.compress import check_device
        from bondwise.compress.recipe import dtype

        check_device(self.device)
        return dtype(self.dtype)


@dataclass(frozen=True, kw_only=True)
class Verb:
    """What every verb has."""

    given: Suppress[frozenset[str]] = frozenset()  # names of the flags that were written
    shared: OmitArgPrefixes[Talk] = Talk()

    def run(self) -> None:
        """Do it, and say what was done.

        Raises:
            BondwiseError: anything a user can mend.
        """
        raise NotImplementedError

    @property
    def goes_on(self) -> bool:
        """Whether the same command goes on where it was cut off."""
        return False

    def choices(self, recipe: type) -> dict[str, Any]:
        """What was chosen of the fields of a recipe, by name."""
        part = {field.name for field in fields(recipe)}
        return {
            field.name: value
            for field in fields(self)
            if field.name in part
            and ((value := getattr(self, field.name)) != field.default or field.name in self.given)
        }

    def show(self, report: dict[str, Any], *views: str, full: bool = False) -> None:
        """Print the report, as JSON or as tables."""
        show(report, self.shared.json, *views, full=full)

    def say(self, text: str) -> None:
        """A sentence about what was done, out of the way of JSON."""
        say(text, self.shared.json)


@dataclass(frozen=True, kw_only=True)
class Plain(Verb):
    """A verb without a recipe of its own."""

    shared: OmitArgPrefixes[Usual] = Usual()

    def load(self, model: str, code: str | None = None) -> "Loaded":
        """A model, with a bar."""
        from bondwise.checkpoint.loading import load_model

        kind = self.shared.checked()
        with Bars(self.shared.quiet) as bars:
            bars("load", 0, 1)
            loaded = load_model(model, kind, self.shared.device, code=code)
            bars("load", 1, 1)
        return loaded
