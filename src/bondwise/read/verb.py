"""What `bondwise read` does: a model and a text -> its bonds, with controls, as one page."""

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bondwise.checkpoint.loading import load_model, reader
from bondwise.checkpoint.others import is_other
from bondwise.choose.select import matches
from bondwise.errors import BudgetError, CheckpointError, DataError, SelectionError, optional
from bondwise.flow.data import checked
from bondwise.flow.text import Corpus, corpus, read_text
from bondwise.flow.watch import collect, in_turns
from bondwise.layers.linear import TensorLinear
from bondwise.progress import Progress, silent
from bondwise.read.bonds import BLOCKS, CUT, Bond, bonds, nearest
from bondwise.read.features import features, input_moments
from bondwise.read.gauge import KINDS, LEAST, Gauge, gauge
from bondwise.read.importance import importance
from bondwise.read.reading import Found, reading
from bondwise.read.spectra import spectra
from bondwise.report.reading import write_reading

SAMPLES = 16384  # inputs of a layer that a gauge is chosen by, at most
WITHOUT_DATA = ("raw", "canonical")


@dataclass(frozen=True)
class Reader:
    """One reading of a folder.

    Attributes:
        source: the folder.
        data: a UTF-8 text.
        kind: the gauge whose values are followed as features.
        names: patterns of the layers to read; none for all.
        windows: of the text.
        length: tokens of a window.
        per_bond: values of a bond that are followed, those that add most to the output.
        draws: of each null.
        measure: values that are left out one by one to see the loss itself, over the whole model.
        measure_on: windows on which that is seen.
        seed: of windows, nulls and starts.
        device: where to compute.
        dtype: of the model; None for that of the folder.
    """

    source: str
    data: str
    kind: str = "canonical"
    names: tuple[str, ...] = ()
    windows: int = 32
    length: int = 256
    per_bond: int = 64
    draws: int = 20
    measure: int = 32
    measure_on: int = 4
    seed: int = 0
    device: str = "cpu"
    dtype: torch.dtype | None = None

    def check(self) -> None:
        """Refuse what cannot be done before anything is read.

        Raises:
            SelectionError: no such gauge.
            BudgetError: a number outside its range.
            MissingExtraError: scipy or scikit-learn is not installed.
        """
        optional("sklearn", "read")  # brings scipy
        if self.kind not in KINDS:
            raise SelectionError(f"Gauge {self.kind!r} came; write one of {', '.join(KINDS)}.")
        least = {"windows": 1, "length": 2, "per_bond": 1, "draws": 2, "measure": 0}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise BudgetError(f"{name}={getattr(self, name)} came; write {low} or more.")

    def write(
        self, page: Path, *, overwrite: bool = False, progress: Progress = silent
    ) -> dict[str, Any]:
        """The reading, left as one page that opens offline.

        Raises:
            BondwiseError: anything a user can mend; there is then no page.
        """
        check_page(page, overwrite)
        report = self.run(progress)
        write_reading(report, page)
        return report

    def run(self, progress: Progress = silent) -> dict[str, Any]:
        """The reading, as `bondwise.report.reading` takes it.

        Raises:
            BondwiseError: anything a user can mend.
        """
        self.check()
        if is_other(self.source):
            raise DataError(
                f"{self.source} reads no text, over which bonds are followed here; take its bonds "
                "in Python, as bondwise.read.bonds(model)."
            )
        text = read_text(Path(self.data))
        progress("load", 0, 1)
        loaded = load_model(self.source, self.dtype, self.device)
        tokenizer = reader(loaded, self.source)
        progress("load", 1, 1)
        model = loaded.model
        own = self._bonds(model)
        shown = corpus(model, tokenizer, text, self.windows, self.length, self.seed)
        checked(model, shown.batches[:1])
        report = self.read(model, own, shown, tokenizer, progress)
        notes = [*loaded.notes, *report.pop("notes")]
        return report | {"notes": notes}

    def read(
        self,
        model: nn.Module,
        own: Sequence[Bond],
        shown: Corpus,
        tokenizer: Any,
        progress: Progress = silent,
    ) -> dict[str, Any]:
        """The reading of a model that is loaded, of a corpus that is drawn."""
        batches = [ids.to(self.device) for ids in shown.batches]
        names = list(dict.fromkeys(b.layer for b in own))
        seen = {(s.layer, s.bond): s for s in self._spectra(model, names, progress)}
        progress("moments", 0, 1)
        moments = input_moments(model, names, batches)
        progress("moments", 1, 1)
        reached = [b for b in own if b.layer in moments]
        found = self._gauges(model, reached, batches, progress)
        read = [kinds[_best(kinds, self.kind)] for kinds in found]
        followed = features(
            model,
            [g.bond for g in read],
            batches,
            per_bond=self.per_bond,
            moments=moments,
            progress=progress,
        )
        ladder, agreement = importance(
            model,
            [g.bond for g in read],
            list(shown.ids[: self.measure_on].to(self.device).split(1)),  # logits are large
            moments,
            measure=self.measure,
            seed=self.seed,
            progress=progress,
        )
        parts = zip(reached, found, read, followed, ladder, strict=True)
        everything = [
            Found(seen[bond.layer, bond.name], kinds, g.kind, streamed, rungs)
            for bond, kinds, g, streamed, rungs in parts
        ]
        report = reading(model, everything, shown, tokenizer, agreement)
        missed = [b.layer for b in own if b.layer not in moments]
        notes = [f"no token reached {name}" for name in dict.fromkeys(missed)]
        notes += [
            f"bond {bond.name} of {bond.layer} is read in its {g.kind} gauge, for want of "
            f"{'tokens' if bond.kind == CUT else 'another'}"
            for bond, g in zip(reached, read, strict=True)
            if g.kind != self.kind
        ]
        return report | {
            "bondwise": version("bondwise"),
            "model": Path(self.source).name,
            "source": self.source,
            "seed": self.seed,
            "command": self.command,
            "measured": agreement.measured,
            "notes": notes,
        }

    @property
    def command(self) -> str:
        """What repeats it."""
        names = "".join(f" --layer {shlex.quote(name)}" for name in self.names)
        return (
            f"bondwise read {shlex.quote(self.source)} --data {shlex.quote(self.data)}{names} "
            f"--gauge {self.kind} --windows {self.windows} --length {self.length} "
            f"--features {self.per_bond} --draws {self.draws} --measure {self.measure} "
            f"--seed {self.seed} --out PAGE.html"
        )

    def _bonds(self, model: nn.Module) -> list[Bond]:
        """The bonds of the linear layers that are meant.

        Raises:
            SelectionError: nothing tensorized, or nothing that a name means.
        """
        every = [b for b in bonds(model) if isinstance(model.get_submodule(b.layer), TensorLinear)]
        known = {b.layer: model.get_submodule(b.layer) for b in every}
        meant = set[str]()
        for name in self.names:
            found = {path for path, layer in known.items() if matches(name, path, layer)}
            if not found:
                raise SelectionError(
                    f"Layer {name!r} came; no tensorized layer is meant by it: "
                    f"{nearest(name, known)}."
                )
            meant |= found
        return [b for b in every if b.layer in meant] if self.names else every

    def _spectra(self, model: nn.Module, names: Sequence[str], progress: Progress) -> Any:
        return spectra(
            model, names=list(names), draws=self.draws, seed=self.seed, progress=progress
        )

    def _gauges(
        self, model: nn.Module, own: Sequence[Bond], batches: Any, progress: Progress
    ) -> list[dict[str, Gauge]]:
        """Each bond in the gauges that are shown; those that need data in turns."""
        found = [self._without_data(bond) for bond in own]
        kinds = [
            kind for kind in dict.fromkeys(("whitened", self.kind)) if kind not in WITHOUT_DATA
        ]
        cuts = [k for k, bond in enumerate(own) if bond.kind == CUT]
        widths = {own[k].layer: own[k].network.shape[1] for k in cuts}
        enough = sum(ids.numel() for ids in batches)
        limit = min(SAMPLES, enough)
        done = 0
        for group in in_turns(widths, limit) if cuts else []:
            x = collect(model, group, batches, limit)
            for k in (k for k in cuts if own[k].layer in group):
                progress("gauges", done, len(cuts))
                done += 1
                if LEAST * own[k].size <= len(x[own[k].layer]):
                    for kind in kinds:
                        found[k][kind] = gauge(own[k], kind, data=x[own[k].layer], seed=self.seed)
        progress("gauges", len(cuts), max(1, len(cuts)))
        return found

    def _without_data(self, bond: Bond) -> dict[str, Gauge]:
        kinds = ("raw", "canonical") if bond.kind in (CUT, BLOCKS) else ("raw",)
        return {kind: gauge(bond, kind) for kind in kinds}


def check_page(path: Path, overwrite: bool) -> None:
    """Refuse a page that cannot be written, before anything is read.

    Raises:
        CheckpointError: something is there already, or there is no folder for it.
    """
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder; give the name of a page, such as page.html.")
    if path.exists() and not overwrite:
        raise CheckpointError(f"{path} is there already; add --force to replace it.")
    folder = path.resolve().parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise CheckpointError(f"{folder} cannot be written to; make it, or give another place.")


def _best(kinds: dict[str, Gauge], asked: str) -> str:
    """The gauge asked for, or the nearest that the bond has."""
    return next(kind for kind in (asked, "canonical", "raw") if kind in kinds)
