"""Tiny random Hugging Face models, a tokenizer and a text, made on the spot."""

from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from unittest.mock import patch

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from bondwise import tensorize
from bondwise.compress.effort import EFFORT
from bondwise.compress.result import Result

BRIEF = replace(EFFORT["fast"], steps=4, formats=())  # for what does not depend on the work done


SIZES = {"num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 128}
SIZES |= {"max_position_embeddings": 64}


def llama(tied: bool = False) -> LlamaForCausalLM:
    torch.manual_seed(0)
    own = {"num_key_value_heads": 2, "tie_word_embeddings": tied, "initializer_range": 0.2}
    config = LlamaConfig(hidden_size=48, intermediate_size=96, **own, **SIZES)
    return LlamaForCausalLM(config).eval()


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=128, n_positions=64)
    return GPT2LMHeadModel(config).eval()


def bert() -> BertModel:
    torch.manual_seed(0)
    return BertModel(BertConfig(hidden_size=32, intermediate_size=64, **SIZES)).eval()


def tokens(rows: int = 16, length: int = 32, seed: int = 0) -> torch.Tensor:
    return torch.randint(128, (rows, length), generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class Cut:
    """A dense model, the tokens it was shown, and what `tensorize` made of it."""

    dense: PreTrainedModel
    data: torch.Tensor
    result: Result


@cache
def cut(kind: str) -> Cut:
    """A llama, gpt2 or bert at keep 0.6, made once for all tests: to be read only."""
    model = {"llama": llama, "gpt2": gpt2, "bert": bert}[kind]()
    data = tokens()
    with patch.dict(EFFORT, fast=BRIEF):
        return Cut(model, data, tensorize(model, keep=0.6, data=data))


def facts(model: nn.Module) -> list[tuple[object, ...]]:
    """What must not change, beside the values: flags, modes, hooks, attributes, gradients."""
    values = [(n, p.requires_grad, p.dtype, p.grad is None) for n, p in model.named_parameters()]
    hooks = ("_forward_pre_hooks", "_forward_hooks", "_backward_hooks")
    modules = [
        (n, m.training, type(m), sorted(m.__dict__), *(len(getattr(m, h)) for h in hooks))
        for n, m in model.named_modules()
    ]
    return values + modules


@contextmanager
def untouched(model: nn.Module):
    """Whatever goes on inside leaves the model to the bit as it was."""
    twin, before = deepcopy(model), facts(model)
    yield
    assert facts(model) == before
    for kind in ("named_parameters", "named_buffers"):
        one, two = (dict(getattr(m, kind)()) for m in (model, twin))
        torch.testing.assert_close(one, two, rtol=0, atol=0, equal_nan=True)


WORDS = ("bond", "core", "rank", "index", "network", "weight", "tree", "ring", "gauge", "plan")


def text(words: int = 6000, seed: int = 0) -> str:
    """Words at random, in lines of twelve."""
    drawn = torch.randint(len(WORDS), (words,), generator=torch.Generator().manual_seed(seed))
    lines = drawn.split(12)
    return "\n".join(" ".join(WORDS[k] for k in line) for line in lines)


def tokenizer() -> PreTrainedTokenizerFast:
    """One token per word, few enough for every model here."""
    vocabulary = {word: k for k, word in enumerate(["[UNK]", "[EOS]", *WORDS])}
    core = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    core.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="[UNK]", eos_token="[EOS]", pad_token="[EOS]"
    )


def on_disk(model: PreTrainedModel, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """The folder of a model and its tokenizer, as transformers writes it."""
    model.to(dtype).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def values(model: torch.nn.Module) -> list[torch.Tensor]:
    """What its parameters are now."""
    return [p.detach().clone() for p in model.parameters()]


def same(one: list[torch.Tensor], two: list[torch.Tensor]) -> bool:
    """Whether they agree to the bit."""
    return all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
