"""Which two operands to multiply next: the cheapest tree of pairwise products, and others."""

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
ALL_TREES = 6  # operands up to which every tree is listed: 945 of six


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


def rebuilt(inputs: Sequence[Names], output: Names, sizes: dict[str, int]) -> list[Pair]:
    """The tree that makes one operand of all but the last, and then multiplies the two.

    >>> rebuilt([("o", "a"), ("a", "i"), ("n", "i")], ("n", "o"), {"o": 8, "a": 2, "i": 8, "n": 9})
    [(0, 1), (2, 3)]
    """
    *weights, last = inputs
    kept = {*last, *output}
    one = tuple(dict.fromkeys(name for names in weights for name in names if name in kept))
    pairs = search(weights, one, sizes)
    count = len(inputs)
    moved = [tuple(k if k < count - 1 else k + 1 for k in pair) for pair in pairs]
    top = count + len(pairs) - 1 if pairs else 0
    ends = [(count - 1, top) if pairs else (0, 1)]
    return [(min(a, b), max(a, b)) for a, b in (*moved, *ends)]


def every(count: int) -> list[list[Pair]]:
    """All trees over so many operands.

    >>> [len(every(n)) for n in (1, 2, 3, 4)]
    [1, 1, 3, 15]
    """

    def grown(alive: tuple[int, ...], after: int) -> list[list[Pair]]:
        if len(alive) == 1:
            return [[]]
        found = list[list[Pair]]()
        for at, a in enumerate(alive):
            for b in alive[at + 1 :]:
                left = (*(k for k in alive if k not in (a, b)), after)
                found += [[(a, b), *rest] for rest in grown(left, after + 1)]
        return found

    seen, trees = set[frozenset[frozenset[int]]](), list[list[Pair]]()
    for tree in grown(tuple(range(count)), count):
        shape = _clusters(count, tree)
        if shape not in seen:  # two independent products in either order are one tree
            seen.add(shape)
            trees.append(tree)
    return trees


def _clusters(count: int, tree: Sequence[Pair]) -> frozenset[frozenset[int]]:
    members = [frozenset([k]) for k in range(count)]
    for a, b in tree:
        members.append(members[a] | members[b])
    return frozenset(members)
