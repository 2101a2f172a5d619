"""Compress and heal: at once, or in rounds of smaller cuts, each healed before the next.

A cut that is healed leaves a model that is easier to cut again: its weights have moved to where low
ranks hold them (Han et al. 2015 for pruning). Every round heals towards the same dense model.
"""

import json
import re
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bondwise.checkpoint.checkpoint import check_folder, save
from bondwise.checkpoint.loading import load_model
from bondwise.compress.compress import Report, check_recipe, compress, threads
from bondwise.compress.merge import merge
from bondwise.compress.recipe import Recipe, dtype
from bondwise.errors import BudgetError, CheckpointError
from bondwise.flow.text import read_text
from bondwise.heal.verb import Healer
from bondwise.progress import Progress, silent
from bondwise.report.page import finite
from bondwise.train.loop import Callback, no_callback
from bondwise.train.recipe import healing

ASKED = "asked.json"


@dataclass(frozen=True)
class Rounds:
    """A compression in one or several rounds, each healed.

    Attributes:
        recipe: of the whole: its keep is that of the last round.
        out: the folder to write. What is between stands in ``OUT.round-..`` beside it until the
            end, so that the same call goes on where it was cut off.
        minutes: for healing, shared evenly by the rounds.
        count: of rounds.
    """

    recipe: Recipe
    out: Path
    minutes: float
    count: int = 1

    @property
    def keeps(self) -> list[float]:
        """What each round keeps of the dense numbers: every cut takes the same share.

        >>> [round(keep, 3) for keep in Rounds(Recipe("m", keep=0.64), Path("o"), 1.0, 2).keeps]
        [0.8, 0.64]
        """
        cuts = range(1, self.count)
        return [*(self.recipe.keep ** (k / self.count) for k in cuts), self.recipe.keep]

    def run(
        self, *, overwrite: bool = False, progress: Progress = silent, tell: Callback = no_callback
    ) -> Report:
        """All rounds; the folder is left whole or not at all.

        Raises:
            BudgetError: no text to heal on, or fewer than one round.
            BondwiseError: anything else that a user can mend; ``out`` is then as it was.
        """
        if self.recipe.data is None:
            raise BudgetError("A time to heal came without a text; add --data FILE.")
        if self.count < 1:
            raise BudgetError(f"rounds={self.count} came; write a whole number of 1 or more.")
        check_recipe(self.recipe)
        healing(**self._choices)
        check_folder(self.out, overwrite)
        read_text(Path(self.recipe.data))
        self._check_left()
        model, report = self.recipe.model, Report()
        for at, keep in enumerate(self.keeps):
            last = at + 1 == self.count
            target = self.out if last else self._beside(at, "healed")
            if last or not target.exists():
                report = self._round(at, replace(self.recipe, model=model, keep=keep), target,
                                     overwrite, progress, tell)  # fmt: skip
            if not last:
                model = str(self._dense(at, target))
        self._forget()
        return report | {"source": self.recipe.model}

    @property
    def _choices(self) -> dict[str, Any]:
        return {"minutes": self.minutes / self.count, "seed": self.recipe.seed}

    def _check_left(self) -> None:
        """Forget what another call left, before anything is cut."""
        first = self._beside(0, "cut")
        if self._has(first):
            return
        state = self._state(self.out)
        if state.exists() and not first.exists():
            raise CheckpointError(
                f"{state} holds what another healing left; name another --out, or remove it."
            )
        shutil.rmtree(state, ignore_errors=True)  # of the call that made the cut
        self._forget()

    @property
    def _asked(self) -> str:
        return json.dumps([asdict(self.recipe), self.minutes, self.count])

    def _has(self, cut: Path) -> bool:
        """Whether a cut is there, whole and of this very call."""
        path = cut / ASKED
        return path.is_file() and path.read_text("utf-8") == self._asked

    def _forget(self) -> None:
        if not self.out.parent.is_dir():
            return
        ours = re.compile(re.escape(self.out.name) + r"\.round-\d+-(cut|healed|dense)(\.healing)?")
        for folder in self.out.parent.iterdir():
            if ours.fullmatch(folder.name):
                shutil.rmtree(folder, ignore_errors=True)

    def _round(
        self,
        at: int,
        recipe: Recipe,
        target: Path,
        overwrite: bool,
        progress: Progress,
        tell: Callback,
    ) -> Report:
        first = self._beside(at, "cut")
        if not self._has(first):
            report = compress(recipe, first, overwrite=True, progress=progress)
            report |= {"source": self.recipe.model, "steps": self._before(at) + report["steps"]}
            (first / "report.json").write_text(json.dumps(finite(report), indent=1), "utf-8")
            told = f"# healed, with --heal {self.minutes:g}m --rounds {self.count}\n"
            (first / "recipe.yaml").write_text(told + self.recipe.to_yaml(), "utf-8")
            (first / ASKED).write_text(self._asked, "utf-8")
        healer = Healer(
            str(first),
            self.recipe.model,
            str(self.recipe.data),
            target,
            device=recipe.device,
            dtype=dtype(recipe.dtype),
            called=str(self.out),
        )
        with threads(recipe.threads):
            return healer.run(self._choices, overwrite=overwrite, progress=progress, tell=tell)

    def _before(self, at: int) -> list[dict[str, Any]]:
        """What the rounds before took."""
        if not at:
            return []
        report = self._beside(at - 1, "healed") / "report.json"
        return json.loads(report.read_text("utf-8"))["steps"]

    def _dense(self, at: int, healed: Path) -> Path:
        """The healed model as a dense one, which the next round cuts."""
        target = self._beside(at, "dense")
        if not target.exists():
            loaded = load_model(healed, None, self.recipe.device)
            dense = merge(loaded.model, inplace=True)
            save(dense, target, tokenizer=loaded.tokenizer)
        return target

    def _state(self, target: Path) -> Path:
        return target.with_name(f"{target.name}.healing")

    def _beside(self, at: int, what: str) -> Path:
        return self.out.with_name(f"{self.out.name}.round-{at + 1}-{what}")
