"""Perplexity against the loss of transformers, the divergence against torch in float64."""

import math

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.nn import functional as F
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from bondwise.errors import DataError
from bondwise.evaluate.language import compare, generate_sample, perplexity

VOCABULARY = 97


def llama(seed: int = 0, vocabulary: int = VOCABULARY) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        initializer_range=0.3,  # logits far from uniform
    )
    return LlamaForCausalLM(config).eval()


def gpt2(seed: int = 0) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=2, initializer_range=0.3
    )
    return GPT2LMHeadModel(config).eval()


@pytest.fixture
def ids() -> torch.Tensor:
    # 150 predicted tokens a window: more than one chunk of logits
    return torch.randint(VOCABULARY, (5, 151), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("make", [llama, gpt2])
def test_perplexity_is_the_exponential_of_the_loss_of_transformers(make, ids) -> None:
    model = make()
    expected = model(input_ids=ids, labels=ids).loss.item()
    score = perplexity(model, ids, batch=2)
    assert score.perplexity == pytest.approx(math.exp(expected), rel=1e-5)
    alone = [model(input_ids=row[None], labels=row[None]).loss.item() for row in ids]
    assert score.nats.tolist() == pytest.approx(alone, rel=1e-5)


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_divergence_and_agreement_match_float64(batch, ids) -> None:
    model, teacher = llama(0), llama(1)
    got = compare(model, teacher, ids, batch=batch)
    log_q = F.log_softmax(model.double()(ids).logits[:, :-1], dim=-1).detach()
    log_p = F.log_softmax(teacher.double()(ids).logits[:, :-1], dim=-1).detach()
    kl = F.kl_div(log_q, log_p, log_target=True, reduction="none").sum(dim=-1).mean()
    assert got.kl == pytest.approx(kl.item(), rel=1e-4)
    agree = (log_q.argmax(dim=-1) == log_p.argmax(dim=-1)).double().mean()
    assert got.top1 == pytest.approx(agree.item(), abs=0.01)
    nll = -log_q.gather(2, ids[:, 1:, None]).mean()
    assert got.model.perplexity == pytest.approx(nll.exp().item(), rel=1e-4)
    assert got.ratio == pytest.approx(got.model.perplexity / got.teacher.perplexity, rel=1e-9)


def test_a_model_is_its_own_equal(ids) -> None:
    model = gpt2()
    got = compare(model, model, ids)
    assert (got.kl, got.top1, got.ratio, got.ratio_low, got.ratio_high) == (0.0, 1.0, 1.0, 1.0, 1.0)


def test_the_interval_follows_the_seed_and_holds_the_ratio(ids) -> None:
    one, same, other = (compare(llama(0), llama(1), ids, seed=s) for s in (0, 0, 1))
    assert (one.ratio_low, one.ratio_high) == (same.ratio_low, same.ratio_high)
    assert (one.ratio_low, one.ratio_high) != (other.ratio_low, other.ratio_high)
    assert one.ratio_low < one.ratio < one.ratio_high
    # Five windows: the width of a normal interval (1.96 standard errors), roughly.
    differences = one.model.nats - one.teacher.nats
    width = 2 * 1.96 * differences.std() / math.sqrt(5)
    assert math.log(one.ratio_high / one.ratio_low) == pytest.approx(width.item(), rel=0.4)


def test_the_interval_is_paired() -> None:
    """Windows that differ wildly from each other, but alike for both models: a narrow interval."""
    model = llama(0)
    easy = model.generate(torch.tensor([[1]]), max_length=64, min_length=64, do_sample=False)
    hard = torch.randint(VOCABULARY, (1, 64), generator=torch.Generator().manual_seed(0))
    close = llama(0)
    with torch.no_grad():
        close.model.layers[0].mlp.up_proj.weight *= 1.001
    got = compare(close, model, torch.cat([easy, hard] * 4))
    assert got.teacher.nats.max() - got.teacher.nats.min() > 1
    assert got.ratio_high - got.ratio_low < 0.01


def test_bfloat16_computes_beside_the_model_and_leaves_it_as_it_was(ids) -> None:
    model = llama().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    got = perplexity(model, ids, dtype=torch.bfloat16).perplexity
    assert model.training
    for name, value in model.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, before[name])
    twin = llama().to(torch.bfloat16)
    twin.model.rotary_emb.inv_freq = llama().model.rotary_emb.inv_freq
    assert got == perplexity(twin, ids).perplexity
    assert got != perplexity(model, ids).perplexity


def test_progress_is_told_after_every_batch(ids) -> None:
    told: list[tuple[int, int]] = []
    perplexity(llama(), ids, batch=2, progress=lambda done, total: told.append((done, total)))
    assert told == [(2, 5), (4, 5), (5, 5)]


def test_entry_has_what_the_report_reads(ids) -> None:
    entry = compare(llama(0), llama(1), ids).entry("some text")
    assert entry["windows"] == 5
    assert entry["after"].keys() == {"perplexity", "kl", "top1"}
    assert entry["ratio_low"] < entry["after"]["perplexity"] / entry["before"]["perplexity"]


def test_what_cannot_be_measured_ends_in_one_sentence(ids) -> None:
    broken = llama()
    with torch.no_grad():
        broken.model.layers[1].mlp.up_proj.weight[0, 0] = float("nan")
    with pytest.raises(DataError, match=r"LlamaForCausalLM is not finite on window 0"):
        perplexity(broken, ids)
    with pytest.raises(DataError, match="not finite"):
        compare(llama(), broken, ids)
    with pytest.raises(DataError, match="vocabulary of 97, its teacher of 98"):
        compare(llama(), llama(vocabulary=98), ids)
    with pytest.raises(DataError, match="Token 500 is outside"):
        perplexity(llama(), torch.full((1, 8), 500))
    with pytest.raises(DataError, match="predict nothing"):
        perplexity(llama(), ids[:, :1])
    with pytest.raises(DataError, match="predict nothing"):
        perplexity(llama(), ids[:0])


@pytest.mark.parametrize("make", [llama, gpt2])
def test_a_sample_is_the_greedy_one_of_transformers(make) -> None:
    words = {"[EOS]": 1} | {f"w{k}": k for k in range(VOCABULARY) if k != 1}
    core = Tokenizer(models.WordLevel(words, unk_token="w0"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="w0", eos_token="[EOS]")
    model = make(seed=1).train()
    got = generate_sample(model, tokenizer, "w5 w6 w7", tokens=12)
    assert model.training
    expected = model.eval().generate(
        torch.tensor([[5, 6, 7]]),
        attention_mask=torch.ones(1, 3, dtype=torch.long),
        max_new_tokens=12,
        do_sample=False,
        eos_token_id=1,
        pad_token_id=1,
    )
    assert got == tokenizer.decode(expected[0, 3:], skip_special_tokens=True)
