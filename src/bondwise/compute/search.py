"""Which two operands to multiply next: the cheapest tree of pairwise products."""

from collections.abc import Sequence

from cotengra.pathfinders.path_basic import (
    optimize_optimal,
    optimize_random_greedy_track_flops,
)

Names = tuple[str, ...]
Pair = tuple[int, int]

EXHAUSTIVE = 10  # operands; ten take 0.1 s, and each one more takes three times as long
NO_CAP = 2**4096
TRIALS = 128  # of the randomised greedy search above that; seeded, so that plans repeat


def search(inputs: Sequence[Names], output: Names, sizes: dict[str, int]) -> list[Pair]:
    """Pairs of operands in the order in which to multiply them; a product takes the next position.

    The cost of a pair is the product of the sizes of all its distinct indices. Up to ten operands
    every tree is looked at, outer products included (the dynamic programme of Pfeifer, Haegeman
    and Verstraete 2014, as cotengra has it, Gray and Kourtis 2021); above that it is the best of
    a seeded greedy search. Indices that stand on one operand only and not in the output must have
    been summed away before.

    >>> search([("o", "a"), ("a", "i"), ("n", "i")], ("n", "o"), {"o": 8, "a": 2, "i": 8, "n": 64})
    [(1, 2), (0, 3)]
    """
    if len(inputs) < 2:
        return []
    if len(inputs) > EXHAUSTIVE:
        found, _ = optimize_random_greedy_track_flops(
            inputs, output, sizes, ntrials=TRIALS, seed=0, simplify=False, use_ssa=True
        )
        assert found is not None, "at least one trial ends"
    else:
        # An index that all operands share doubles every cost and so changes no choice; it joins
        # what is disconnected (size 1 counts as disconnected), which the search would else
        # multiply in last.
        link = "link*"
        found = optimize_optimal(
            [(*names, link) for names in inputs],
            (*output, link),
            sizes | {link: 2},
            cost_cap=NO_CAP,
            search_outer=True,
            simplify=False,
            use_ssa=True,
        )
    return [(min(pair), max(pair)) for pair in found]
