"""Text as fixed windows of tokens: what perplexity is measured on, and what a page shows."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from bondwise.errors import DataError

SAMPLES = 8  # windows that a model sees at once


def read_text(source: str | Path) -> str:
    """The text itself, or what the UTF-8 file of that name holds.

    Raises:
        DataError: the file is not there, is a folder, is not UTF-8, or the text is empty.

    >>> read_text("A bond is an index that two cores share.")
    'A bond is an index that two cores share.'
    """
    looks_like_text = isinstance(source, str) and (
        not source or len(source) > 1000 or "\n" in source
    )
    path = None if looks_like_text else Path(source)
    if path is not None and not isinstance(source, Path) and not _may_exist(path):
        path = None
    if path is not None and path.is_dir():
        raise DataError(f"{path} is a folder; give one text file (UTF-8)")
    if path is not None and path.is_file():
        text = _read_file(path)
    elif isinstance(source, Path) or (path is not None and _is_a_name(str(source))):
        also = "" if isinstance(source, Path) else " or the text itself"
        raise DataError(f"There is no text file {source}; give a file (UTF-8){also}")
    else:
        text = str(source)
    if not text.strip():
        raise DataError("The text is empty; give a text of some thousand words")
    return text


def _may_exist(path: Path) -> bool:
    """Whether a file can be called so: a sentence may be longer than any name."""
    try:
        path.exists()
    except OSError:
        return False
    return True


def _is_a_name(source: str) -> bool:
    return bool(source) and not any(letter.isspace() for letter in source)


def _read_file(path: Path) -> str:
    try:
        text = path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 at byte {error.start}; convert it first") from error
    if "\0" in text:
        raise DataError(f"{path} holds zero bytes, which no text does; give a text file (UTF-8)")
    if not text.strip():
        raise DataError(f"{path} is empty; give a text of some thousand words")
    return text


def windows(
    tokenizer: Any, texts: str | Sequence[str], count: int | None, length: int, seed: int = 0
) -> Int[Tensor, "count length"]:
    """`count` windows of `length` tokens that do not overlap, drawn with `seed`; None: all.

    Texts are joined by a blank line, the one border that every model has seen; no special tokens
    are set between them. A window begins with the BOS token only where the tokenizer itself puts
    one before every text, as Gemma's and Llama's do and SmolLM2's and GPT-2's do not: such models
    are lost without it. It then counts as one of the `length` tokens.

    Raises:
        DataError: the texts are empty or hold fewer tokens than the windows need.
    """
    check_draw(count, length)
    bos = _bos(tokenizer)
    step = length - len(bos)
    ids = _token_ids(tokenizer, [texts] if isinstance(texts, str) else texts)
    there = ids.numel() // step
    wanted = max(there, 1) if count is None else count
    if there < wanted:
        raise DataError(
            f"The text has {ids.numel()} tokens, but {wanted} windows of {length} need "
            f"{wanted * step}; give more text, or fewer or shorter windows"
        )
    rows = ids[: there * step].view(there, step)
    drawn = torch.randperm(there, generator=torch.Generator().manual_seed(seed))[:wanted]
    return torch.cat([torch.tensor(bos, dtype=torch.long).expand(wanted, -1), rows[drawn]], dim=1)


def fitting(model: nn.Module, length: int) -> int:
    """The length of a window, or as many tokens as the model has positions for."""
    positions = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    if isinstance(positions, int) and positions >= 2:  # some models say -1 for no limit
        return min(length, positions)
    return length


def check_draw(count: int | None, length: int) -> None:
    """Refuse windows that show nothing.

    Raises:
        DataError: no window, or windows of fewer than two tokens.
    """
    if (count is not None and count < 1) or length < 2:
        number = "all" if count is None else count
        raise DataError(
            f"{number} windows of {length} tokens came; write at least one window of two tokens"
        )


def _bos(tokenizer: Any) -> list[int]:
    first = tokenizer("a")["input_ids"][:1]
    return first if first == [getattr(tokenizer, "bos_token_id", None)] else []


def _token_ids(tokenizer: Any, texts: Sequence[str]) -> Tensor:
    """All tokens in a row; `verbose` off: a text longer than the model's context is meant."""
    texts = [text for text in texts if text.strip()]
    if not texts:
        raise DataError("The text is empty; give a text of some thousand words")
    blank, *documents = tokenizer(["\n\n", *texts], add_special_tokens=False, verbose=False)[
        "input_ids"
    ]
    return torch.tensor([token for document in documents for token in (*document, *blank)])


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
