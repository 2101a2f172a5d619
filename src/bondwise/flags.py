"""The flags of the command line: what each verb takes, and what its help says.

A flag whose type ends in ``OrNone`` changes a recipe only where it is given.
"""

import re
from pathlib import Path
from typing import Annotated

import typer

from bondwise.topology import registry


def fraction(text: str | float) -> float:
    """A number; its range is checked where it is used."""
    try:
        return float(text)
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} came; write a number such as 0.6") from error


def whole(text: str | int) -> int:
    """A whole number."""
    try:
        number = int(text)
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} came; write a whole number such as 64") from error
    if abs(number) >= 2**63:
        raise typer.BadParameter(f"{text} came; write a number that fits 64 bits, such as 64")
    return number


def minutes(text: str | float) -> float:
    """A time such as 15m, 90s or 1h30m, in minutes; a number alone is minutes.

    >>> minutes("15m"), minutes("90s"), minutes("1h30m"), minutes("2")
    (15.0, 1.5, 90.0, 2.0)
    """
    if isinstance(text, float | int):  # a value that was read already comes again
        return text
    unit = text.strip() if text.strip()[-1:] in "hms" else f"{text.strip()}m"
    parts = re.fullmatch(r"(?:([\d.]+)h)?(?:([\d.]+)m)?(?:([\d.]+)s)?", unit)
    try:
        if parts is None or not any(parts.groups()):
            raise ValueError
        hours, whole, seconds = (float(part or 0) for part in parts.groups())
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} came; write a time such as 15m or 1h30m") from error
    return 60 * hours + whole + seconds / 60


MODEL_HELP = "A Hugging Face folder (safetensors) or a GGUF file."
Model = Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP, show_default=False)]
Keep = Annotated[
    float | None,
    typer.Option(
        parser=fraction,
        metavar="FRACTION",
        help="Fraction of the targeted numbers that stays. [default: 0.8]",
    ),
]
Targets = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PATTERN",
        help="What to change: linear, embedding, a class, a path, a glob or re:REGEX; "
        "may be repeated. [default: linear]",
    ),
]
Ignore = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PATTERN",
        help="What to leave alone, besides the head, tied weights and routers; may be repeated.",
    ),
]
Protect = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PATTERN",
        help="What stays dense but counts in the budget, so that the rest is cut more; may be "
        "repeated.",
    ),
]
Format = Annotated[
    str | None,
    typer.Option(
        metavar="FORMAT",
        help=f"auto (lowrank so far), {', '.join(registry.names())} or an einsum such as "
        "'o a, a i -> (o) (i)'. [default: auto]",
    ),
]
Out = Annotated[Path, typer.Option(metavar="DIR", help="Folder to write.")]
Json = Annotated[
    bool, typer.Option("--json", help="One JSON object on standard output, the rest on stderr.")
]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="No progress bars.")]
Force = Annotated[bool, typer.Option("--force", help="Replace a folder that bondwise wrote.")]
SEED_HELP = "Seed of every random choice."
DEVICE_HELP = "Where to compute: cpu, cuda, cuda:1, .."
DTYPE_HELP = "auto (as stored), float32, bfloat16 or float16."
Seed = Annotated[int, typer.Option(parser=whole, metavar="N", help=SEED_HELP)]
Device = Annotated[str, typer.Option(metavar="NAME", help=DEVICE_HELP)]
Dtype = Annotated[str, typer.Option(metavar="NAME", help=DTYPE_HELP)]
Tiny = Annotated[
    bool, typer.Option("--tiny", help="The encoder all-MiniLM-L6-v2 instead: a minute.")
]
DemoOut = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="Folder to write. [default: bondwise-demo, or bondwise-demo-tiny]",
    ),
]
DemoDtype = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="What is stored and evaluated: auto (bfloat16, float32 with --tiny), float32, "
        "bfloat16 or float16.",
    ),
]
Full = Annotated[bool, typer.Option("--full", help="Every weight on a line of its own.")]
ModelOrRecipe = Annotated[
    str | None,
    typer.Argument(metavar="MODEL", help=f"{MODEL_HELP} Not needed with --recipe."),
]
OutOrNone = Annotated[Path | None, typer.Option(metavar="DIR", help="Folder to write.  [required]")]
Calibration = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="UTF-8 text to calibrate on; without it the fit knows only the weights, "
        "which costs far more quality.",
    ),
]
Unit = Annotated[
    str | None,
    typer.Option(
        metavar="UNIT",
        help="What keep counts: params, or with --data and format auto also bytes, macs (for a "
        "token) or modelled seconds. [default: params]",
    ),
]
Prefer = Annotated[
    str | None,
    typer.Option(
        metavar="WHAT",
        help="speed: nothing modelled slower than dense; size, quality: whatever it takes. "
        "[default: speed]",
    ),
]
Effort = Annotated[
    str | None,
    typer.Option(metavar="HOW", help="fast, or best: longer refinement. [default: fast]"),
]
WindowsOrNone = Annotated[
    int | None,
    typer.Option(parser=whole, metavar="N", help="Windows of the text, at most. [default: 64]"),
]
LengthOrNone = Annotated[
    int | None,
    typer.Option(parser=whole, metavar="N", help="Tokens of a window. [default: 256]"),
]
RecipeFile = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="A recipe.yaml to repeat; other flags change it."),
]
SeedOrNone = Annotated[
    int | None, typer.Option(parser=whole, metavar="N", help=f"{SEED_HELP} [default: 0]")
]
DeviceOrNone = Annotated[
    str | None, typer.Option(metavar="NAME", help=f"{DEVICE_HELP} [default: cpu]")
]
DtypeOrNone = Annotated[
    str | None,
    typer.Option(metavar="NAME", help=f"What is stored: {DTYPE_HELP} [default: auto]"),
]
Tensorized = Annotated[
    str,
    typer.Argument(metavar="DIR", help="A folder that compress wrote.", show_default=False),
]
Evaluated = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A folder that compress wrote, another Hugging Face folder, or a GGUF file.",
    ),
]
Prompt = Annotated[
    int,
    typer.Option(
        parser=whole,
        metavar="N",
        help="Tokens read at once: the prompt, or each text of an encoder.",
    ),
]
Written = Annotated[
    int,
    typer.Option(
        parser=whole, metavar="N", help="Tokens written after the prompt; an encoder writes none."
    ),
]
Repeats = Annotated[
    int,
    typer.Option(
        parser=whole, metavar="N", help="Timed runs of each model, after one that is not."
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        parser=whole,
        metavar="N",
        help="Threads of the processor. [default: as many as torch takes]",
    ),
]
HeldOut = Annotated[
    str, typer.Option(metavar="FILE", help="UTF-8 text, held out from calibration.")
]
Versus = Annotated[
    str | None, typer.Option(metavar="MODEL", help="The dense model to compare with.")
]
Windows = Annotated[int, typer.Option(parser=whole, metavar="N", help="Windows of the text.")]
Length = Annotated[
    int,
    typer.Option(
        parser=whole,
        metavar="N",
        help="Tokens of a window, at most as many as the model can take.",
    ),
]
Teacher = Annotated[
    str,
    typer.Option(metavar="MODEL", help="The dense model that the student was compressed from."),
]
Shown = Annotated[
    str,
    typer.Option(metavar="FILE", help="UTF-8 text to train on; its end is held out to judge on."),
]
Judged = Annotated[
    str | None, typer.Option(metavar="FILE", help="Another text to judge on, held out.")
]
TIME_HELP = "Time for it; after ten measured steps it becomes a number of steps. [default: 15m]"
Time = Annotated[
    float | None, typer.Option(parser=minutes, metavar="TIME", help=TIME_HELP, show_default=False)
]
HealFor = Annotated[
    float | None,
    typer.Option(
        parser=minutes,
        metavar="TIME",
        help="Train the result towards the dense model for so long, such as 15m.",
        show_default=False,
    ),
]
Rounds = Annotated[
    int,
    typer.Option(
        parser=whole, metavar="N", help="Smaller cuts, each healed before the next, with --heal."
    ),
]
HealSteps = Annotated[
    int | None,
    typer.Option(parser=whole, metavar="N", help="Steps in place of a time, of both stages."),
]
Local = Annotated[
    float | None,
    typer.Option(
        parser=fraction,
        metavar="SHARE",
        help="Of the time or steps, for training slices on their own first, where blocks were "
        "not refined yet; 0 to 1. [default: 0]",
    ),
]
Train = Annotated[
    list[str] | None,
    typer.Option(
        metavar="WHAT",
        help="What trains: all, cores, norms, or patterns of names; may be repeated. "
        "[default: all]",
    ),
]
Rate = Annotated[
    float | None,
    typer.Option(
        parser=fraction,
        metavar="RATE",
        help="Largest step for a dense weight; each core's follows from its shape. "
        "[default: 6e-5 sqrt(batch / 8)]",
    ),
]
Task = Annotated[
    float | None,
    typer.Option(
        parser=fraction,
        metavar="WEIGHT",
        help="Of the text itself in the loss, beside the teacher's weight of 1.",
    ),
]
HealBatch = Annotated[
    int | None, typer.Option(parser=whole, metavar="N", help="Windows of a step. [default: 2]")
]
Checkpointing = Annotated[
    bool,
    typer.Option(
        "--checkpointing", help="Compute activations twice: less memory, a third more time."
    ),
]
Track = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Write the curve there for TensorBoard as well."),
]
Corpus = Annotated[
    str, typer.Option(metavar="FILE", help="UTF-8 text that flows through the model.")
]
Page = Annotated[Path, typer.Option(metavar="FILE.html", help="Page to write.")]
ReadLayers = Annotated[
    list[str] | None,
    typer.Option(
        "--layer",
        metavar="PATTERN",
        help="Layers to read, as targets are written; may be repeated. [default: all]",
    ),
]
GaugeKind = Annotated[
    str,
    typer.Option(
        "--gauge",
        metavar="KIND",
        help="Basis in which bonds are followed: raw, canonical, whitened, varimax or ica.",
    ),
]
PerBond = Annotated[
    int,
    typer.Option(
        "--features", parser=whole, metavar="N", help="Indices of a bond that are followed."
    ),
]
Draws = Annotated[int, typer.Option(parser=whole, metavar="N", help="Draws of each null model.")]
Measure = Annotated[
    int,
    typer.Option(
        parser=whole,
        metavar="N",
        help="Indices that are left out one by one to see the loss itself.",
    ),
]
