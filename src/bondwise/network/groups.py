"""Groups: a network that stands block by block on the diagonal, and the network of one block."""

from math import prod

from bondwise.network.network import Core, Index, Network

GROUP = "g"


def group_indices(net: Network) -> tuple[str, ...]:
    """Names of the indices that are open on both sides.

    >>> from bondwise import parse
    >>> group_indices(parse("g o a, g a i -> (g o) (g i)", g=2, o=3, a=1, i=4))
    ('g',)
    """
    cols = {index.name for index in net.cols}
    return tuple(index.name for index in net.rows if index.name in cols)


def group_count(net: Network) -> int:
    """How many blocks there are on the diagonal."""
    return prod(net.sizes[name] for name in group_indices(net))


def grouped_network(net: Network, groups: int) -> Network:
    """The same network for every group: an index ``g`` in front of every core, row and column.

    >>> from bondwise import lowrank
    >>> str(grouped_network(lowrank(3, 4, 1), 2))
    'g o a, g a i -> (g o) (g i)'
    """
    if groups == 1:
        return net
    name = GROUP
    while name in net.sizes:
        name += "_"
    g = Index(name, groups)
    return Network(tuple((g, *core) for core in net.cores), (g, *net.rows), (g, *net.cols))


def one_group(net: Network) -> Network | None:
    """The network of one block; None where a core is the same for several.

    >>> from bondwise import lowrank
    >>> str(one_group(grouped_network(lowrank(3, 4, 1), 2)))
    'o a, a i -> (o) (i)'
    """
    own = set(group_indices(net))
    if not own:
        return net
    if any(not own <= {index.name for index in core} for core in net.cores):
        return None
    if len(own) > 1:
        return None

    def rest(indices: Core) -> Core:
        return tuple(index for index in indices if index.name not in own)

    if not all(map(rest, (*net.cores, net.rows, net.cols))):
        return None
    return Network(tuple(map(rest, net.cores)), rest(net.rows), rest(net.cols))
