"""What goes through each situation: every topology, storage and host, and dense modules as control.

A situation is right where it is right for the dense modules too: they go through the same code.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close
from transformers.pytorch_utils import Conv1D

import bondwise as bw
from bondwise.gauge.compact import compact
from bondwise.layers.networks import compacted, network
from bondwise.layers.terms import Term
from bondwise.network.groups import grouped_network
from bondwise.network.network import Network
from bondwise.topology import registry
from nets import BESIDE, beside_of, random_cores, reference, thorough

OUT, IN, RANK = 12, 18, 3
HOSTS = ("linear", "linear without bias", "conv1d", "embedding")
# channels of a group, kernel, and how they move: matrices of 12 x 18
CONVOLUTIONS = {
    "convolution 2d": ((6, 3), (3, 2), {"groups": 2, "stride": (1, 2), "padding": 1}),
    "transposed convolution 1d": ((12, 6), (3,), {"stride": 2, "output_padding": 1}),
}
SPATIAL = 4  # sizes of their inputs
STORAGES = ("plain", "gauge-free")
OFTEN = {  # where not all is run
    "linear": (False, True),
    "linear without bias": (False,),
    "conv1d": (True,),
    "embedding": (True,),
}


@dataclass(frozen=True)
class Cell:
    """One module to try: of the host's own class where the topology is "dense"."""

    topology: str
    host: str
    gauge: bool = False
    beside: str | None = None

    def layer(self, seed: int = 0) -> nn.Module:
        """The module, in float64; another seed has other numbers at other positions."""
        if self.topology == "dense":
            return _dense(self.host, _numbers(seed), seed)
        terms = [_network(self.topology, self.host, self.gauge, seed)[0]]
        if self.beside:
            terms.append(_beside(self.beside, seed)[0])
        if self.host == "embedding":
            return bw.TensorEmbedding.of(terms)
        if self.convolved:
            kind = getattr(bw, f"Tensor{_module(self.host).__name__}")
            return kind.of(terms, _bias(self.host, seed), **_options(self.host))
        host = "conv1d" if self.host == "conv1d" else "linear"
        return bw.TensorLinear.of(terms, _bias(self.host, seed), host=host)

    def reference(self, seed: int = 0) -> Tensor:
        """Its weight by numpy, out x in."""
        if self.topology == "dense":
            return _numbers(seed)
        W = _network(self.topology, self.host, self.gauge, seed)[1]
        return W + _beside(self.beside, seed)[1] if self.beside else W

    def model(self, seed: int = 0) -> nn.Sequential:
        """The module in one that holds it, in eval mode."""
        return nn.Sequential(self.layer(seed)).eval()

    def inputs(self, *batch: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
        """Vectors, ids, or what is convolved."""
        if self.host == "embedding":
            return torch.randint(OUT, batch, generator=_seeded(seed))
        shape = (6, *[SPATIAL] * len(CONVOLUTIONS[self.host][1])) if self.convolved else (IN,)
        return torch.randn(*batch, *shape, generator=_seeded(seed), dtype=torch.float64).to(dtype)

    @property
    def convolved(self) -> bool:
        """Whether the input is convolved."""
        return self.host in CONVOLUTIONS

    @property
    def takes_vectors(self) -> bool:
        """Whether a gradient can go through it to its inputs."""
        return self.host != "embedding"

    @property
    def is_matrix(self) -> bool:
        """Whether it multiplies vectors by its matrix, however many axes they come along."""
        return self.takes_vectors and not self.convolved

    @property
    def cores(self) -> int:
        """How many matrices the input meets, or the weight is a product of."""
        if self.topology == "dense":
            return 1
        return len(_net(self.topology, self.host).cores)

    def __str__(self) -> str:
        """As in a test's name."""
        if self.topology == "dense":
            return f"control-{self.host}"
        beside = f"+{self.beside}" if self.beside else ""
        return f"{self.topology}{beside}-{STORAGES[self.gauge]}-{self.host}"


PLAIN = ("mpo", "cp")


def often(cell: Cell) -> bool:
    """Whether it is worth a process of its own."""
    if cell.convolved:
        return cell in CONVOLVED
    if cell.beside:
        return cell.gauge and cell.topology == "mpo" and cell.host in ("linear", "embedding")
    return cell.gauge in OFTEN[cell.host]


CONVOLVED = (  # of the convolutions, where not all is run
    Cell("cp", "convolution 2d"),
    Cell("tucker2", "transposed convolution 1d", gauge=True),
)


def few(cell: Cell) -> bool:
    """Where each takes long: every topology as it is stored, every host, every kind of entries."""
    if cell.convolved:
        return cell in CONVOLVED
    if cell.topology == "dense":
        return True
    return often(cell) and cell.gauge and (cell.host == "linear" or cell.topology == "mpo")


def plain(cell: Cell) -> bool:
    """Whole cores, of a chain and of parallel factors."""
    return cell.host == "linear" and not (cell.gauge or cell.beside) and cell.topology in PLAIN


def cells() -> list[Cell]:
    """The dense modules, and every topology for every host in every storage."""
    control = [Cell("dense", host) for host in (*HOSTS, *CONVOLUTIONS)]
    kinds = product(registry.names(), HOSTS, (False, True), (None, *BESIDE))
    names = registry.names(kernels=True)
    alone = product(names, CONVOLUTIONS, (False, True))
    others = [kind for kind in BESIDE if kind != "network"]  # that one has no kernel
    beside = product(["tucker2"], CONVOLUTIONS, (False, True), others)
    return [*control, *(Cell(*kind) for kind in (*kinds, *alone, *beside))]


every_cell = pytest.mark.parametrize(
    "cell",
    [cell if few(cell) or plain(cell) else thorough(cell)[0] for cell in cells()],
    ids=str,
)


def weight(layer: nn.Module) -> Tensor:
    """The weight that a layer stands for now, out x in, with its gradient."""
    if hasattr(layer, "dense"):
        return layer.dense()
    if isinstance(layer, nn.ConvTranspose1d):
        return layer.weight.transpose(0, 1).flatten(1)
    if isinstance(layer, nn.Conv2d):
        return layer.weight.flatten(1)
    return layer.weight.T if isinstance(layer, Conv1D) else layer.weight


def wanted(layer: nn.Module, x: Tensor) -> Tensor:
    """What a layer has to give: the arithmetic of the dense module alone."""
    if isinstance(layer, nn.Embedding | bw.TensorEmbedding):
        return F.embedding(x, weight(layer))
    if isinstance(layer, nn.Conv2d | bw.TensorConv2d):
        return _flat(layer, x, F.conv2d, weight(layer).reshape(12, 3, 3, 2), (1, 2), 1, 1, 2)
    if isinstance(layer, nn.ConvTranspose1d | bw.TensorConvTranspose1d):
        W = weight(layer).reshape(12, 6, 3).transpose(0, 1)
        return _flat(layer, x, F.conv_transpose1d, W, 2, 0, 1)
    return F.linear(x, weight(layer), layer.bias)


def _flat(layer: nn.Module, x: Tensor, run: Callable[..., Tensor], W: Tensor, *how) -> Tensor:
    """A convolution by torch over any number of axes of samples."""
    batch = x.shape[: x.ndim + 1 - W.ndim]
    y = run(x.reshape(-1, *x.shape[len(batch) :]), W, layer.bias, *how)
    return y.reshape(*batch, *y.shape[1:])


def largest(layer: nn.Module) -> str:
    """The name of the parameter that holds most of the weight."""
    own = {name: p.numel() for name, p in layer.named_parameters() if name != "bias"}
    return max(own, key=own.__getitem__)


def check(model: nn.Sequential, x: Tensor, like: Tensor | None = None) -> Tensor:
    """A look: the outputs are those of the weight; returns them."""
    with torch.no_grad():
        y = model(x)
        assert_close(y, wanted(model[0], x) if like is None else like)
    return y


def gradients(y: Tensor, leaves: list[Tensor], seed: int = 0) -> tuple[Tensor, ...]:
    """Of a loss that weighs every output by another number."""
    towards = torch.randn(y.shape, generator=_seeded(seed), dtype=torch.float64).to(y.dtype)
    return torch.autograd.grad(y, leaves, towards)


def check_gradients(model: nn.Sequential, x: Tensor, run: Callable[..., Tensor] | None = None):
    """Those of the parameters, and of the inputs, are those through the weight."""
    leaves = [p for p in model.parameters() if p.requires_grad]
    if x.is_floating_point():
        x = x.detach().clone().requires_grad_()
        leaves.append(x)
    ours = gradients((run or model)(x), leaves)
    assert_close(ours, gradients(wanted(model[0], x), leaves))


def _net(topology: str, host: str) -> Network:
    """The network of a topology for a host."""
    if host not in CONVOLUTIONS:
        return registry.find(topology).sized(OUT, IN, RANK)
    (out, inp), kernel, options = CONVOLUTIONS[host]
    alone = registry.find(topology).convolution(out, inp, kernel, RANK)
    return grouped_network(alone, options.get("groups", 1))


@cache
def _network(topology: str, host: str, gauge: bool, seed: int) -> tuple[Term, Tensor]:
    """Random cores of a weight whose numbers are about 1 in size, and that weight by numpy."""
    net = _net(topology, host)
    cores = random_cores(net, seed)
    size = reference(net, cores).square().mean().sqrt() ** (1 / len(cores))
    cores = [core / size for core in cores]
    term = compacted(compact(net, cores)) if gauge else network(net, cores)
    W = reference(net, cores)
    if W.shape != (OUT, IN):  # groups: their blocks below each other
        W = torch.cat([W[:6, :IN], W[6:, IN:]])
    return term, W


@cache
def _beside(kind: str, seed: int) -> tuple[Term, Tensor]:
    return beside_of(kind, (OUT, IN), seed)


def _numbers(seed: int) -> Tensor:
    return torch.randn(OUT, IN, generator=_seeded(seed), dtype=torch.float64)


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _bias(host: str, seed: int) -> Tensor | None:
    if host == "linear without bias":
        return None
    return torch.randn(OUT, generator=_seeded(seed + 1), dtype=torch.float64)


def _dense(host: str, W: Tensor, seed: int) -> nn.Module:
    if host == "embedding":
        return nn.Embedding.from_pretrained(W.clone(), freeze=False)
    bias = _bias(host, seed)
    if host in CONVOLUTIONS:
        made = _module(host)(6, OUT, **_options(host))
        W = W.reshape(OUT, -1, *made.kernel_size)
        W = W.transpose(0, 1) if made.transposed else W
        made.weight, made.bias = (
            nn.Parameter(W.clone(memory_format=torch.contiguous_format)),
            nn.Parameter(bias),
        )
        return made
    made = Conv1D(OUT, IN) if host == "conv1d" else nn.Linear(IN, OUT, bias=bias is not None)
    made.weight = nn.Parameter(W.T.contiguous() if host == "conv1d" else W.clone())
    if bias is not None:
        made.bias = nn.Parameter(bias)
    return made


def _options(host: str) -> dict[str, object]:
    _, kernel, options = CONVOLUTIONS[host]
    return {"kernel_size": kernel, **options}


def _module(host: str) -> type[nn.Module]:
    return nn.ConvTranspose1d if host.startswith("transposed") else nn.Conv2d
