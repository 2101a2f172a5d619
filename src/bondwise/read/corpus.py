"""A text as windows of tokens, each token's text kept once."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bondwise.errors import DataError
from bondwise.flow.text import fitting, windows

SAMPLES = 8  # windows that a model sees at once


@dataclass(frozen=True, eq=False)
class Corpus:
    """Windows of a text.

    Attributes:
        ids: (windows, length), token ids.
        pieces: the text of every token id that occurs, by id.
    """

    ids: Tensor
    pieces: dict[int, str]

    @property
    def batches(self) -> list[Tensor]:
        """The windows as a model takes them."""
        return list(self.ids.split(SAMPLES))

    def piece(self, position: int) -> str:
        """The text of the token at a position, windows one after another."""
        return self.pieces[int(self.ids.flatten()[position])]

    def to_json(self) -> dict[str, Any]:
        """Pieces, and for each token the place of its own among them."""
        places = {token: k for k, token in enumerate(self.pieces)}
        return {
            "pieces": list(self.pieces.values()),
            "ids": [places[token] for token in self.ids.flatten().tolist()],
            "windows": len(self.ids),
            "length": self.ids.shape[1],
        }


def corpus(
    model: nn.Module, tokenizer: Any, text: str, count: int, length: int, seed: int = 0
) -> Corpus:
    """So many windows of a text, or as many as there are.

    Raises:
        DataError: the text is shorter than one window.
    """
    length = fitting(model, length)
    found = windows(tokenizer, text, None, length, seed)[:count]
    if found.numel() < 2:
        raise DataError(f"{found.numel()} tokens came; give a text of some thousand words.")
    known = torch.unique(found).tolist()
    return Corpus(found, {token: tokenizer.decode([token]) for token in known})
