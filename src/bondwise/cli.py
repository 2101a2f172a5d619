"""The command line: one verb per job, errors in one sentence, exit code 0 done, 1 failed, 2 wrong usage."""

import errno
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from bondwise.errors import (
    BondwiseError,
    BudgetError,
    DataError,
    NetworkError,
    SelectionError,
    ShapeError,
)

app = typer.Typer(
    name="bondwise",
    help="The dense weights of a PyTorch model as tensor networks: smaller, faster, readable.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

WRONG_USAGE = (BudgetError, DataError, NetworkError, SelectionError, ShapeError)

Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="A Hugging Face folder or a GGUF file.")
]
Keep = Annotated[
    float | None, typer.Option(help="Fraction of the targeted numbers that stays. [default: 0.8]")
]
Targets = Annotated[
    list[str] | None,
    typer.Option(help="What to change: linear, embedding, a class, path, glob or re:.."),
]
Ignore = Annotated[
    list[str] | None, typer.Option(help="What to leave alone, on top of head, ties and routers.")
]
Format = Annotated[
    str | None,
    typer.Option(help="auto, lowrank, mpo, ring, tucker, cp, btt, tree, kron or an einsum."),
]
Out = Annotated[Path, typer.Option(help="Folder to write.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="No progress bars.")]
Force = Annotated[bool, typer.Option(help="Replace a folder that bondwise wrote.")]
Seed = Annotated[int, typer.Option(help="Seed of every random choice.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, ..")]
Dtype = Annotated[str, typer.Option(help="auto (as stored), float32, bfloat16 or float16.")]


@app.command()
def demo(
    tiny: Annotated[bool, typer.Option(help="all-MiniLM-L6-v2 instead of SmolLM2-135M.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="Folder to write. [default: bondwise-demo]")
    ] = None,
    keep: Keep = None,
    force: Force = False,
    seed: Seed = 0,
    device: Device = "cpu",
    dtype: Annotated[str, typer.Option(help="Stored and evaluated in this.")] = "auto",
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Compress a real language model on real text, and show what it cost."""
    from bondwise.demo.run import language_demo, similarity_demo
    from bondwise.progress import Bars

    job = similarity_demo if tiny else language_demo
    folder = out or Path("bondwise-demo-tiny" if tiny else "bondwise-demo")
    with Bars(quiet) as bars:
        report = job(
            folder,
            keep or 0.8,
            seed=seed,
            device=device,
            dtype=dtype,
            overwrite=force,
            progress=bars,
        )
    _show(report, json_, "summary", "samples")
    _say(f"Wrote {folder}: the checkpoint, recipe.yaml, report.json and report.html.", json_)


@app.command()
def plan(
    model: Model,
    keep: Keep = None,
    targets: Targets = None,
    ignore: Ignore = None,
    format: Format = None,  # noqa: A002
    full: Annotated[bool, typer.Option(help="Every weight on a line of its own.")] = False,
    seed: Seed = 0,
    device: Device = "cpu",
    dtype: Dtype = "auto",
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Dry run: every parameter, what it would become, and why the rest is left alone."""
    from bondwise.compress import dtype as named
    from bondwise.huggingface.loading import load_model
    from bondwise.model.tensorize import plan_model

    loaded = load_model(model, named(dtype), device)
    table = plan_model(
        loaded.model, keep or 0.8, targets or "linear", ignore or (), format or "auto"
    )
    before, after = table.targeted
    report = {
        "source": model,
        "keep": table.keep,
        "kept": table.kept,
        "seed": seed,
        "targeted": {"before": before, "after": after},
        "weights": [row.as_dict() for row in table],
        "notes": list(table.notes),
    }
    _show(report, json_, "plan", full=full)


@app.command()
def compress(
    model: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="A Hugging Face folder or a GGUF file.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write.")] = None,
    data: Annotated[str | None, typer.Option(help="UTF-8 text to calibrate on.")] = None,
    keep: Keep = None,
    targets: Targets = None,
    ignore: Ignore = None,
    format: Format = None,  # noqa: A002
    unit: Annotated[
        str | None, typer.Option(help="params (bytes, macs and seconds come later).")
    ] = None,
    prefer: Annotated[str | None, typer.Option(help="speed, size or quality.")] = None,
    effort: Annotated[str | None, typer.Option(help="fast or best.")] = None,
    windows: Annotated[int | None, typer.Option(help="Windows of the text. [default: 64]")] = None,
    length: Annotated[int | None, typer.Option(help="Tokens of a window. [default: 256]")] = None,
    recipe: Annotated[
        Path | None, typer.Option(help="A recipe.yaml to repeat; other flags change it.")
    ] = None,
    force: Force = False,
    seed: Annotated[int | None, typer.Option(help="Seed of every random choice.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ..")] = None,
    dtype: Annotated[str | None, typer.Option(help="auto, float32, bfloat16 or float16.")] = None,
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Turn a model's weights into tensor networks at a budget, and write a checkpoint."""
    from bondwise.compress import compress as run
    from bondwise.model.recipe import chosen
    from bondwise.progress import Bars

    if out is None:
        raise BudgetError("No output folder came; add --out DIR.")
    todo = chosen(
        recipe,
        model=model,
        data=data,
        keep=keep,
        targets=targets,
        ignore=ignore,
        format=format,
        unit=unit,
        prefer=prefer,
        effort=effort,
        seed=seed,
        windows=windows,
        length=length,
        dtype=dtype,
        device=device,
    )
    with Bars(quiet) as bars:
        report = run(todo, out, overwrite=force, progress=bars)
    _show(report, json_, "summary")
    _say(f"Wrote {out}: the checkpoint, recipe.yaml, report.json and report.html.", json_)


@app.command()
def merge(
    folder: Annotated[str, typer.Argument(metavar="DIR", help="A folder that compress wrote.")],
    out: Out,
    force: Force = False,
    seed: Seed = 0,
    device: Device = "cpu",
    dtype: Dtype = "auto",
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Multiply every network out: dense weights that load without bondwise."""
    from bondwise.compress import dtype as named
    from bondwise.huggingface.loading import load_model
    from bondwise.model.checkpoint import check_folder, save
    from bondwise.model.tensorize import merge as multiply

    check_folder(out, force)
    loaded = load_model(folder, named(dtype), device)
    save(multiply(loaded.model, inplace=True), out, tokenizer=loaded.tokenizer, overwrite=force)
    _say(f"Wrote {out}: dense weights that load without bondwise.", json_)
    if json_:
        _print_json({"source": folder, "out": str(out), "seed": seed})


@app.command("eval")
def evaluate(
    model: Annotated[
        str, typer.Argument(metavar="DIR|MODEL", help="A Hugging Face folder or a GGUF file.")
    ],
    data: Annotated[str, typer.Option(help="UTF-8 text, held out from calibration.")],
    vs: Annotated[str | None, typer.Option(help="The dense model to compare with.")] = None,
    windows: Annotated[int, typer.Option(help="Windows of the text.")] = 64,
    length: Annotated[int, typer.Option(help="Tokens of a window.")] = 512,
    seed: Seed = 0,
    device: Device = "cpu",
    dtype: Dtype = "auto",
    json_: Json = False,
    quiet: Quiet = False,
) -> None:
    """Perplexity on a text; with --vs also KL divergence and top-1 agreement with the dense model."""
    from bondwise.compress import dtype as named
    from bondwise.evaluate.verb import evaluate as run
    from bondwise.progress import Bars

    with Bars(quiet) as bars:
        report = run(model, data, vs, (windows, length, seed), device, named(dtype), bars)
    _show(report, json_, "evaluation")


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point: runs a verb and turns every error that a user can mend into one sentence."""
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING)
    command = typer.main.get_command(app)
    try:
        code = command.main(
            args=None if arguments is None else list(arguments),
            prog_name="bondwise",
            standalone_mode=False,
        )
    except KeyboardInterrupt:
        _fail("Stopped by Ctrl-C; nothing was left half-written.", 1)
    except BondwiseError as error:
        _fail(str(error), 2 if isinstance(error, WRONG_USAGE) else 1)
    except OSError as error:
        _fail(_disk(error), 1)
    except Exception as error:
        if not hasattr(error, "format_message"):
            raise
        if type(error).__name__ == "Abort":
            _fail("Stopped by Ctrl-C; nothing was left half-written.", 1)
        _fail(f"{error.format_message()} See bondwise --help.", 2)
    else:
        sys.exit(code or 0)


def _fail(sentence: str, code: int) -> None:
    Console(stderr=True, highlight=False, soft_wrap=True).print(
        f"[red]bondwise:[/] {escape(sentence)}"
    )
    sys.exit(code)


def _disk(error: OSError) -> str:
    if error.errno == errno.ENOSPC:
        return "The disk is full; free some space and run it again (nothing was left half-written)."
    return f"{error.strerror or error} ({error.filename}); nothing was left half-written."


def _show(report: dict[str, Any], as_json: bool, *views: str, full: bool = False) -> None:
    if as_json:
        _print_json(report)
        return
    from bondwise.report import table

    shown = {
        "summary": lambda: table.summary(report),
        "samples": lambda: table.samples(report),
        "plan": lambda: table.plan_table(report, full=full),
        "evaluation": lambda: table.evaluation(report),
    }
    for view in views:
        sys.stdout.write(table.render(shown[view]()))
    for note in report.get("notes", ()):
        _say(f"Note: {note}", as_json)


def _say(text: str, as_json: bool) -> None:
    print(text, file=sys.stderr if as_json else sys.stdout)


def _print_json(report: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(report) + "\n")


if __name__ == "__main__":
    main()
