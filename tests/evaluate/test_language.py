"""Perplexity against the loss of transformers, the divergence against torch in float64."""

import math

import pytest
import torch
from torch.nn import functional as F
from transformers import LlamaForCausalLM

import tiny
from bondwise.errors import DataError
from bondwise.evaluate.language import compare, generate_sample, perplexity


def teacher():
    """Another llama than `tiny.llama`."""
    config = tiny.llama().config
    torch.manual_seed(1)
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def ids() -> torch.Tensor:
    # 150 predicted tokens a window: more than one chunk of logits
    return tiny.tokens(5, 151, seed=1)


@pytest.mark.parametrize("make", [tiny.llama, tiny.gpt2])
def test_perplexity_is_the_exponential_of_the_loss_of_transformers(make, ids) -> None:
    model, ids = make(), ids if make is tiny.llama else ids[:, :64]  # all that GPT-2 takes
    expected = model(input_ids=ids, labels=ids).loss.item()
    score = perplexity(model, ids, batch=2)
    assert score.perplexity == pytest.approx(math.exp(expected), rel=1e-5)
    alone = [model(input_ids=row[None], labels=row[None]).loss.item() for row in ids]
    assert score.nats.tolist() == pytest.approx(alone, rel=1e-5)


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_divergence_and_agreement_match_float64(batch, ids) -> None:
    model, other = tiny.llama(), teacher()
    got = compare(model, other, ids, batch=batch)
    log_q = F.log_softmax(model.double()(ids).logits[:, :-1], dim=-1).detach()
    log_p = F.log_softmax(other.double()(ids).logits[:, :-1], dim=-1).detach()
    kl = F.kl_div(log_q, log_p, log_target=True, reduction="none").sum(dim=-1).mean()
    assert got.kl == pytest.approx(kl.item(), rel=1e-4)
    agree = (log_q.argmax(dim=-1) == log_p.argmax(dim=-1)).double().mean()
    assert got.top1 == pytest.approx(agree.item(), abs=0.01)
    nll = -log_q.gather(2, ids[:, 1:, None]).mean()
    assert got.model.perplexity == pytest.approx(nll.exp().item(), rel=1e-4)
    assert got.ratio == pytest.approx(got.model.perplexity / got.teacher.perplexity, rel=1e-9)


def test_a_model_is_its_own_equal(ids) -> None:
    model = tiny.llama()
    got = compare(model, model, ids)
    assert (got.kl, got.top1, got.ratio, got.ratio_low, got.ratio_high) == (0.0, 1.0, 1.0, 1.0, 1.0)


def test_the_interval_follows_the_seed_and_holds_the_ratio(ids) -> None:
    one, same, other = (compare(tiny.llama(), teacher(), ids, seed=s) for s in (0, 0, 2))
    assert (one.ratio_low, one.ratio_high) == (same.ratio_low, same.ratio_high)
    assert (one.ratio_low, one.ratio_high) != (other.ratio_low, other.ratio_high)
    assert one.ratio_low < one.ratio < one.ratio_high
    # Five windows: the width of a normal interval (1.96 standard errors), roughly.
    differences = one.model.nats - one.teacher.nats
    width = 2 * 1.96 * differences.std() / math.sqrt(5)
    assert math.log(one.ratio_high / one.ratio_low) == pytest.approx(width.item(), rel=0.4)


def test_the_interval_is_paired() -> None:
    """Windows that differ wildly from each other, but alike for both models: a narrow interval."""
    model = tiny.llama()
    easy = model.generate(torch.tensor([[1]]), max_length=64, min_length=64, do_sample=False)
    hard = tiny.tokens(1, 64)
    close = tiny.llama()
    with torch.no_grad():
        close.model.layers[0].mlp.up_proj.weight *= 1.001
    got = compare(close, model, torch.cat([easy, hard] * 4))
    assert got.teacher.nats.max() - got.teacher.nats.min() > 1
    assert got.ratio_high - got.ratio_low < 0.01


def test_bfloat16_computes_beside_the_model_and_leaves_it_as_it_was(ids) -> None:
    model = tiny.llama().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    got = perplexity(model, ids, dtype=torch.bfloat16).perplexity
    assert model.training
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    twin = tiny.llama().to(torch.bfloat16)
    twin.model.rotary_emb.inv_freq = tiny.llama().model.rotary_emb.inv_freq
    assert got == perplexity(twin, ids).perplexity
    assert got != perplexity(model, ids).perplexity


def test_progress_is_told_after_every_batch(ids) -> None:
    told = []
    perplexity(tiny.llama(), ids, batch=2, progress=lambda *at: told.append(at))
    assert told == [(2, 5), (4, 5), (5, 5)]


def test_entry_has_what_the_report_reads(ids) -> None:
    entry = compare(tiny.llama(), teacher(), ids).entry("some text")
    assert entry["windows"] == 5
    assert entry["after"].keys() == {"perplexity", "kl", "top1"}
    assert entry["ratio_low"] < entry["after"]["perplexity"] / entry["before"]["perplexity"]


def test_what_cannot_be_measured_ends_in_one_sentence(ids) -> None:
    plain, broken, wide = tiny.llama(), tiny.llama(), tiny.llama()
    torch.nn.init.constant_(broken.model.layers[1].mlp.up_proj.weight, float("nan"))
    wide.resize_token_embeddings(129)
    for said, call, *given in (
        ("LlamaForCausalLM is not finite on window 0", perplexity, broken, ids),
        ("not finite", compare, plain, broken, ids),
        ("vocabulary of 128, its teacher of 129", compare, plain, wide, ids),
        ("Token 500 is outside", perplexity, plain, torch.full((1, 8), 500)),
        ("predict nothing", perplexity, plain, ids[:, :1]),
        ("predict nothing", perplexity, plain, ids[:0]),
    ):
        with pytest.raises(DataError, match=said):
            call(*given)


@pytest.mark.parametrize("make", [tiny.llama, tiny.gpt2])
def test_a_sample_is_the_greedy_one_of_transformers(make) -> None:
    model, words = make().train(), tiny.tokenizer()
    got = generate_sample(model, words, "bond core rank", tokens=12)
    assert model.training
    given = words("bond core rank", return_tensors="pt")
    rules = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": 1, "pad_token_id": 1}
    expected = model.eval().generate(given.input_ids, attention_mask=given.attention_mask, **rules)
    assert got == words.decode(expected[0, 3:], skip_special_tokens=True) != ""


@pytest.mark.parametrize("form", ["rows", "batches", "array", "padded"])
def test_windows_in_every_form_are_the_same(form):
    model, ids = tiny.llama(), tiny.tokens(6, 12)
    mask = torch.cat([torch.ones_like(ids), torch.zeros_like(ids[:, :3])], 1)
    data = {
        "rows": [{"input_ids": row.tolist()} for row in ids],
        "batches": [ids[:2], ids[2:]],
        "array": ids.numpy(),
        "padded": [{"input_ids": F.pad(ids, (0, 3)), "attention_mask": mask}],
    }[form]
    assert perplexity(model, data).perplexity == perplexity(model, ids).perplexity
    with pytest.raises(DataError, match="Text came without a tokenizer"):
        perplexity(model, ["some words"])
