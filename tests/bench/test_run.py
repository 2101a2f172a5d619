"""A run does what it says: it reads once, then writes what the model itself would."""

import pytest
import torch

import tiny
from bondwise.bench.run import BATCH, Load, prompts, run, vocabulary, writes
from bondwise.errors import DataError


def calls(model):
    """The token ids that a model is given."""
    given = []
    model.register_forward_pre_hook(
        lambda _, __, kwargs: given.append(kwargs["input_ids"]), with_kwargs=True
    )
    return given


@pytest.mark.parametrize("model", [tiny.llama(), tiny.gpt2()], ids=["llama", "gpt2"])
def test_a_language_model_reads_the_prompt_and_writes_what_generate_writes(model):
    ids = prompts(Load(prompt=12), 128, "cpu")
    expected = model.generate(
        ids[:1], max_new_tokens=6, do_sample=False, eos_token_id=None, pad_token_id=0
    )[0, 12:]
    given = calls(model)
    run(model, ids, Load(12, 5), lambda: 0.0)
    assert [tuple(each.shape) for each in given] == [(1, 12)] + 5 * [(1, 1)]
    assert [int(each) for each in given[1:]] == expected[:5].tolist()


def test_the_meter_is_read_at_the_ends_of_each_part_and_only_last_logits_are_computed():
    model, ids, seen = tiny.llama(), prompts(Load(prompt=8), 128, "cpu"), []
    model.lm_head.register_forward_hook(lambda _, __, out: seen.append(tuple(out.shape)))
    given = calls(model)
    parts = run(model, ids, Load(8, 3), lambda: float(len(given)))
    assert parts == {"prefill": 1.0, "decode": 3.0}
    assert seen == 4 * [(1, 1, 128)]


def test_an_encoder_reads_one_text_and_then_all():
    model = tiny.bert()
    given = calls(model)
    parts = run(model, prompts(Load(prompt=8), 128, "cpu"), Load(8, 3), lambda: float(len(given)))
    assert [tuple(each.shape) for each in given] == [(1, 8), (BATCH, 8)]
    assert parts == {"forward": 1.0, "batched": 1.0}


def test_prompts_follow_the_seed_and_stay_in_the_vocabulary():
    one, same, other = (prompts(Load(prompt=40, seed=seed), 7, "cpu") for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert one.min() == 0
    assert one.max() == 6


def test_kinds_and_vocabularies():
    models = (tiny.llama(), tiny.gpt2(), tiny.bert())
    assert [writes(model) for model in models] == [True, True, False]
    assert [vocabulary(model) for model in models] == [128, 128, 128]


def test_a_model_that_keeps_nothing_is_refused(monkeypatch):
    model = tiny.llama()
    forward = model.forward

    def forgetful(**kwargs):
        return forward(**kwargs | {"use_cache": False})

    monkeypatch.setattr(model, "forward", forgetful)
    with pytest.raises(DataError, match="LlamaForCausalLM keeps no keys and values between tokens"):
        run(model, prompts(Load(prompt=8), 128, "cpu"), Load(8, 1), lambda: 0.0)
