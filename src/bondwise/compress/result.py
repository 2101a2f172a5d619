"""A tensorized model, the table of what changed, and what each step took."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import Any

from torch import nn

from bondwise.choose.table import Table
from bondwise.compress.refine import Refined


@dataclass(frozen=True)
class Result:
    """A tensorized model, the table of what changed, and what each step took.

    ``result.report()`` is the same as plain data, ready for JSON.
    """

    model: nn.Module
    table: Table
    seed: int
    steps: Sequence[Mapping[str, Any]]
    before: Mapping[str, int]
    after: Mapping[str, int]
    blocks: Mapping[str, Refined] = field(default_factory=dict[str, Refined])

    def report(self) -> dict[str, Any]:
        """What was asked, what was reached, and every weight, as plain data."""
        targeted = self.table.targeted
        return {
            "bondwise": version("bondwise"),
            "keep": self.table.keep,
            "kept": self.table.kept,
            "seed": self.seed,
            "targeted": {"before": targeted[0], "after": targeted[1]},
            "parameters": {"before": self.before["numbers"], "after": self.after["numbers"]},
            "weights": [row.as_dict() for row in self.table],
            "blocks": [{"name": name, **asdict(found)} for name, found in self.blocks.items()],
            "notes": list(self.table.notes),
            "steps": [dict(step) for step in self.steps],
        }
