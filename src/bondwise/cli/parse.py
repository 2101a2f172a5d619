"""From words to a verb: its fields are the flags, and what cannot be read is one sentence."""

import re
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import fields, replace
from importlib.metadata import version
from io import StringIO
from textwrap import fill
from typing import Any, NoReturn, cast

import tyro
from tyro import _errors as told  # what tyro offers to those who word errors of their own

from bondwise.choices import kinds
from bondwise.cli.measure import Bench, Eval, Read
from bondwise.cli.produce import Compress, Demo, Export, Heal, Merge, Plan
from bondwise.cli.verb import Verb
from bondwise.errors import (
    BondwiseError,
    BudgetError,
    DataError,
    NetworkError,
    SelectionError,
    ShapeError,
)

VERBS: dict[str, type[Verb]] = {
    verb.__name__.lower(): verb
    for verb in (Demo, Plan, Compress, Heal, Read, Merge, Eval, Bench, Export)
}
HELP = """usage: bondwise VERB [FLAGS]

The weights of a PyTorch model as tensor networks: smaller, and readable.

{verbs}

  bondwise VERB --help   the flags of a verb
  bondwise --version     the version
"""


class UsageError(BondwiseError):
    """Words that are no command."""


WRONG_USAGE = (UsageError, BudgetError, DataError, NetworkError, SelectionError, ShapeError)


def verb_of(words: Sequence[str]) -> Verb:
    """The verb that words name, with its choices; where they ask for help, it is shown.

    Raises:
        UsageError: no such verb, flag or value.
    """
    name, *rest = words or ["--help"]
    if name in ("-h", "--help", "--version"):
        lines = (f"  {name:<9} {_about(verb)[0]}" for name, verb in VERBS.items())
        help_ = HELP.format(verbs="\n".join(lines))
        _leave(f"bondwise {version('bondwise')}\n" if name == "--version" else help_)
    if name not in VERBS:
        kind = "option" if name.startswith("-") else "command"
        raise UsageError(f"No such {kind} {name!r}; see bondwise --help")
    kind, prog, said = VERBS[name], f"bondwise {name}", StringIO()
    try:
        with told.on_parse_error(_refuse), redirect_stdout(said):
            verb = tyro.cli(kind, prog=prog, description="", args=rest, registry=kinds)
    except SystemExit:
        _leave(_help(prog, kind, said.getvalue()))
    return _settled(verb, rest)


def _leave(text: str) -> NoReturn:
    """Say what was asked for, and be done."""
    sys.stdout.write(text)
    sys.stdout.flush()
    sys.exit(0)


def _help(prog: str, kind: type[Verb], text: str) -> str:
    """What the verb does, and the flags as tyro lists them; its usage is longer than a line."""
    flags = "\n".join(line.rstrip() for line in text.partition("\n")[2].splitlines())
    place = re.search(r"positional arguments\s+-+\s+(\S+)", flags)
    usage = " ".join(["usage:", prog, "[OPTIONS]", *([place[1]] if place else [])])
    about = (fill(part, 80) for part in _about(kind))
    return "\n\n".join([usage, *about, flags.strip("\n")]) + "\n"


def _about(verb: type[Verb]) -> list[str]:
    """The paragraphs of its docstring."""
    return [" ".join(part.split()) for part in (verb.__doc__ or "").split("\n\n")]


def _settled(verb: Verb, words: Sequence[str]) -> Verb:
    """With the names of the flags that were given; lists that were take the place of defaults."""
    given = {word[2:].partition("=")[0].replace("-", "_") for word in words if word[:2] == "--"}
    lists = dict[str, Any]()
    for field in fields(verb):
        value, usual = getattr(verb, field.name), field.default
        if isinstance(usual, tuple) and value != usual:
            lists[field.name] = value[len(cast(tuple[str, ...], usual)) :]
    return replace(verb, given=frozenset(given), **lists)


def _refuse(event: told.ParseErrorEvent) -> NoReturn:
    """The sentence of a parser's complaint."""
    match event:
        case told.UnrecognizedArgs() | told.MissingArgs(unrecognized_tokens=[_, *_]):
            said = _unknown(event)
        case told.MissingArgs():
            said = f"Missing {_name(event.missing_arguments[0].arg)}"
        case told.InstantiationFailure(argument=None):
            said = event.message
        case told.InstantiationFailure():
            said = f"Invalid value for {_name(event.argument)}: {event.message}"
        case told.BadValue():
            said = f"No value came for {_name(event.argument)}"
        case _:
            said = "These words cannot be read"
    raise UsageError(f"{said}; see {event.prog} --help")


def _unknown(event: Any) -> str:
    word = (getattr(event, "tokens", None) or event.unrecognized_tokens)[0]
    return f"{'No such option:' if word[0] == '-' else 'Got unexpected extra argument'} {word}"


def _name(argument: Any) -> str:
    """An argument as it is written: its flag, or what stands for it in the usage."""
    if argument.is_positional():
        return f"argument '{argument.lowered.metavar}'"
    return f"option '{argument.lowered.name_or_flags[-1]}'"
