"""What each weight's inputs look like: second moments from one pass, once per shared input."""

from collections.abc import Iterable
from math import prod

from torch import Tensor, nn

from bondwise.compute.kernels.geometry import Geometry
from bondwise.errors import DataError
from bondwise.fit.kernels.patches import Patches, Weighing
from bondwise.fit.metric import Moments
from bondwise.flow.data import Batch
from bondwise.flow.watch import Entering, unpadded, watch
from bondwise.layers.hosts.convolution import geometry_of
from bondwise.progress import Progress, silent


class Inputs:
    """Second moments of the inputs of some layers; layers that get the same tensor share one.

    ``of(name)`` is the metric of a layer, or None where no token reached it. ``sizes`` has what
    each was given for a sample: the positions of its rows, or the size of a convolution's input.
    """

    def __init__(self, layers: dict[str, nn.Module], by_sample: bool = False) -> None:
        self.layers = layers
        self.moments: dict[str, Moments | Patches] = {}
        self.group: dict[str, str] = {}
        self.sizes: dict[str, tuple[int, ...]] = {}
        self.by_sample = by_sample
        self.geometry = {name: geometry_of(layer) for name, layer in layers.items()}

    def of(self, name: str) -> Weighing | None:
        """The metric of a layer's inputs; of a convolution's patches, one for each group."""
        moments = self.moments.get(self.group.get(name, ""))
        return None if moments is None or moments.empty else moments.metric()

    def forget(self) -> None:
        """Let go of all that was counted."""
        self.moments.clear()
        self.group.clear()
        self.sizes.clear()

    def watch(
        self, model: nn.Module, batches: Iterable[Batch], progress: Progress = silent
    ) -> None:
        """Run the model over the batches and accumulate; padding never weighs.

        Raises:
            DataError: there was no batch, or an input was not finite (named).
        """
        watch(model, self.layers, unpadded(model, self.layers, batches), self.see, progress)

    def see(self, entering: Entering) -> None:
        """Count what enters one layer, unless the layer that got it first has counted it.

        Raises:
            DataError: it is not finite.
        """
        name, x = entering.name, entering.x
        geometry = self.geometry[name]
        size = tuple(x.shape[1:-1]) if geometry is None else geometry.size(x)
        self.sizes[name] = max(self.sizes.get(name, size), size, key=prod)
        shared = None if entering.first == name else self.group[entering.first]
        group = self.group.setdefault(name, shared or name)
        if group == shared:
            return
        if group not in self.moments:
            self.moments[group] = (
                Moments(x.shape[-1], x.device) if geometry is None else _patches(geometry, x)
            )
        try:
            self.moments[group].add(entering.tokens if geometry is None else x)
        except DataError as error:
            raise DataError(f"Inputs of {name}: {error}") from error


def _patches(geometry: Geometry, x: Tensor) -> Patches:
    """What counts the patches of a convolution that is given ``x``."""
    return Patches(
        x.shape[1],
        geometry.kernel,
        stride=geometry.stride,
        dilation=geometry.dilation,
        groups=geometry.groups,
        transposed=geometry.transposed,
        device=x.device,
    )
