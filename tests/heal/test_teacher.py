"""What a teacher says: the same as asking it directly, kept whole or not at all, read in parts."""

from functools import partial
from pathlib import Path

import pytest
import torch
import transformers
from safetensors import SafetensorError
from torch import nn

import tiny
from bondwise.errors import CheckpointError, DataError
from bondwise.flow.chains import blocks
from bondwise.heal import teacher as module
from bondwise.heal.head import (
    check_vocabularies,
    head_weight,
    instead,
    last_hidden,
    logits_head,
    vocabulary_size,
)
from bondwise.heal.losses import logits_loss, top, vocabulary_loss
from bondwise.heal.teacher import TeacherCache, cache_teacher
from bondwise.layers.linear import TensorLinear
from bondwise.topology.lowrank import lowrank
from bondwise.train.recipe import Mix

LENGTH = 12


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch):
    monkeypatch.setattr(module, "SHARD", 4)
    # no bfloat16, whatever the machine is built for: the oracle has none
    monkeypatch.setattr(blocks, "fast_bfloat16", lambda _device: False)


def windows(count=10):
    return tiny.tokens(count, LENGTH)


@torch.no_grad()
def asked(model, ids, k=8, temperature=1.0):
    """The teacher asked directly."""
    logits = model(ids).logits[:, :-1].flatten(0, 1)
    return top(logits, k, temperature)


def counted(model):
    """Filled with one thing each time the model is called."""
    calls = []
    model.base_model.register_forward_hook(lambda *_: calls.append(1))
    return calls


def gemma(final_logit_softcapping=30.0):
    torch.manual_seed(0)
    config = transformers.Gemma2Config(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, vocab_size=128,
        final_logit_softcapping=final_logit_softcapping,
    )  # fmt: skip
    return transformers.Gemma2ForCausalLM(config).eval()


def nan():
    model = tiny.llama()
    model.model.norm.weight.data.fill_(float("nan"))
    return model


def tensor_head():
    model = tiny.llama()
    model.lm_head = TensorLinear(lowrank(128, 48, 16))
    return model


@pytest.mark.parametrize("make", [tiny.llama, tiny.gpt2, gemma, tensor_head])
@pytest.mark.parametrize("hidden", [False, True])
def test_it_says_what_the_teacher_says(make, hidden, tmp_path):
    model, ids = make(), windows()
    said = cache_teacher(
        model, ids, tmp_path / "a" / "said", k=8, temperature=2.0, hidden=hidden, batch=3
    )
    found, state = said.of([7, 0, 9])
    wanted = asked(model, ids[[7, 0, 9]], 8, 2.0)
    assert torch.equal(found.ids, wanted.ids)
    assert found.logs.dtype == torch.float16
    torch.testing.assert_close(found.logs.float(), wanted.logs, atol=3e-3, rtol=1e-3)
    if not hidden:
        assert state is None
        return
    with torch.no_grad():
        last = model(ids[[7, 0, 9]], output_hidden_states=True).hidden_states[-1][:, :-1]
    torch.testing.assert_close(state.float(), last.flatten(0, 1), atol=0.02, rtol=0.01)


def test_what_is_there_is_not_asked_again(tmp_path):
    model, ids = tiny.llama(), windows()
    seen = []
    first = cache_teacher(model, ids, tmp_path, k=8, progress=lambda *step: seen.append(step))
    assert seen == [("teacher", 4, 10), ("teacher", 8, 10), ("teacher", 10, 10)]
    calls = counted(model)
    again = cache_teacher(model, ids, tmp_path, k=8)
    assert len(calls) == 0
    assert again == first == TeacherCache(tmp_path.absolute(), 10, LENGTH, 8, 1.0, False)
    assert torch.equal(again.of([5])[0].ids, first.of([5])[0].ids)
    for other in (10, -1):
        with pytest.raises(DataError, match=f"Window {other} came; write one of 0 to 9"):
            again.of([other])


def test_a_stopped_run_goes_on(tmp_path, monkeypatch):
    model, ids = tiny.llama(), windows()

    def stop(stage, done, total):
        if done == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache_teacher(model, ids, tmp_path, k=8, batch=4, progress=stop)
    assert len(list(tmp_path.glob("windows-*"))) == 2
    calls = counted(model)
    said = cache_teacher(model, ids, tmp_path, k=8, batch=4)
    assert len(calls) == 2  # one to see whether the head is plain, one for two windows
    assert torch.equal(said.of(range(10))[0].ids, asked(model, ids).ids)


@pytest.mark.parametrize(
    "changed", [{"k": 4}, {"temperature": 2.0}, {"hidden": True}, {"seed": 1}, {"teacher": 1}]
)
def test_what_others_said_is_replaced(changed, tmp_path):
    model, ids = tiny.llama(), windows()
    cache_teacher(model, ids, tmp_path, k=8)
    for half in ("windows-0000000-0000004.safetensors", "cache.json"):  # as a killed run leaves
        (tmp_path / f".{half}-0a1b2c3d").write_text("{")
    if changed.pop("teacher", None):
        model.model.layers[1].mlp.up_proj.weight.data.mul_(1.5)
    ids = tiny.tokens(5, LENGTH, changed.pop("seed", 0))
    settings = {"k": 8} | changed
    said = cache_teacher(model, ids, tmp_path, **settings)
    wanted = asked(model, ids, settings["k"], settings.get("temperature", 1.0))
    assert torch.equal(said.of(range(5))[0].ids, wanted.ids)
    shards = (f"windows-{part}.safetensors" for part in ("0000000-0000004", "0000004-0000005"))
    assert {path.name for path in tmp_path.iterdir()} == {"cache.json", *shards}


def test_two_processes_share_the_shards(tmp_path, monkeypatch):
    model, ids = tiny.llama(), windows(16)
    order = []
    save = module.save_file

    def noted(tensors, path, metadata):
        order.append(Path(path).name.split("-")[1])
        save(tensors, path, metadata)

    monkeypatch.setattr(module, "save_file", noted)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    said = cache_teacher(model, ids, tmp_path, k=8)
    assert order == ["0000004", "0000012", "0000000", "0000008"]
    assert torch.equal(said.of(range(16))[0].ids, asked(model, ids).ids)
    monkeypatch.setenv("RANK", "0")
    cache_teacher(model, ids, tmp_path, k=8)
    assert len(order) == 4


def test_a_torn_file_is_made_again(tmp_path):
    model, ids = tiny.llama(), windows()
    said = cache_teacher(model, ids, tmp_path, k=8)
    path = tmp_path / "windows-0000004-0000008.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointError, match=r"0000008.* cannot be read .*; remove it"):
        said.of([5])
    said = cache_teacher(model, ids, tmp_path, k=8)
    assert torch.equal(said.of(range(10))[0].ids, asked(model, ids).ids)


@pytest.mark.parametrize("kind", [partial(OSError, 28), SafetensorError])
def test_a_full_disk_is_one_sentence_and_leaves_nothing_half(kind, tmp_path, monkeypatch):
    def full(tensors, path, metadata):
        Path(path).write_bytes(b"half")
        raise kind("No space left on device")

    monkeypatch.setattr(module, "save_file", full)
    with pytest.raises(CheckpointError, match=r"written \(No space left on device\).*; free"):
        cache_teacher(tiny.llama(), windows(), tmp_path, k=8)
    assert [path.name for path in tmp_path.iterdir()] == ["cache.json"]


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("all my work")
    with pytest.raises(CheckpointError, match=r"holds thesis\.tex, which no teacher said"):
        cache_teacher(tiny.llama(), windows(), tmp_path)
    with pytest.raises(CheckpointError, match="is no folder"):
        cache_teacher(tiny.llama(), windows(), tmp_path / "thesis.tex")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_teacher_stays_as_it_was_and_drops_nothing_out(tmp_path):
    model = tiny.gpt2().train()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    said = cache_teacher(model, windows(), tmp_path, k=8)
    assert model.training
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.equal(said.of([0])[0].ids, asked(model.eval(), windows()[:1]).ids)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"windows": torch.zeros(3, dtype=torch.long)}, r"Windows of shape \(3,\)"),
        ({"windows": torch.zeros(3, 4)}, "float32 came; give token ids"),
        ({"windows": torch.zeros(3, 1, dtype=torch.long)}, "3 windows of 1 tokens came"),
        ({"windows": torch.zeros(0, 4, dtype=torch.long)}, "0 windows of 4 tokens came"),
        ({"windows": torch.full((1, 4), 128)}, "Tokens 128 to 128 came for"),
        ({"windows": torch.full((1, 4), -1)}, "Tokens -1 to -1 came"),
        ({"k": 129}, "top_k=129 came for a teacher that knows 128"),
        ({"k": 0}, "top_k=0 came"),
        ({"temperature": 0.0}, "temperature=0.0 came"),
        ({"batch": 0}, "0 at a time"),
        ({"teacher": nan}, "LlamaForCausalLM gives logits with NaN or infinity"),
    ],
)  # fmt: skip
def test_bad_input_is_named(given, message, tmp_path):
    settings = {"windows": windows(2), "folder": tmp_path / "said"} | given
    model = settings.pop("teacher", tiny.llama)()
    with pytest.raises(DataError, match=message):
        cache_teacher(model, **settings)
    assert (tmp_path / "said").exists() == ("teacher" in given)  # which is asked to be known


# the head


HEADS = [tiny.llama, tiny.gpt2, partial(tiny.llama, tied=True), tensor_head]


@pytest.mark.parametrize("make", [*HEADS, partial(gemma, final_logit_softcapping=None)])
def test_a_plain_head_gives_the_logits(make):
    model, ids = make(), windows(2)
    base, head = logits_head(model, ids)
    with torch.no_grad():
        logits = nn.functional.linear(last_hidden(base, ids), *head_weight(head))
        torch.testing.assert_close(logits, model(ids).logits, atol=1e-5, rtol=1e-4)


def cohere():
    config = transformers.CohereConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        vocab_size=128, logit_scale=0.0625,
    )  # fmt: skip
    return transformers.CohereForCausalLM(config).eval()


def bert_for_words():
    return transformers.BertForMaskedLM(tiny.bert().config).eval()


@pytest.mark.parametrize("make", [gemma, cohere, bert_for_words, tiny.bert])
def test_a_head_that_is_not_all_is_none(make):
    model = make()
    assert logits_head(model, windows(1)) is None
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("make", HEADS[1:])
def test_a_loss_in_the_place_of_the_logits_trains_all_alike(make):
    model, ids = make(), windows(2)
    said = asked(tiny.llama(), ids)

    def loss(hidden):
        weight, bias = head_weight(head)
        return vocabulary_loss(hidden[:, :-1].flatten(0, 1), weight, bias, said, None, Mix())

    _, head = logits_head(model, ids)
    with instead(head, loss):
        ours = model(ids).logits
    ours.backward()
    grads = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()
    wanted = logits_loss(model(ids).logits[:, :-1].flatten(0, 1), said, None, Mix())
    wanted.backward()
    torch.testing.assert_close(ours, wanted)
    for name, p in model.named_parameters():
        torch.testing.assert_close(grads[name], p.grad, atol=1e-6, rtol=1e-3)
    assert model(ids).logits.shape == (2, LENGTH, 128)


def test_vocabularies_are_compared():
    one, two = tiny.llama(), tiny.gpt2()
    assert vocabulary_size(one) == vocabulary_size(two) == vocabulary_size(tensor_head()) == 128
    check_vocabularies(one, two)
    check_vocabularies(one, nn.Linear(2, 2))  # it does not say
    check_vocabularies(one, two, [tiny.tokenizer(), tiny.tokenizer()])
    two.resize_token_embeddings(130)
    with pytest.raises(DataError, match="vocabulary of 128, the teacher of 130; give a teacher"):
        check_vocabularies(one, two)
    other = tiny.tokenizer()
    other.add_tokens(["zebra"])
    with pytest.raises(DataError, match=r"1 tokens differ, such as 'zebra'.* none in .* 12 in"):
        check_vocabularies(one, tiny.llama(), [tiny.tokenizer(), other])
