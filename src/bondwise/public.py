"""The public names: what `import bondwise` brings, once it is asked for."""

from typing import TYPE_CHECKING

from bondwise import read
from bondwise.checkpoint.checkpoint import load, save
from bondwise.choose.dry_run import plan_model
from bondwise.compress.merge import merge
from bondwise.compress.tensorize import tensorize
from bondwise.compute.orders import orders
from bondwise.compute.plan import plan
from bondwise.compute.run import apply, dense
from bondwise.compute.stack import stack
from bondwise.fit.fit import fit
from bondwise.fit.metric import Kronecker, Metric
from bondwise.gauge.canonical import canonical, insert_gauge
from bondwise.gauge.compact import compact
from bondwise.heal.heal import heal
from bondwise.layers.convolution import (
    TensorConv1d,
    TensorConv2d,
    TensorConv3d,
    TensorConvTranspose1d,
    TensorConvTranspose2d,
    TensorConvTranspose3d,
)
from bondwise.layers.embedding import TensorEmbedding
from bondwise.layers.linear import TensorLinear
from bondwise.layers.prepare.prepare import prepare, unprepare
from bondwise.network.network import Index, Network, parse
from bondwise.topology import registry
from bondwise.topology.btt import btt
from bondwise.topology.cp import cp
from bondwise.topology.kron import kron
from bondwise.topology.lowrank import lowrank
from bondwise.topology.mpo import mpo
from bondwise.topology.ring import ring
from bondwise.topology.tree import tree
from bondwise.topology.tucker import tucker
from bondwise.topology.tucker2 import tucker2

__all__ = [
    "Index",
    "Kronecker",
    "Metric",
    "Network",
    "TensorConv1d",
    "TensorConv2d",
    "TensorConv3d",
    "TensorConvTranspose1d",
    "TensorConvTranspose2d",
    "TensorConvTranspose3d",
    "TensorEmbedding",
    "TensorLinear",
    "apply",
    "btt",
    "canonical",
    "compact",
    "cp",
    "dense",
    "fit",
    "heal",
    "insert_gauge",
    "kron",
    "load",
    "lowrank",
    "merge",
    "mpo",
    "orders",
    "parse",
    "plan",
    "plan_model",
    "prepare",
    "read",
    "ring",
    "save",
    "stack",
    "tensorize",
    "tree",
    "tucker",
    "tucker2",
    "unprepare",
]

if not TYPE_CHECKING:  # the topologies above are named for those who check types; here are all
    __all__ += [name for name in registry.names(kernels=True) if name not in __all__]

    def topology(name):
        """The function of a known topology, as `bondwise.NAME`."""
        if name in registry.names(kernels=True):
            return registry.find(name).build
        raise AttributeError(f"module 'bondwise' has no attribute {name!r}")

    __getattr__ = topology
