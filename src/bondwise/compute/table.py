"""A plan as a table of 80 columns."""

from collections.abc import Sequence
from math import prod
from textwrap import fill, shorten

from bondwise.compute.lower import Step
from bondwise.network.network import Network

WIDTH = 80


def table(
    net: Network, batch: int, goal: str, steps: Sequence[Step], chunk: int | None = None
) -> str:
    """One line a step: its operands, the matrices at the planned batch, and its multiplications."""
    names = [*(f"core_{k}" for k in range(len(net.cores))), "x"]
    names += [f"t{k}" for k in range(1, len(steps))] + ["y"]
    at_a_time = "" if chunk is None else f", {chunk} rows at a time"
    lines = [fill(str(net), WIDTH), f"planned for batch {batch}, goal {goal}{at_a_time}", ""]
    lines.append(f"{'product':<22} {'as':<6} {'matrices':<22} {'over':<10} {'macs':>16}")
    for step, result in zip(steps, names[len(net.cores) + 1 :], strict=True):
        product = f"{result} = {names[step.left]} {names[step.right]}"
        over = shorten(" ".join(step.over), 10, placeholder="..")
        lines.append(
            f"{product:<22} {step.kind:<6} {_matrices(step):<22} {over:<10} {step.macs:>16,}"
        )
    macs, dense = sum(step.macs for step in steps), batch * prod(net.shape)
    return "\n".join([*lines, f"total {macs:,} macs, {macs / dense:.3g} of dense ({dense:,})"])


def _matrices(step: Step) -> str:
    g, m, n, k = step.extents
    if step.kind == "push":
        m, n = n, m
    return f"{g} of " * (g > 1) + f"{m}x{k} {k}x{n}"
