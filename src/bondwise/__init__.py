"""bondwise: the dense weights of any PyTorch model as tensor networks."""

from bondwise.network.network import Index, Network, parse
from bondwise.topology.btt import btt
from bondwise.topology.cp import cp
from bondwise.topology.kron import kron
from bondwise.topology.lowrank import lowrank
from bondwise.topology.mpo import mpo
from bondwise.topology.ring import ring
from bondwise.topology.tree import tree
from bondwise.topology.tucker import tucker

__version__ = "0.1.0"

__all__ = [
    "Index",
    "Network",
    "btt",
    "cp",
    "kron",
    "lowrank",
    "mpo",
    "parse",
    "ring",
    "tree",
    "tucker",
]
