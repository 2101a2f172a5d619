"""What each weight's inputs look like: second moments from one pass, once per shared input."""

from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from operator import length_hint
from typing import Any

import torch
from torch import Tensor, nn

from bondwise.errors import DataError
from bondwise.fit.metric import Metric, Moments
from bondwise.flow.data import Batch, evaluating, feed
from bondwise.progress import Progress, silent


class Inputs:
    """Second moments of the inputs of some layers; layers that get the same tensor share one.

    ``of(name)`` is the metric of a layer, or None where no token reached it.
    """

    def __init__(self, layers: dict[str, nn.Module]) -> None:
        self.layers = layers
        self.moments: dict[str, Moments] = {}
        self.group: dict[str, str] = {}
        self._last: tuple[Tensor, str] | None = None
        self._mask: Tensor | None = None

    def of(self, name: str) -> Metric | None:
        """The metric of a layer's inputs."""
        moments = self.moments.get(self.group.get(name, ""))
        return None if moments is None or moments.empty else moments.metric()

    def watch(
        self, model: nn.Module, batches: Iterable[Batch], progress: Progress = silent
    ) -> None:
        """Run the model over the batches and accumulate.

        Raises:
            DataError: there was no batch, or an input was not finite (named).
        """
        core = without_head(model, self.layers.values())
        total, seen = length_hint(batches), 0
        progress("calibrate", 0, max(total, 1))
        with torch.no_grad(), evaluating(model), self.watching():
            for batch in batches:
                self.begin(None if isinstance(batch, Tensor) else batch.get("attention_mask"))
                feed(core, batch)
                seen += 1
                progress("calibrate", seen, max(total, seen))
        if not seen:
            raise DataError("The data held no batch; give at least one.")

    @contextmanager
    def watching(self) -> Generator[None]:
        """See what enters the layers meanwhile."""
        handles = [
            layer.register_forward_pre_hook(self._hook(name)) for name, layer in self.layers.items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            self.begin(None)

    def begin(self, mask: Tensor | None) -> None:
        """A new batch, and which of its positions are tokens."""
        self._last, self._mask = None, mask

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def see(_module: nn.Module, args: tuple[Any, ...]) -> None:
            x = args[0]
            if self._last is not None and x is self._last[0] and self._joins(name):
                return
            group = self.group.setdefault(name, name)
            self._last = (x, group)
            moments = self.moments.setdefault(group, Moments(x.shape[-1], x.device))
            try:
                moments.add(self._unpadded(x))
            except DataError as error:
                raise DataError(f"Inputs of {name}: {error}") from error

        return see

    def _joins(self, name: str) -> bool:
        """Whether a layer that got the last input again belongs to that input's group."""
        group = self._last[1] if self._last else ""
        return self.group.setdefault(name, group) == group

    def _unpadded(self, x: Tensor) -> Tensor:
        mask = self._mask
        return x if mask is None or x.shape[:-1] != mask.shape else x[mask.to(x.device).bool()]


def without_head(model: nn.Module, layers: Iterable[nn.Module] = ()) -> nn.Module:
    """The part of a Hugging Face model below its head, where no layer to watch lies in the head."""
    base = getattr(model, "base_model", model)
    if base is model or not isinstance(base, nn.Module):
        return model
    below = set(base.modules())
    return base if all(layer in below for layer in layers) else model
