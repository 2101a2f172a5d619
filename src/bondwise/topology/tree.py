"""Binary tree (hierarchical Tucker) over the sites (o_k i_k)."""

from collections.abc import Iterator

from bondwise.network.network import Core, Index, Network
from bondwise.network.shapes import balanced
from bondwise.topology.modes import Sizes, bonds, letters, modes, network, sites
from bondwise.topology.registry import register


@register(modes=lambda out, inp: (balanced(out, 4), balanced(inp, 4)), scouted="best")
def tree(rows: Sizes, cols: Sizes, rank: Sizes) -> Network:
    """Sites as leaves, halves joined pairwise (Hackbusch and Kuehn 2009; Grasedyck 2010).

    Four sites, five bonds; the top bond joins the two halves directly, since a core there would be
    pure gauge::

        o1 i1 -- a --+             +-- d -- o3 i3
                     (abc) -- c -- (cde)
        o2 i2 -- b --+             +-- e -- o4 i4

    Args:
        rows: sizes of the row modes, the first slowest; an int is one mode.
        cols: of the column modes.
        rank: of every bond, or one each: a, b, ..

    >>> str(tree((2, 2, 2, 2), (2, 2, 2, 2), 3))
    'o1 i1 a, o2 i2 b, a b c, c d e, o3 i3 d, o4 i4 e -> (o1 o2 o3 o4) (i1 i2 i3 i4)'

    Raises:
        ShapeError: a mode or a rank below 1, or another number of ranks than bonds.
    """
    o, i = modes(rows, "o"), modes(cols, "i")
    leaves = sites(o, i)
    joints = iter(bonds(rank, letters(max(0, 2 * len(leaves) - 3))))
    if len(leaves) == 1:
        return network(leaves, o, i)
    half = (len(leaves) + 1) // 2
    left, top = _below(leaves[:half], joints)
    right, _ = _above(leaves[half:], top, joints)
    return network([*left, *right], o, i)


def _below(leaves: list[Core], joints: Iterator[Index]) -> tuple[list[Core], Index]:
    """The cores of a subtree, children first, and the bond on top of it."""
    if len(leaves) == 1:
        top = next(joints)
        return [(*leaves[0], top)], top
    half = (len(leaves) + 1) // 2
    left, one = _below(leaves[:half], joints)
    right, two = _below(leaves[half:], joints)
    top = next(joints)
    return [*left, *right, (one, two, top)], top


def _above(leaves: list[Core], top: Index, joints: Iterator[Index]) -> tuple[list[Core], None]:
    """The cores of a subtree under a given bond, the node first."""
    if len(leaves) == 1:
        return [(*leaves[0], top)], None
    half = (len(leaves) + 1) // 2
    one, two = next(joints), next(joints)
    left, _ = _above(leaves[:half], one, joints)
    right, _ = _above(leaves[half:], two, joints)
    return [(top, one, two), *left, *right], None
