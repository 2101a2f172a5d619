"""What a model gave for one batch, and how far it is from that when a weight is another."""

from collections.abc import Callable, Collection, Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bondwise.flow.chains.blocks import Products, Stream, holds
from bondwise.flow.chains.calls import Copies, gives_state, tensors, written
from bondwise.flow.data import Batch, evaluating, feed
from bondwise.flow.padding import tokens

CHUNK = 256  # tokens whose distributions over a vocabulary are in memory at once
ROOM = 2**29  # bytes of what units gave that are kept


@dataclass(frozen=True, eq=False)
class Reference:
    """How far a model's output on one batch is from what it was.

    For a model with logits it is the Kullback-Leibler divergence in nats a token, for another the
    relative squared error of its first output.
    """

    model: nn.Module
    batch: Batch
    output: Tensor
    logits: bool
    products: Products
    replay: "Replay | None" = None

    @classmethod
    def of(cls, model: nn.Module, batch: Batch, units: Collection[str] = ()) -> "Reference | None":
        """That of a model as it is now; None where it gives nothing that can be compared.

        Args:
            model: it is only run.
            batch: what it is compared on.
            units: modules whose outputs are kept, so that they need not run again; see `Replay`.
        """
        parameter = next(model.parameters())
        products = Products.of(parameter.device, parameter.dtype)
        record = _Record(units)
        with record.of(model) if units else nullcontext():
            output, logits = _answer(model, batch, products)
        if output is None or not torch.isfinite(output).all():
            return None
        return cls(model, batch, output, logits, products, record.replay(products))

    def distance(self, model: nn.Module | None = None) -> float:
        """How far the output is now, of the model or of another."""
        given, _ = _answer(model or self.model, self.batch, self.products)
        assert given is not None
        one, two = (x.reshape(-1, x.shape[-1]) for x in (given, self.output))
        if not self.logits:
            return float((one - two).float().norm() / two.float().norm().clamp(min=1e-15)) ** 2
        parts = zip(one.split(CHUNK), two.split(CHUNK), strict=True)
        return float(sum(_divergence(a.float(), b.float()) for a, b in parts)) / len(one)


@dataclass(frozen=True, eq=False)
class Replay:
    """What units of a model gave for one batch: those before a change give it again and do not run.

    Each gives back its own, so models may skip and branch as they like.

    Attributes:
        given: of each unit, by path.
        order: when each module of the model was called first.
        products: how the model runs.
        fast: whether it ran in bfloat16; otherwise units run.
    """

    given: Mapping[str, Any]
    order: Mapping[str, int]
    products: Products
    fast: bool

    @contextmanager
    def before(self, model: nn.Module, name: str) -> Generator[None]:
        """Units that were over before the weight of a layer was used give again what they gave."""
        weight = model.get_submodule(name).weight
        users = [
            path
            for path, module in model.named_modules(remove_duplicate=False)
            if any(parameter is weight for parameter in module.parameters(recurse=False))
        ]
        start = min((self.order[path] for path in users if path in self.order), default=0)
        with ExitStack() as stack:
            for path in self.given:
                if self.order[path] < start and not any(holds(path, user) for user in users):
                    module = model.get_submodule(path)
                    stack.enter_context(forwarding([module], self._again(path, module.forward)))
            yield

    def _again(self, path: str, own: Callable[..., Any]) -> Callable[..., Any]:
        def forward(*args: Any, **named: Any) -> Any:
            if self.products.fast != self.fast:
                return own(*args, **named)
            return Copies()(self.given[path])  # what follows may write into it

        return forward


@dataclass(eq=False)
class _Record:
    """One run of a model: what some units gave, unless they were called twice or changed a tensor.

    Nothing where it is more than `ROOM`.
    """

    units: Collection[str]
    given: dict[str, Any] = field(default_factory=dict[str, Any])
    order: dict[str, int] = field(default_factory=dict[str, int])
    _entered: dict[str, list[tuple[Tensor, int]]] = field(
        default_factory=dict[str, "list[tuple[Tensor, int]]"]
    )
    _bytes: int = 0

    @contextmanager
    def of(self, model: nn.Module) -> Generator[None]:
        """What a model does meanwhile; only its last run counts."""
        handles: list[Any] = []
        for path, module in model.named_modules():
            handles.append(
                module.register_forward_pre_hook(partial(self._before, path), with_kwargs=True)
            )
            if path in self.units:
                handles.append(module.register_forward_hook(partial(self._after, path)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def replay(self, products: Products) -> Replay | None:
        """What there is to give again."""
        if not self.given or self._bytes > ROOM:
            return None
        return Replay(self.given, self.order, products, products.fast)

    def _before(self, path: str, _module: nn.Module, args: Any, named: Any) -> None:
        if not path:
            self.given.clear()
            self.order.clear()
            self._entered.clear()
            self._bytes = 0
        again = path in self.order
        self.order.setdefault(path, len(self.order))
        if path in self.units:
            self.given.pop(path, None)
            self._entered[path] = [] if again else [(x, written(x)) for x in tensors((args, named))]

    def _after(self, path: str, _module: nn.Module, _args: Any, output: Any) -> None:
        entered = self._entered.pop(path, [])
        if not entered or any(written(x) != count for x, count in entered):
            return
        if not gives_state(output):
            return
        self._bytes += sum(x.numel() * x.element_size() for x in tensors(output))
        if self._bytes > ROOM:
            self.given.clear()
        else:
            self.given[path] = Copies()(output)


@contextmanager
def resumed(model: nn.Module, blocks: Sequence[str], at: int, stream: Stream) -> Generator[None]:
    """The model, run from the block ``at`` on: those before it hand on what is known to enter."""
    skipped = [model.get_submodule(name) for name in blocks[:at]]

    def skip(*_args: Any, **_named: Any) -> Any:
        known = stream.hidden[0].clone()  # a block may write into what it is given
        return known if stream.beside is None else (known, *stream.beside)

    with forwarding(skipped, skip):
        yield


@contextmanager
def forwarding(modules: Iterable[nn.Module], forward: Callable[..., Any]) -> Generator[None]:
    """Modules that run another function for a while; one that had its own gets it back."""
    own = {module: module.__dict__.get("forward") for module in modules}
    for module in own:
        module.forward = forward
    try:
        yield
    finally:
        for module, was in own.items():
            del module.forward
            if was is not None:
                module.forward = was


def _answer(model: nn.Module, batch: Batch, products: Products) -> tuple[Tensor | None, bool]:
    """The model's output on a batch, without positions that hold no token; whether it is logits."""

    def run() -> tuple[Tensor | None, Any]:
        output = feed(model, batch)
        logits = getattr(output, "logits", None)
        return (_values(output) if logits is None else cast(Tensor, logits)), logits

    def usable(found: tuple[Tensor | None, Any]) -> bool:
        return found[0] is None or bool(found[0].isfinite().all())

    with torch.no_grad(), evaluating(model), _exact_head(model):
        values, logits = products(run, usable)
    mask = None if values is None else tokens(batch, values)
    if values is not None and mask is not None:
        values = values[mask]
    return values, logits is not None


def _values(output: Any) -> Tensor | None:
    """The first floating-point tensor of an output, with at least one dimension."""
    if isinstance(output, Tensor):
        return torch.atleast_1d(output) if output.is_floating_point() else None
    parts: Iterable[Any] = ()
    if isinstance(output, Mapping):
        parts = cast(Mapping[Any, Any], output).values()
    elif isinstance(output, tuple | list):
        parts = cast(Sequence[Any], output)
    return next((found for found in map(_values, parts) if found is not None), None)


@contextmanager
def _exact_head(model: nn.Module) -> Generator[None]:
    """Logits in the head's own precision: rounded to bfloat16 they differ by more than a cut."""
    find = getattr(model, "get_output_embeddings", None)
    head = None if find is None else find()
    if not isinstance(head, nn.Module):
        yield
        return
    forward = head.forward

    def exact(x: Tensor) -> Any:
        with torch.autocast(x.device.type, enabled=False):
            return forward(x.to(cast(Tensor, head.weight).dtype))

    with forwarding([head], exact):
        yield


def _divergence(ours: Tensor, theirs: Tensor) -> Tensor:
    dense = F.log_softmax(theirs, -1)
    return F.kl_div(F.log_softmax(ours, -1), dense, reduction="sum", log_target=True)
