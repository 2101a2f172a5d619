"""What a direction in a layer's output says to the logits, by the straight way."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

SHOWN = 8
WRITERS = (
    *("o_proj", "down_proj", "out_proj", "c_proj", "fc2", "w2", "wo", "dense"),
    *("dense_4h_to_h", "out_lin", "lin2"),
)


@dataclass(frozen=True, eq=False)
class Unembedding:
    """From the residual stream to the logits: ``logits = head . gain . x``, the norm's scale aside.

    Attributes:
        head: (vocabulary, width).
        gain: (width,), of the last norm.
    """

    head: Tensor
    gain: Tensor

    def effects(self, directions: Tensor) -> Tensor:
        """(k, width) -> (k, vocabulary), their mean over the vocabulary taken off."""
        found = (directions.to(self.gain.device).float() * self.gain) @ self.head.T
        return found - found.mean(1, keepdim=True)

    def extremes(self, directions: Tensor, most: int = SHOWN) -> tuple[Tensor, ...]:
        """The tokens that each direction raises and lowers most: (values, ids, values, ids)."""
        found = self.effects(directions)
        up, down = found.topk(most, dim=1), (-found).topk(most, dim=1)
        return up.values, up.indices, -down.values, down.indices


def unembedding(model: nn.Module) -> Unembedding | None:
    """Of a Hugging Face language model; None where there is no head, or no norm before it."""
    get = getattr(model, "get_output_embeddings", None)
    head = get() if callable(get) else None
    weight = getattr(head, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim != 2:
        return None
    gains = [
        own
        for module in getattr(model, "base_model", model).modules()
        if "norm" in type(module).__name__.lower()
        and isinstance(own := getattr(module, "weight", None), Tensor)
        and own.shape == weight.shape[1:]
    ]
    if not gains:
        return None
    with torch.no_grad():
        return Unembedding(weight.detach().float(), gains[-1].detach().float())


def why_not(layer: str, out: int, found: Unembedding | None) -> str | None:
    """Why a layer has no direct effect on the logits; None where it has one."""
    if found is None:
        return "the model has no head over a vocabulary with a norm before it"
    if layer.rsplit(".", 1)[-1] not in WRITERS or out != len(found.gain):
        return "the layer does not write into the residual stream itself: others read it first"
    return None
