"""The verbs that write a model, or say what they would: demo, plan, compress, heal, merge, .."""

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from bondwise.choices import FILE, MODEL, TIME, Switch
from bondwise.cli.show import print_json, teller
from bondwise.cli.verb import Code, Folder, Plain, Threads, Usual, Verb
from bondwise.compress.recipe import Cut, Recipe, chosen
from bondwise.errors import BudgetError
from bondwise.heal.folders import cut_folder, state_folder
from bondwise.progress import Bars
from bondwise.train.recipe import Healing

MINUTES = 15.0  # of healing, where neither a time nor steps are given
CUT_ALIKE = "cut alike; with --data, compress keeps more where errors cost more"
LEFT = "checkpoint, recipe.yaml, report.json and report.html"


@dataclass(frozen=True, kw_only=True)
class Demo(Plain):
    """Compress a real model and show what it cost.

    CREPE, a network that hears pitch, is cut to a tenth, healed on made tones, and judged on others
    beside itself and beside its authors' smallest: four minutes on two cores. All is fetched
    through pip and kept in the cache.
    """

    lm: Switch = False  # SmolLM2-135M on Wikipedia instead, in bfloat16: ten minutes.
    text: Switch = False  # The encoder all-MiniLM-L6-v2 instead: a minute or two.
    # A sound whose pitch is drawn on the page, as CREPE hears it before and after.
    wav: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    # Folder to write.
    out: Annotated[
        Path | None, arg(help_behavior_hint="(default: bondwise-demo, with -lm or -text)")
    ] = None
    # Fraction of the targeted numbers that stays.
    keep: Annotated[float | None, arg(help_behavior_hint="(default: 0.1; others 0.8)")] = None
    force: Switch = False  # Replace a folder that bondwise wrote.

    def run(self) -> None:
        """Fetch, compress, evaluate."""
        kind = self._kind()
        out = self.out or Path(f"bondwise-demo{kind}")
        with Bars(self.shared.quiet) as bars:
            report = self._report(kind, out, bars)
        self.show(report, *(["summary", "samples"] if kind else ["pitch"]))
        self.say(f"Wrote {out}: {LEFT}.")

    def _kind(self) -> str:
        """Which demo, as its folder ends."""
        if self.lm and self.text:
            raise BudgetError("--lm and --text came; write one of the two.")
        kind = "-lm" if self.lm else "-text" if self.text else ""
        if kind and self.wav is not None:
            raise BudgetError(f"--wav came with -{kind}, which hears nothing; leave one out.")
        return kind

    def _report(self, kind: str, out: Path, bars: Bars) -> dict[str, Any]:
        shared = self.shared
        usual: dict[str, Any] = {
            "seed": shared.seed, "device": shared.device, "dtype_name": shared.dtype,
            "overwrite": self.force, "progress": bars,
        }  # fmt: skip
        if self.keep is not None:
            usual["keep"] = self.keep
        if not kind:
            from bondwise.demo.hearing import pitch_demo

            return pitch_demo(out, wav=self.wav, tell=teller(bars), **usual)
        from bondwise.demo.run import language_demo, similarity_demo

        return (language_demo if kind == "-lm" else similarity_demo)(out, **usual)


@dataclass(frozen=True, kw_only=True)
class Plan(Cut, Plain):
    """Dry run: what every weight would become, and why not."""

    full: Switch = False  # Every weight on a line of its own.

    def run(self) -> None:
        """Read the model, and decide."""
        from bondwise.choose.dry_run import plan_model
        from bondwise.compress.compress import check_recipe

        check_recipe(chosen(None, **self.choices(Cut)))
        table = plan_model(
            self.load(self.model).model, self.keep, self.targets, self.ignore, self.format,
            self.protect, self.unit, self.measurements,
        )  # fmt: skip
        before, after = table.targeted
        report = {
            "source": self.model,
            "keep": table.keep,
            "kept": table.kept,
            "seed": self.shared.seed,
            "targeted": {"before": before, "after": after},
            "weights": [row.as_dict() for row in table],
            "notes": [*table.notes, *[CUT_ALIKE] * (self.format == "auto")],
        }
        self.show(report, "plan", full=self.full)


@dataclass(frozen=True, kw_only=True)
class Compress(Recipe, Verb):
    """Weights into tensor networks at a budget: a checkpoint.

    The folder also gets recipe.yaml, which repeats the run bit for bit, report.json and
    report.html.
    """

    # A Hugging Face folder, a GGUF file, package.module:attribute or an exported program (.pt2);
    # not needed with --recipe.
    model: Positional[Annotated[str, MODEL]] = ""
    out: Path  # Folder to write.
    recipe: Annotated[Path | None, FILE] = None  # A recipe.yaml to repeat; other flags change it.
    # Train the result towards the dense model for so long, such as 15m.
    heal: Annotated[float | None, TIME] = None
    force: Switch = False  # Replace a folder that bondwise wrote.

    @property
    def goes_on(self) -> bool:
        """Whether the cut is made, so that the same command goes on with healing it."""
        return self.heal is not None and cut_folder(self.out).exists()

    def run(self) -> None:
        """Compress, and heal where that is asked for."""
        from bondwise.compress.compress import compress
        from bondwise.heal.compress_and_heal import compress_and_heal

        todo = chosen(self.recipe, **self.choices(Recipe))
        with Bars(self.shared.quiet) as bars:
            if self.heal is None:
                report = compress(todo, self.out, overwrite=self.force, progress=bars)
            else:
                report = compress_and_heal(
                    todo, self.out, self.heal, self.force, bars, teller(bars)
                )
        self.show(report, "summary", *([] if self.heal is None else ["healing"]))
        self.say(f"Wrote {self.out}: {LEFT}.")
        for command in report["commands"][self.heal is None :]:
            self.say(f"Measure what it cost: {command}")


@dataclass(frozen=True, kw_only=True)
class Heal(Healing, Verb):
    """The lost quality back: train the networks towards the dense model.

    Where it is cut off (Ctrl-C, a crash), the same command goes on; the run is kept in OUT.healing
    until it is done.
    """

    folder: Folder  # A folder that compress wrote.
    teacher: Annotated[str, MODEL]  # The dense model that it was compressed from.
    # UTF-8 text to train on, or samples (.pt, .safetensors, .npy); the end is held out to judge on.
    data: Annotated[str, FILE]
    out: Path  # Folder to write.
    validation: Annotated[str | None, FILE] = None  # Another text to judge on, held out.
    code: Code = None
    track: Path | None = None  # Write the curve there for TensorBoard as well.
    force: Switch = False  # Replace a folder that bondwise wrote.
    device: str = "cpu"  # Where to compute: cpu, cuda, cuda:1, ..
    dtype: str = "auto"  # What is stored: auto (as it came), float32, bfloat16 or float16.

    @property
    def goes_on(self) -> bool:
        """Whether a state is on disk."""
        return state_folder(self.out).exists()

    def run(self) -> None:
        """Train, and write a folder."""
        from bondwise.heal.verb import Healer
        from bondwise.train.recipe import healing
        from bondwise.train.track import tracking

        kind = Usual(device=self.device, dtype=self.dtype).checked()
        choices = self.choices(Healing)
        if not choices.keys() & {"minutes", "steps"}:
            choices["minutes"] = MINUTES
        healer = Healer(
            self.folder, self.teacher, self.data, self.out, self.validation, self.device, kind,
            code=self.code,
        )  # fmt: skip
        recipe = healing(**choices)
        tracks = (
            nullcontext() if self.track is None else tracking("tensorboard", self.track, recipe)
        )
        with Bars(self.shared.quiet) as bars, tracks as also:
            tell = teller(bars, also)
            report = healer.run(choices, overwrite=self.force, progress=bars, tell=tell)
        self.show(report, "healing")
        left = LEFT if "targeted" in report else "the checkpoint and report.json"
        self.say(f"Wrote {self.out}: {left}, with the curve.")
        for command in report["commands"]:
            self.say(f"Measure what is left: {command}")


@dataclass(frozen=True, kw_only=True)
class Merge(Plain):
    """Back to dense weights, which load without bondwise."""

    folder: Folder  # A folder that compress wrote.
    out: Path  # Folder to write.
    code: Code = None
    force: Switch = False  # Replace a folder that bondwise wrote.

    def run(self) -> None:
        """Multiply every network out."""
        from bondwise.checkpoint.carry import look
        from bondwise.checkpoint.checkpoint import check_folder, save
        from bondwise.checkpoint.loading import check_source
        from bondwise.checkpoint.others import program_beside
        from bondwise.compress.merge import merge

        self.shared.checked()
        check_folder(self.out, self.force)
        check_source(self.folder, networks=True)
        loaded = self.load(self.folder, self.code)
        dense = merge(loaded.model, inplace=True)
        notes = [] if loaded.folder is None else look(loaded.folder, self.out).notes
        save(
            dense, self.out, tokenizer=loaded.tokenizer, source=loaded.folder,
            overwrite=self.force, code=loaded.code, extra=program_beside(dense),
        )  # fmt: skip
        self.say(f"Wrote {self.out}: dense weights that load without bondwise.")
        for note in notes:
            self.say(f"note: {note}")
        if self.shared.json:
            numbers = sum(parameter.numel() for parameter in dense.parameters())
            told = {"source": self.folder, "out": str(self.out), "seed": self.shared.seed}
            print_json(told | {"parameters": numbers, "notes": notes})


@dataclass(frozen=True, kw_only=True)
class Export(Plain):
    """A model as one ONNX file, tried and timed in onnxruntime.

    Encoders take any number of texts of any length, decoders write no cache. A model that reads no
    text takes what its samples are, any number of them. Nothing is written unless onnxruntime gives
    the same numbers as torch.
    """

    folder: Folder  # A folder that compress wrote, or any other MODEL.
    onnx: Annotated[Path, arg(metavar="FILE.onnx")]  # File to write.
    vs: Annotated[str | None, MODEL] = None  # The dense model to compare with.
    # Samples (.pt, .safetensors, .npy) for a model that reads no text.
    data: Annotated[str | None, FILE] = None
    code: Code = None
    length: int = 128  # Tokens of a text that is timed.
    repeats: int = 5  # Timed runs of each, after one that is not.
    threads: Threads = None  # Threads of the processor.
    force: Switch = False  # Replace the file.

    def run(self) -> None:
        """Write it, try it, measure."""
        from bondwise.bench.exported import Asked, export_beside
        from bondwise.bench.verb import check_numbers
        from bondwise.compress.compress import threads

        kind, shared = self.shared.checked(), self.shared
        if shared.device != "cpu":
            raise BudgetError(f"device={shared.device!r} came; write cpu: files are tried there.")
        check_numbers(threads=1 if self.threads is None else self.threads)
        asked = Asked(
            self.folder, self.vs, self.data, self.code, self.length, self.repeats, shared.seed, kind
        )
        with Bars(shared.quiet) as bars, threads(self.threads or 0):
            report = export_beside(asked, self.onnx, self.force, bars)
        self.show(report, "export")
        beside = f", its numbers in {report['data_file']}" if report["data_file"] else ""
        self.say(f"Wrote {self.onnx}{beside}.")
