"""The loss of a language model against plain torch, however it is cut, cast or computed twice."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from transformers import BertForMaskedLM, GPT2Config, GPT2LMHeadModel, OPTConfig, OPTForCausalLM

import tiny
from bondwise.errors import BudgetError, DataError
from bondwise.evaluate.language import perplexity
from bondwise.flow.identity import difference
from bondwise.heal import distil
from bondwise.heal import timing as pace
from bondwise.heal.distil import LanguageTask, LazyTeacherCache, Teacher, head_of, is_causal
from bondwise.heal.modes import judging, training
from bondwise.layers.linear import TensorLinear
from bondwise.progress import silent
from bondwise.topology.lowrank import lowrank
from bondwise.train import sampler
from bondwise.train.recipe import Healing, healing
from bondwise.train.sampler import chunked, micro_batches, padded_shard, sample_order

WORDS = 128
RECIPE = Healing(steps=1, batch=8, micro=8, top_k=WORDS, precision="float32")


def pair():
    """A student and a teacher."""
    teacher, student = tiny.llama(), tiny.llama()
    torch.manual_seed(5)
    with torch.no_grad():
        for p in student.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return student, teacher


def speech(student, teacher, folder, recipe=RECIPE, head=True):
    windows, said = tiny.tokens(16, 12), None
    if teacher is not None:
        said = LazyTeacherCache(Teacher(teacher), windows, folder, recipe, silent)
        said.upto(len(windows))
    found = head_of(student, windows) if head else None
    return LanguageTask(student, student, windows, tiny.tokens(5, 12, seed=3), said, recipe, found)


def gradients(task):
    task.student.zero_grad()
    losses = [task.loss(0, part) for part in range(task.parts)]
    for loss in losses:
        loss.backward()
    return sum(loss.item() for loss in losses), [p.grad.clone() for p in task.student.parameters()]


def by_hand(student, teacher, ids, temperature=1.0, distil=1.0, task=0.0, hidden=0.0):
    """Plain torch, all logits at once."""
    with torch.no_grad():
        theirs = teacher(ids, output_hidden_states=True)
    ours = student(ids, output_hidden_states=True)
    p = F.log_softmax(theirs.logits[:, :-1] / temperature, -1)
    q = F.log_softmax(ours.logits[:, :-1] / temperature, -1)
    kl = temperature**2 * (p.exp() * (p - q)).sum(-1).mean()
    nats = F.cross_entropy(ours.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    y, given = theirs.hidden_states[-1][:, :-1], ours.hidden_states[-1][:, :-1]
    off = ((given - y).square().sum(-1) / y.square().sum(-1)).mean()
    return distil * kl + task * nats + hidden * off


@pytest.mark.usefixtures("in_float32")
@pytest.mark.parametrize("head", [True, False])
@pytest.mark.parametrize(
    "mix", [{}, {"temperature": 2.0, "task": 0.5}, {"distil": 0.0, "task": 1.0}, {"hidden": 0.7}]
)
def test_the_loss_and_its_gradients_are_those_of_plain_torch(tmp_path, mix, head):
    student, teacher = pair()
    if "hidden" in mix and not head:
        with pytest.raises(DataError, match=r"hidden=0.7 came for LlamaFor.*write hidden=0"):
            speech(student, None, tmp_path, replace(RECIPE, **mix), head)
        return
    task = speech(student, teacher, tmp_path, replace(RECIPE, **mix), head)
    loss, found = gradients(task)
    student.zero_grad()
    wanted = by_hand(student, teacher, tiny.tokens(16, 12)[:8], **mix)
    wanted.backward()
    assert loss == pytest.approx(wanted.item(), rel=2e-3)  # the teacher's are kept in float16
    for own, p in zip(found, student.parameters(), strict=True):
        torch.testing.assert_close(own, p.grad, rtol=2e-2, atol=2e-3 * p.grad.abs().max().item())


def test_a_head_of_cores_learns(tmp_path):
    student, teacher = pair()
    student.lm_head = TensorLinear.from_linear(student.lm_head, lowrank(WORDS, 48, 16))
    task = speech(student, teacher, tmp_path)
    assert isinstance(task.head, TensorLinear)
    loss, found = gradients(task)
    wanted = by_hand(student, teacher, tiny.tokens(16, 12)[:8])
    assert loss == pytest.approx(wanted.item(), rel=2e-3)
    assert all(g.any() for g in found)


@pytest.mark.parametrize("micro", [1, 3, 5])
def test_parts_add_up_to_the_batch(tmp_path, micro):
    student, teacher = (model.double() for model in pair())
    whole = gradients(speech(student, teacher, tmp_path / "a"))
    parts = speech(student, teacher, tmp_path / "b", replace(RECIPE, micro=micro))
    assert parts.parts == -(-8 // micro)
    found = gradients(parts)
    assert found[0] == pytest.approx(whole[0], rel=1e-6)
    torch.testing.assert_close(found[1], whole[1], rtol=1e-5, atol=1e-7)


def test_activations_computed_twice_give_the_same_gradients(tmp_path):
    student, teacher = pair()
    task = speech(student, teacher, tmp_path)
    with training(student):
        once = gradients(task)
    with training(student, checkpointing=True):
        calls = []
        student.model.layers[0].input_layernorm.register_forward_hook(lambda *_: calls.append(1))
        twice = gradients(task)
        assert len(calls) == 2
    assert once[0] == twice[0]
    assert not any(getattr(m, "gradient_checkpointing", False) for m in student.modules())
    torch.testing.assert_close(once[1], twice[1])


def test_a_model_without_checkpointing_is_named():
    wanted = pytest.raises(BudgetError, match="checkpointing=True came for Linear")
    with wanted, training(torch.nn.Linear(2, 2), checkpointing=True):
        pass


def test_products_in_bfloat16_are_near_and_everything_else_stays_float32(tmp_path):
    student, teacher = pair()
    wanted = gradients(speech(student, teacher, tmp_path / "a"))
    seen, layer = [], student.model.layers[0].mlp.up_proj
    layer.register_forward_hook(lambda _m, _a, y: seen.append(y.dtype))
    task = speech(student, teacher, tmp_path / "b", replace(RECIPE, precision="bfloat16"))
    found = gradients(task)
    assert seen[-1] == torch.bfloat16
    assert found[0] == pytest.approx(wanted[0], rel=0.05)
    for own, other in zip(found[1], wanted[1], strict=True):
        assert own.dtype == torch.float32
        assert (own - other).norm() < 0.1 * other.norm()


@pytest.mark.parametrize("head", [True, False])
@pytest.mark.parametrize("micro", [2, 8])
def test_what_is_measured_is_the_perplexity(tmp_path, head, micro):
    student = pair()[0]
    task = speech(student, None, tmp_path, replace(RECIPE, micro=micro), head)
    wanted = perplexity(student, tiny.tokens(5, 12, seed=3)).perplexity
    assert task.measure() == pytest.approx(wanted, rel=1e-5)
    with torch.no_grad():
        student.lm_head.weight.mul_(1e6)
    assert task.measure() == float("inf")  # it overflows


@pytest.mark.usefixtures("in_float32")
def test_the_teacher_is_asked_in_parts_and_once(tmp_path):
    calls, windows = [], tiny.tokens(10, 12)

    def load():
        calls.append(1)
        return tiny.llama()

    teacher = Teacher(load)
    found = LazyTeacherCache(teacher, windows, tmp_path, RECIPE, silent)
    for count in (4, 3, 100):
        found.upto(count)
    teacher.forget()
    assert (len(calls), found.count) == (1, 10)
    assert teacher._loaded is None
    top, hidden = found.of([9, 0, 3, 4])
    with torch.no_grad():
        logs = tiny.llama()(windows[[9, 0, 3, 4]]).logits[:, :-1].flatten(0, 1).log_softmax(-1)
    torch.testing.assert_close(top.logs.float(), logs.gather(1, top.ids.long()), atol=1e-2, rtol=0)
    assert hidden is None


def test_models_that_see_what_follows_do_not_speak():
    masked = BertForMaskedLM(tiny.bert().config)
    models = [tiny.llama(), tiny.gpt2(), masked, tiny.bert(), torch.nn.Linear(2, 2)]
    said = [is_causal(model, tiny.tokens(2, 12)) for model in models]
    assert said == [True, True, False, False, False]


def dropping(name):
    """A tiny model that drops half of everything when it trains."""
    torch.manual_seed(0)
    if name == "gpt2":
        drops = dict.fromkeys(("attn_pdrop", "resid_pdrop", "embd_pdrop"), 0.5)
        sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
        return GPT2LMHeadModel(GPT2Config(**sizes, **drops, vocab_size=WORDS))
    drops = dict.fromkeys(("dropout", "attention_dropout", "layerdrop"), 0.5)
    sizes = {"hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"max_position_embeddings": 64, "word_embed_proj_dim": 32}
    return OPTForCausalLM(OPTConfig(**sizes, **drops, vocab_size=WORDS))


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", ["gpt2", "opt"])
def test_a_model_that_trains_drops_nothing_and_is_then_as_it_was(name, checkpointing):
    model, ids = dropping(name), {"input_ids": tiny.tokens(2, 12), "use_cache": False}
    last = list(model.base_model.modules())[-1].eval()
    before = {n: (m.training, dict(vars(m))) for n, m in model.named_modules()}
    with judging(model), torch.no_grad():
        wanted = model(**ids).logits
    model.train()
    last.eval()
    assert not torch.allclose(model(**ids).logits, wanted, atol=1e-3)
    with training(model, checkpointing):
        torch.testing.assert_close(model(**ids).logits, wanted)
        blocks = [m.training for m in model.modules() if hasattr(m, "gradient_checkpointing")]
        assert any(blocks) == checkpointing
        with judging(model):
            assert not any(m.training for m in model.modules())
        assert any(m.training for m in model.modules()) == checkpointing
    after = {n: (m.training, dict(vars(m))) for n, m in model.named_modules()}
    own = ("training", "dropout", "layerdrop", "p")
    for n, (mode, values) in before.items():
        assert after[n][0] == mode
        assert all(after[n][1].get(k) == values.get(k) for k in own)


def test_recurrent_layers_alone_are_in_training_mode():
    """cuDNN makes no gradients of recurrent layers elsewhere."""
    rnn, cores = torch.nn.LSTM(4, 4, 2, dropout=0.5), TensorLinear(lowrank(4, 4, 2))
    model = torch.nn.ModuleList([rnn, cores, torch.nn.BatchNorm1d(4)]).eval()
    with training(model):
        assert [m.training for m in model] == [True, False, False]
        assert rnn.dropout == 0.0
    assert rnn.dropout == 0.5
    assert not any(m.training for m in model.modules())


@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 3))
def test_every_window_is_seen_once_each_time_through(count, batch, seed):
    steps = -(-2 * count // batch)
    seen = [row for step in range(steps) for row in sample_order(step, batch, count, seed)]
    assert seen[:count] == list(range(count))
    assert sorted(seen[count : 2 * count]) == list(range(count))


@given(st.integers(1, 40), st.integers(1, 12))
def test_the_parts_of_a_batch_hold_each_place_once(batch, micro):
    parts = micro_batches(batch, micro)
    assert [place for part in parts for place in part] == list(range(batch))
    assert all(len(part) <= micro for part in parts)
    shard = chunked(padded_shard(batch), micro)
    assert [row for some in shard for row, _ in some] == list(range(batch))


def test_processes_share_a_batch(monkeypatch):
    monkeypatch.setattr(sampler, "world", lambda: 2)
    monkeypatch.setattr(sampler, "rank", lambda: 1)
    assert micro_batches(8, 3) == [range(4, 7), range(7, 8)]
    assert padded_shard(3) == [(1, 1.0), (0, 0.0)]
    said = "batch=7 came for 2 processes; write a multiple such as 8"
    with pytest.raises(BudgetError, match=said):
        micro_batches(7, 3)


def test_processes_judge_in_as_many_calls_and_find_what_one_finds(tmp_path, monkeypatch):
    """FSDP gathers at every call: a process that made more of them would wait for ever."""
    student = tiny.llama()
    task = speech(student, None, tmp_path)
    alone, calls, sums = task.measure(), [], []
    monkeypatch.setattr(sampler, "world", lambda: 2)
    monkeypatch.setattr(distil, "agreed", lambda values, *_: sums.append(values) or values)
    student.register_forward_hook(lambda *_: calls.append(sampler.rank()))
    for rank in (0, 1):
        monkeypatch.setattr(sampler, "rank", lambda rank=rank: rank)
        task.measure()
    assert calls.count(0) == calls.count(1) > 0
    nats, counted = (sum(values) for values in zip(*sums, strict=True))
    assert counted == len(task.held) == 5
    assert math.exp(nats / counted) == pytest.approx(alone, rel=1e-5)


@pytest.mark.parametrize(("left", "steps"), [(100.0, 10 + 40), (0.0, 10), (10.0, 10 + 4)])
def test_steps_that_a_time_allows(tmp_path, left, steps):
    """A step takes a second and its windows, of which there are enough for each, 1.5."""
    said = LazyTeacherCache(Teacher(tiny.llama()), tiny.tokens(8000, 12), tmp_path, RECIPE, silent)
    said.per_window = 1.5 / RECIPE.batch
    said._parts.append((0, type("TeacherCache", (), {"count": 10 * RECIPE.batch})))
    now = pace.time.perf_counter
    found = pace.steps_within(1.0, 0.0, until=now() + left, recipe=RECIPE, answers=said)
    assert found in (steps, max(10, steps - 1))
    for every, more in ((None, 92), (1, 50)):  # eight looks take a second each; one after each
        recipe = replace(RECIPE, every=every)
        found = pace.steps_within(1.0, 1.0, until=now() + 100.5, recipe=recipe, answers=None)
        assert found == 10 + more


@pytest.mark.parametrize(
    ("choices", "says"),
    [
        ({}, "steps=None and minutes=None came"),
        ({"steps": 3, "minutes": 1.0}, "give one of the two"),
        ({"steps": 0}, "steps=0 came; write 1 or more"),
        ({"minutes": 0.0}, "minutes=0.0 came"),
        ({"steps": 3, "warmup": 1.5}, "warmup=1.5 came; write 0 to 1"),
        ({"steps": 3, "rate": float("nan")}, "rate=nan came"),
        ({"steps": 3, "batch": 2.5}, "batch=2.5 came; write a value of type int"),
        ({"steps": 3, "length": 1}, "length=1 came; write 2 or more"),
        ({"steps": 3, "precision": "int4"}, "precision='int4' came; write one of auto"),
        ({"steps": 3, "train": ()}, "train=.. came"),
        ({"steps": 3, "colour": 1}, "colour=1 came; a healing has steps, minutes"),
    ],
)
def test_choices_that_cannot_be_followed(choices, says):
    with pytest.raises(BudgetError, match=says.replace("(", r"\(")):
        healing(**choices)


def test_a_recipe_is_plain_json():
    recipe = healing(steps=3, train=["norms", "re:core"], minutes=None)
    assert recipe.to_json()["train"] == ["norms", "re:core"]
    assert recipe.choice == ["norms", "re:core"]
    assert healing(steps=3, train="norms").choice == "norms"
    other = replace(recipe, rate=0.1)
    assert difference(recipe.to_json(), other.to_json()) == "rate 3e-05, not 0.1"
