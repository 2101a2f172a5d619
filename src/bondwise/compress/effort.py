"""How much work a block is worth: what is drawn, tried and refined at each effort."""

from dataclasses import dataclass

from bondwise.choose.candidates import COLUMNS, EXACT
from bondwise.topology import registry


@dataclass(frozen=True)
class Effort:
    """How much work a block is worth.

    Attributes:
        drawn: windows that a language model draws itself, for each that is given.
        steps: of refinement.
        rate: its largest step.
        every: sensitivities are measured in every so many blocks.
        alphas: powers of the sensitivities to try; the best by held-out output is taken.
        exact: formats whose curves are in closed form, one decomposition for all ranks.
        formats: topologies to try beside them; each takes fits of its own.
    """

    drawn: int
    steps: int
    rate: float
    every: int
    alphas: tuple[float, ...]
    exact: tuple[str, ...]
    formats: tuple[str, ...]


EFFORT = {
    "fast": Effort(
        drawn=1,
        steps=64,
        rate=1e-3,
        every=4,
        alphas=(1.0,),
        exact=EXACT,
        formats=registry.scouted("fast"),
    ),
    "best": Effort(
        drawn=3,
        steps=160,
        rate=1e-3,
        every=2,
        alphas=(0.75, 1.0, 1.25),
        exact=(*EXACT, COLUMNS),
        formats=registry.scouted("best"),
    ),
}
