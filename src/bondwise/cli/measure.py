"""The verbs that look at a model: read, eval, bench."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from bondwise.choices import FILE, MODEL, On, Patterns, Switch
from bondwise.cli.verb import Code, Folder, Plain, Threads
from bondwise.progress import Bars

ALL = arg(metavar="PATTERN", help_behavior_hint="(may be repeated; default: all)")


@dataclass(frozen=True, kw_only=True)
class Read(Plain):
    """A compressed model's bonds as a page: spectra, features, controls.

    One page that opens offline. Each bond has its spectrum beside null models, its indices as
    features over the text, and what leaving them out costs, from cheap guesses to the loss itself.
    """

    folder: Folder  # A folder that compress wrote.
    data: Annotated[str, FILE]  # UTF-8 text that flows through the model.
    out: Annotated[Path, arg(metavar="FILE.html")]  # Page to write.
    # Layers to read, as targets are written.
    layer: Annotated[Patterns, ALL] = ()
    # Basis in which bonds are followed: raw, canonical, whitened, varimax or ica.
    gauge: str = "canonical"
    features: int = 64  # Indices of a bond that are followed.
    draws: int = 20  # Draws of each null model.
    measure: int = 32  # Indices that are left out one by one to see the loss itself.
    windows: int = 32  # Windows of the text.
    length: int = 256  # Tokens of a window, at most as many as the model can take.
    force: Switch = False  # Replace the page.

    def run(self) -> None:
        """Read, and write the page."""
        from bondwise.read.verb import Reader

        kind = self.shared.checked()
        reader = Reader(
            self.folder, self.data, self.gauge, self.layer, self.windows, self.length,
            self.features, self.draws, self.measure,
            seed=self.shared.seed, device=self.shared.device, dtype=kind,
        )  # fmt: skip
        with Bars(self.shared.quiet) as bars:
            report = reader.write(self.out, overwrite=self.force, progress=bars)
        self.show(report, "reading")
        self.say(f"Wrote {self.out}: one page, which opens offline.")


@dataclass(frozen=True, kw_only=True)
class Eval(Plain):
    """Perplexity on a text, or outputs on samples, beside another model.

    With --vs also KL divergence and top-1 agreement with that model. Of models that read no text,
    the relative error of the outputs towards that model's, and how often both say the same class.
    """

    # A folder that compress wrote, or any other MODEL.
    model: Positional[Annotated[str, MODEL]]
    # UTF-8 text, or samples (.pt, .safetensors, .npy), held out from calibration.
    data: Annotated[str, FILE]
    vs: Annotated[str | None, MODEL] = None  # The dense model to compare with.
    code: Code = None
    windows: int = 64  # Windows of the text.
    length: int = 512  # Tokens of a window, at most as many as the model can take.

    def run(self) -> None:
        """Measure."""
        from bondwise.evaluate.verb import evaluate

        kind, shared = self.shared.checked(), self.shared
        drawn = (self.windows, self.length, shared.seed)
        with Bars(shared.quiet) as bars:
            report = evaluate(
                self.model, self.data, self.vs, drawn, shared.device, kind, bars, self.code
            )
        self.show(report, "evaluation")


@dataclass(frozen=True, kw_only=True)
class Bench(Plain):
    """Speed as built and prepared, and memory, beside another model.

    Tokens per second, time to first token, memory and multiplications. With --vs both models run in
    turns: decoding at batch 1 and the prefill of a prompt, or for encoders one text and eight at a
    time. Of models that read no text: samples per second, of one sample and of eight. With
    --measurements the seconds of layers are kept for compress --unit seconds: of a dense model
    those of its weights in many formats and ranks, in some minutes.
    """

    folder: Folder  # A folder that compress wrote, or a dense model.
    vs: Annotated[str | None, MODEL] = None  # The dense model to compare with.
    # Samples (.pt, .safetensors, .npy) for a model that reads no text.
    data: Annotated[str | None, FILE] = None
    code: Code = None
    prompt: int = 256  # Tokens read at once: the prompt, or each text of an encoder.
    tokens: int = 32  # Tokens written after the prompt; an encoder writes none.
    repeats: int = 5  # Timed runs of each model, after one that is not.
    threads: Threads = None  # Threads of the processor.
    # Make the model ready for this machine, and show it beside itself as built.
    prepare: On = True
    # Where the seconds of prepared layers are written; they join what is there.
    measurements: Annotated[Path | None, FILE] = None
    # Put the result on the page of the folder, report.html, and into its report.json.
    page: Switch = False

    def run(self) -> None:
        """Measure."""
        from bondwise.bench.onto import put, report_of
        from bondwise.bench.prepared import Serving
        from bondwise.bench.run import Load
        from bondwise.bench.samples import Asked, bench_samples
        from bondwise.bench.verb import bench, check_numbers
        from bondwise.checkpoint.others import is_other
        from bondwise.compress.compress import threads

        kind, shared = self.shared.checked(), self.shared
        check_numbers(threads=1 if self.threads is None else self.threads)
        load, place = Load(self.prompt, self.tokens, shared.seed), (shared.device, kind)
        serving = Serving(self.prepare, self.measurements)
        if self.page:
            report_of(self.folder)  # before what takes time
        with Bars(shared.quiet) as bars, threads(self.threads or 0):
            if self.data is not None or is_other(self.folder):
                asked = Asked(self.folder, self.vs, self.data, self.code, shared.seed)
                report = bench_samples(asked, self.repeats, *place, bars, serving)
            else:
                report = bench(self.folder, self.vs, load, self.repeats, *place, bars, serving)
        self.show(report, "benchmark")
        if self.page:
            self.say(f"On the page {put(report, self.folder)}.")
