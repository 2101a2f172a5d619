"""What `bondwise heal` does: a folder of networks and its teacher -> a healed folder."""

import json
import shlex
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from bondwise.checkpoint.carry import look
from bondwise.checkpoint.checkpoint import check_folder, save
from bondwise.checkpoint.loading import Loaded, check_source, load_model, no_networks, reader
from bondwise.checkpoint.others import is_other, named_code, shown
from bondwise.compress.compress import looked_at
from bondwise.errors import DataError
from bondwise.heal.folders import state_folder
from bondwise.heal.heal import heal
from bondwise.heal.run import Healed
from bondwise.layers.module import TensorLayer
from bondwise.progress import Progress, Steps, silent
from bondwise.report.page import page
from bondwise.train.loop import Callback, Entry, no_callback
from bondwise.train.recipe import healing

Report = dict[str, Any]
SAYS = {"bondwise", "source", "targeted", "bytes", "notes", "seed"}  # whatever a report holds
STALE = ("evaluation", "similarity", "samples", "commands")  # said of what it was before


@dataclass(frozen=True)
class Healer:
    """One healing of a folder.

    Attributes:
        student: the folder.
        teacher: a folder or a GGUF file of the dense model.
        data: a UTF-8 text to train on, or a file of samples; its end is held out where
            ``validation`` is None.
        out: the folder to write. While it is healed the run is kept in ``OUT.healing`` beside it.
        validation: another text to judge on.
        device: where to compute.
        dtype: what is written; None for that of the student.
        code: what makes the model of a student that code made; None for the teacher, where it is
            code.
        called: what the student is called, and its steps are told as well, where its folder is a
            part of the same work and does not stay.
    """

    student: str
    teacher: str
    data: str
    out: Path
    validation: str | None = None
    device: str = "cpu"
    dtype: torch.dtype | None = None
    called: str = ""
    code: str | None = None

    @property
    def state(self) -> Path:
        """Where the run is kept until it is done."""
        return state_folder(self.out)

    def run(
        self,
        choices: Mapping[str, Any],
        *,
        overwrite: bool = False,
        progress: Progress = silent,
        tell: Callback = no_callback,
    ) -> Report:
        """Heal, and leave the folder whole or not at all; started again, it goes on.

        Args:
            choices: fields of `bondwise.train.recipe.Healing`.
            overwrite: whether a folder of ours may be replaced.
            progress: is told a stage, what is done and what there is.
            tell: is told each entry of the history.

        Raises:
            BondwiseError: anything a user can mend; the folder is then as it was.
        """
        choices = {name: value for name, value in choices.items() if value is not None}
        data, judged = self._checked(choices, overwrite)
        report, steps = self._report(), Steps()
        done = report.pop("steps", [])
        steps.done.extend(done if self.called else [])
        with steps("load"):
            progress("load", 0, 1)
            loaded = self._student()
            tokenizer = reader(loaded, self.student) if isinstance(data, Path) else None
            data, judged = (_shown(loaded.model, each) for each in (data, judged))
            progress("load", 1, 1)
        with steps("heal"):
            healed = heal(
                loaded.model,
                lambda: self._teacher(tokenizer),
                data,
                tokenizer=tokenizer,
                validation=judged,
                state=self.state,
                inplace=True,
                progress=progress,
                tell=tell,
                **choices,
            )
        report["healing"] = told(healed, self.called or self.student, self.teacher, self.data)
        report = self._write(healed.model, report, loaded, steps, overwrite)
        shutil.rmtree(self.state, ignore_errors=True)
        return report

    def _checked(self, choices: Mapping[str, Any], overwrite: bool) -> tuple[Any, Any]:
        """The texts or samples, once all was looked at that can be without the models."""
        healing(**choices)
        check_folder(self.out, overwrite)
        data = looked_at(self.data)
        judged = None if self.validation is None else looked_at(self.validation)
        if judged is not None and isinstance(data, Path) != isinstance(judged, Path):
            raise DataError(
                f"{self.data} and {self.validation} came, a text and samples; give two of one kind."
            )
        check_source(self.student, text=isinstance(data, Path), networks=True)
        check_source(self.teacher)
        if Path(self.student).absolute() == Path(self.teacher).absolute():
            raise DataError(
                f"{self.student} came as student and as teacher; give the dense model that it was "
                "made from as the teacher."
            )
        return data, judged

    def _student(self) -> Loaded:
        code = self.code or named_code(self.teacher)
        loaded = load_model(self.student, None, self.device, code=code)
        if not any(isinstance(module, TensorLayer) for module in loaded.model.modules()):
            raise no_networks(self.student)
        return loaded

    def _teacher(self, tokenizer: Any) -> nn.Module:
        """The teacher, if it reads text as the student does."""
        loaded = load_model(self.teacher, None, self.device, code=self.code)
        theirs = loaded.tokenizer
        if (
            theirs is not None
            and tokenizer is not None
            and theirs.get_vocab() != tokenizer.get_vocab()
        ):
            raise DataError(
                f"{self.student} knows {len(tokenizer.get_vocab()):,} tokens and {self.teacher} "
                f"{len(theirs.get_vocab()):,}, not the same ones; give the model that it was "
                "compressed from."
            )
        return loaded.model

    def _write(
        self,
        model: nn.Module,
        report: Report,
        loaded: Loaded,
        steps: Steps,
        overwrite: bool,
    ) -> Report:
        if self.dtype is not None:
            for p in model.parameters():
                p.data = p.data.to(self.dtype) if p.is_floating_point() else p.data
        vs, folder = shlex.quote(self.teacher), shlex.quote(str(self.out))
        measures = f"bondwise eval {folder} --vs {vs} --data FILE"
        head = getattr(model, "get_output_embeddings", lambda: None)()
        told = head is not None or is_other(self.teacher)
        report |= {"steps": list(steps.done), "commands": [measures] if told else []}
        if loaded.folder is not None:
            report["notes"] = [*report.get("notes", []), *look(loaded.folder, self.out).notes]

        def beside(made: Path) -> dict[str, str]:
            stored = report.get("bytes")
            if stored:
                stored["after"] = sum(f.stat().st_size for f in made.glob("*.safetensors"))
            texts = {"report.json": json.dumps(report, indent=1, allow_nan=False)}
            recipe = Path(self.student) / "recipe.yaml"
            if recipe.is_file():
                texts["recipe.yaml"] = recipe.read_text("utf-8")
            return texts | ({"report.html": page(report)} if "targeted" in report else {})

        with steps("save"):
            save(
                model, self.out, tokenizer=loaded.tokenizer, source=loaded.folder, extra=beside,
                overwrite=overwrite, code=loaded.code,
            )  # fmt: skip
        return report | {"steps": steps.done, "source": self.student}

    def _report(self) -> Report:
        """What was said of the student, as far as it stands when it is healed."""
        path = Path(self.student) / "report.json"
        if not path.is_file():
            return {}
        try:
            found = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError):
            found = None
        if not isinstance(found, dict) or not found.keys() >= SAYS:
            return {"notes": [f"{path} is no report of a compression, and is left out"]}
        return {k: v for k, v in cast(Report, found).items() if k not in STALE}


def told(healed: Healed, student: str, teacher: str, data: str) -> Report:
    """A healing as reports hold it.

    Args:
        healed: what came of it.
        student: its name.
        teacher: its name.
        data: what was learned on, in words or as a path.
    """
    return {
        "student": student,
        "teacher": teacher,
        "data": data,
        "recipe": healed.recipe.to_json(),
        "measured": healed.measured,
        "before": healed.before,
        "after": healed.after,
        "steps": healed.steps,
        "history": [_finite(entry) for entry in healed.history],
        "notes": list(healed.notes),
    }


def _shown(model: nn.Module, data: Any) -> Any:
    """Samples as a model takes them; a text as it is."""
    return data if data is None or isinstance(data, Path) else shown(model, data)


def _finite(entry: Entry) -> Entry:
    """A line of a history without numbers that JSON lacks: a perplexity may overflow."""
    return {name: value if isfinite(value) else None for name, value in entry.items()}
