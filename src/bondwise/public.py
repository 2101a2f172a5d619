"""The public names: what `import bondwise` brings, once it is asked for."""

from bondwise import read
from bondwise.compute.orders import orders
from bondwise.compute.plan import plan
from bondwise.compute.run import apply, dense
from bondwise.compute.stack import stack
from bondwise.compute.timings import time_orders
from bondwise.heal.heal import heal
from bondwise.model.checkpoint import load, save
from bondwise.model.layers import TensorEmbedding, TensorLinear
from bondwise.model.tensorize import merge, plan_model, tensorize
from bondwise.network.network import Index, Network, parse
from bondwise.topology.btt import btt
from bondwise.topology.cp import cp
from bondwise.topology.kron import kron
from bondwise.topology.lowrank import lowrank
from bondwise.topology.mpo import mpo
from bondwise.topology.ring import ring
from bondwise.topology.tree import tree
from bondwise.topology.tucker import tucker
from bondwise.weight.canonical import canonical, insert_gauge
from bondwise.weight.fit import fit
from bondwise.weight.gauge import compact
from bondwise.weight.metric import Metric

__all__ = [
    "Index",
    "Metric",
    "Network",
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
    "read",
    "ring",
    "save",
    "stack",
    "tensorize",
    "time_orders",
    "tree",
    "tucker",
]
