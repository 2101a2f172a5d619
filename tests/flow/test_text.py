"""Windows: fixed by the seed, never overlapping, BOS only where the tokenizer puts one."""

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from bondwise.errors import DataError
from bondwise.flow.text import read_text, windows

WORDS = [f"w{k}" for k in range(200)]


def tokenizer(bos: bool = False) -> PreTrainedTokenizerFast:
    """One token per word; a blank line is a token of its own."""
    vocabulary = {word: k for k, word in enumerate(["[BOS]", "[UNK]", "\n\n", "a", *WORDS])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    if bos:
        core.post_processor = processors.TemplateProcessing("[BOS] $0", None, [("[BOS]", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="[BOS]", unk_token="[UNK]")


def test_windows_are_disjoint_pieces_of_the_text_in_a_seeded_order() -> None:
    text = " ".join(WORDS)
    one = windows(tokenizer(), text, 10, 16, seed=3)
    assert one.shape == (10, 16)
    assert torch.equal(one, windows(tokenizer(), text, 10, 16, seed=3))
    assert not torch.equal(one, windows(tokenizer(), text, 10, 16, seed=4))
    assert len(set(one.flatten().tolist())) == 160  # every word stands in the text once
    steps = one.diff(dim=1)
    assert torch.equal(steps, torch.ones_like(steps))


def test_texts_are_joined_by_a_blank_line_and_empty_ones_left_out() -> None:
    ids = windows(tokenizer(), ["w0 w1", "  ", "w2 w3"], None, 6)
    blank = tokenizer().convert_tokens_to_ids("\n\n")
    first = tokenizer().convert_tokens_to_ids("w0")
    assert ids.tolist() == [[first, first + 1, blank, first + 2, first + 3, blank]]
    for empty in ("", [], ["", " \n"]):
        with pytest.raises(DataError, match="empty"):
            windows(tokenizer(), empty, 4, 16)


def test_each_window_begins_with_bos_where_the_tokenizer_puts_one() -> None:
    ids = windows(tokenizer(bos=True), " ".join(WORDS), None, 21)
    assert ids.shape == (10, 21)
    assert (ids[:, 0] == 0).all()
    assert not (ids[:, 1:] == 0).any()


def test_text_is_read_from_a_file_or_is_the_string_itself(tmp_path) -> None:
    file = tmp_path / "a text.txt"
    file.write_text("Grüße\nand more", encoding="utf-8")
    assert read_text(file) == read_text(str(file)) == "Grüße\nand more"
    assert read_text("two words") == "two words"
    assert read_text("x" * 5000) == "x" * 5000  # longer than any file name may be


def test_a_sentence_longer_than_a_file_name_is_text():
    for count in (20, 60, 150):
        said = "a bond " * count
        assert read_text(said) == said
