"""Healing from end to end: a student that comes near its teacher, and what is refused before."""

import gc
import json
import weakref
from copy import deepcopy
from inspect import isfunction, unwrap
from math import exp
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import T5Config, T5ForConditionalGeneration

import tiny
from bondwise import lowrank, tensorize
from bondwise.errors import BudgetError, CheckpointError, DataError, SelectionError
from bondwise.evaluate.language import compare
from bondwise.heal.heal import heal
from bondwise.heal.training_data import as_windows, told_windows, training_data
from bondwise.layers.linear import TensorLinear
from bondwise.train.recipe import Healing, suited
from nets import thorough
from tiny import same, values

LENGTH = 16
HELD = tiny.tokens(16, LENGTH, seed=9)
CALM = {"rate": 3e-3, "batch": 4, "micro": 4, "patience": 0}
STAGES = {"steps": 6, "save_every": 0.0, "temperature": 2.0} | CALM


def cut(teacher):
    """A student of a teacher, and this; what did not change is shared by both."""
    return tensorize(teacher, keep=0.5).model, teacher


@pytest.fixture(scope="module")
def pair():
    return cut(tiny.llama())


def padded(rows, *lengths):
    """Batches of rows with so many tokens each."""
    mask = (torch.arange(LENGTH) < torch.tensor(lengths)[:, None]).long()
    parts = tiny.tokens(rows, LENGTH).split(len(lengths))
    return [{"input_ids": ids, "attention_mask": mask} for ids in parts]


def vectors(count):
    return torch.randn(count, 8, generator=torch.Generator().manual_seed(2))


def windows(rows=40):
    return tiny.tokens(rows, LENGTH)


def kl(model, teacher):
    return compare(model, teacher, HELD).kl


def test_a_student_comes_near_its_teacher_and_nothing_given_changes(pair):
    student, teacher = pair
    before = values(student), values(teacher)
    healed = heal(student, teacher, windows(), steps=40, every=40, **CALM)
    far, near = kl(student, teacher), kl(healed.model, teacher)
    assert near < 0.8 * far
    assert same(values(student), before[0])
    assert same(values(teacher), before[1])
    assert healed.steps == len(healed.history) == 40
    assert healed.measured == "perplexity"
    assert healed.before > 0
    assert all(not m.training for m in healed.model.modules())
    assert all(p.requires_grad and p.grad is None for p in healed.model.parameters())


@pytest.mark.parametrize("tied", [False, True])
def test_in_place_the_student_is_trained_and_the_teacher_it_shares_with_is_not(tied):
    student, teacher = cut(tiny.llama(tied))
    student.model.embed_tokens = teacher.model.embed_tokens  # a module, parameters, a view
    student.lm_head.weight = teacher.lm_head.weight
    student.model.layers[0].input_layernorm = teacher.model.layers[0].input_layernorm
    student.model.norm.weight = torch.nn.Parameter(teacher.model.norm.weight.data)
    ids, wanted = tiny.tokens(2), teacher(tiny.tokens(2)).logits
    before = values(student), values(teacher)
    assert heal(student, teacher, windows(), steps=4, inplace=True, **CALM).model is student
    assert same(values(teacher), before[1])
    assert not same(values(student), before[0])
    assert (student.lm_head.weight is student.model.embed_tokens.weight) == tied
    mine, theirs = ({p.data_ptr() for p in m.parameters()} for m in (student, teacher))
    assert not mine & theirs
    assert not set(student.modules()) & set(teacher.modules())
    assert torch.equal(teacher(ids).logits, wanted)


def test_a_student_in_bfloat16_is_trained_in_float32_and_given_back(pair):
    student, teacher = (deepcopy(model).bfloat16() for model in pair)
    kinds, heard = [], []

    def wrap(model):
        kinds.extend(p.dtype for p in model.parameters())
        return model

    healed = heal(student, teacher, windows(), steps=30, wrap=wrap, tell=heard.append, **CALM)
    assert set(kinds) == {torch.float32}
    assert {p.dtype for p in healed.model.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in student.parameters()} == {torch.bfloat16}
    assert kl(healed.model, teacher) < 0.9 * kl(student, teacher)
    assert heard[1:] == healed.history


def cut_at(stage, done):
    def progress(name, at, total):
        if (name, at) == (stage, done):
            raise KeyboardInterrupt

    return progress


@pytest.fixture(scope="module")
def uncut(pair):
    return heal(*pair, windows(12), **STAGES)


@pytest.mark.parametrize("cut", [("teacher", 10), ("heal", 4)])
def test_a_healing_that_is_cut_off_and_resumed_is_the_one_that_was_not(pair, uncut, tmp_path, cut):
    with pytest.raises(KeyboardInterrupt):
        heal(*pair, windows(12), state=tmp_path, progress=cut_at(*cut), **STAGES)
    found = heal(*pair, windows(12), state=tmp_path, **STAGES)
    assert same(values(found.model), values(uncut.model))
    assert [line["loss"] for line in found.history] == [line["loss"] for line in uncut.history]
    assert (found.before, found.after, found.steps) == (uncut.before, uncut.after, uncut.steps)


def test_a_healing_that_had_ended_is_read_and_another_one_is_refused(pair, uncut, tmp_path):
    found = heal(*pair, windows(12), state=tmp_path, **STAGES)
    again = heal(*pair, windows(12), state=tmp_path, progress=cut_at("heal", 6), **STAGES)
    assert same(values(again.model), values(found.model))
    assert again.history == found.history
    with pytest.raises(CheckpointError, match=r"another healing \(other data\)"):
        heal(*pair, windows(), state=tmp_path, **STAGES)
    with pytest.raises(CheckpointError, match=r"another healing \(rate 0.003, not 0.1\)"):
        heal(*pair, windows(12), state=tmp_path, **STAGES | {"rate": 0.1})
    other = deepcopy(pair[1])
    nn.init.zeros_(other.lm_head.weight)
    with pytest.raises(CheckpointError, match=r"another healing \(another teacher\)"):
        heal(pair[0], lambda: other, windows(12), state=tmp_path, **STAGES)
    fresh = heal(*pair, windows(12), state=tmp_path, resume=False, **STAGES | {"rate": 1e-3})
    assert not same(values(fresh.model), values(uncut.model))


@pytest.mark.parametrize("decided", [True, False])
def test_a_time_becomes_steps_that_a_resumed_run_keeps(pair, tmp_path, decided):
    """Or, of a state from before the time was steps, the recorded ones."""
    choices = {"minutes": 0.03, "save_every": 1000.0 if decided else 0.0} | CALM
    with pytest.raises(KeyboardInterrupt):
        heal(*pair, windows(), state=tmp_path, progress=cut_at("heal", 10), **choices)
    path = tmp_path / "heal.json"
    about = json.loads(path.read_text())
    if not decided:
        assert json.loads((tmp_path / "steps" / "run.json").read_text())["step"] == 9
        about["decided"]["steps"] = 13  # a time that was measured would not come to this
        path.write_text(json.dumps(about))
    found = heal(*pair, windows(), state=tmp_path, **choices)
    steps = about["decided"]["steps"]
    assert len(found.history) == found.steps == steps >= 10
    assert json.loads(path.read_text())["decided"]["steps"] == steps


def test_a_teacher_that_can_be_loaded_is_let_go_before_the_training(pair):
    student, teacher = pair
    loaded, alive = [], []

    def load():
        made = deepcopy(teacher)
        loaded.append(weakref.ref(made))
        return made

    def tell(entry):
        if not alive:
            gc.collect()
        alive.append(loaded[0]() is not None)

    healed = heal(student, load, windows(), steps=2, tell=tell, **CALM)
    assert kl(healed.model, teacher) < kl(student, teacher)
    assert not any(alive)
    assert len(loaded) == 1


def test_a_dense_student_learns_likewise():
    teacher, student = tiny.llama(), tiny.llama()
    with torch.no_grad():
        for p in student.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    healed = heal(student, teacher, windows(), steps=20, **CALM)
    assert kl(healed.model, teacher) < 0.9 * kl(student, teacher)


def test_only_what_is_meant_to_train_changes(pair):
    healed = heal(*pair, windows(), steps=4, train="norms", **CALM)
    named = zip(pair[0].named_parameters(), healed.model.parameters(), strict=True)
    changed = {"norm" in name for (name, p), q in named if not torch.equal(p, q)}
    assert changed == {True}


@pytest.mark.parametrize("border", ["\n\n", "\n", " "])
def test_no_token_that_is_held_out_is_trained_on(border):
    """Every word is another one, so what is held out can be told apart."""
    words = [f"w{k}" for k in range(3000)]
    text = border.join(" ".join(words[k : k + 20]) for k in range(0, 3000, 20))

    class Words:
        bos_token_id = None

        def __call__(self, texts, **_named):
            if isinstance(texts, str):
                return {"input_ids": [1]}
            split = [[int(w[1:]) for w in t.split()] or [-1] for t in texts]
            return {"input_ids": split}

    recipe = Healing(steps=1, length=32, validate=8)
    found = training_data(nn.Linear(2, 2), text, Words(), recipe)
    shown, held = set(found.shown.flatten().tolist()), set(found.held.flatten().tolist())
    assert found.held.shape == (8, 32)
    assert not shown & held - {-1}
    assert max(shown) < min(held - {-1})
    assert len(found.shown) > 70
    if border != " ":  # what is held out begins with a document, or a line
        assert min(held - {-1}) % 20 == 0


@pytest.mark.parametrize(("end", "count"), [("", 1), ("\n" * 600, 1), ("-" * 4000, 0)])
def test_an_end_with_few_tokens_is_held_out_with_what_stands_before_it(end, count):
    text, tokenizer = tiny.text(7 * 32) + end, tiny.tokenizer()
    found = training_data(nn.Linear(2, 2), text, tokenizer, Healing(steps=1, length=32))
    assert len(found.held) + len(found.shown) <= 8
    assert len(found.shown) >= 3
    assert len(found.held) == count
    assert ["too little" in note for note in found.notes] == [True] * (1 - count)


def test_so_many_windows_are_trained_on_whatever_judges_them():
    ids, recipe = tiny.tokens(16, LENGTH), Healing(steps=1, windows=4)
    for judge in (None, HELD):
        assert len(training_data(nn.Linear(2, 2), ids, None, recipe, judge).shown) == 4


@pytest.mark.parametrize(
    ("data", "validate", "said"),
    [
        (windows(1), 8, "too little data came to hold any out"),
        (windows(16).chunk(1), 8, "too little data came to hold any out"),
        (windows(16).chunk(2), 8, "too little data came to hold any out"),
        (windows(16).chunk(8), 0, "nothing is held out"),
    ],
)
def test_none_is_held_out_and_that_is_said(pair, data, validate, said):
    data = data if torch.is_tensor(data) else [{"input_ids": ids} for ids in data]
    healed = heal(*pair, data, steps=3, **CALM | {"validate": validate})
    assert (healed.before, len(healed.history)) == (None, 3)
    assert healed.notes[0].startswith(said)


@pytest.mark.usefixtures("in_float32")
def test_what_was_given_to_judge_on_is_judged_on(pair):
    healed = heal(*pair, windows(), validation=HELD, steps=4, **CALM)
    for model, found in ((pair[0], healed.before), (healed.model, healed.after)):
        wanted = compare(model, pair[1], HELD).model.perplexity
        assert found == pytest.approx(wanted, rel=1e-4)


def test_batches_of_tokens_become_windows():
    ids = tiny.tokens(6, 10)
    mask = torch.ones_like(ids)
    assert torch.equal(as_windows([{"input_ids": ids, "attention_mask": mask}], 4), ids)
    mask[0, 5:] = 0
    found = as_windows([{"input_ids": ids, "attention_mask": mask}], 11)
    flat = torch.cat([ids[0, :5], ids[1:].flatten()])
    assert torch.equal(found.flatten(), flat[:55])
    with pytest.raises(DataError, match="The data has 55 tokens, but a window needs 100"):
        as_windows([{"input_ids": ids, "attention_mask": mask}], 100)


def conversations():
    """Rows of several lengths, of which some tokens count: padded left, right and not at all."""
    draw = torch.Generator().manual_seed(0)
    rows = []
    for length in (6, 9, 12, 7, 12, 10, 8, 11, 12, 5):
        ids = torch.randint(1, 128, (length,), generator=draw)
        said = torch.rand(length, generator=draw) < 0.4
        said[2] = True
        rows.append({"input_ids": ids, "labels": ids.where(said, torch.tensor(-100))})
    return rows


def nats(model, rows):
    """Of every token that counts, as transformers has it, each row by itself."""
    total = counted = 0.0
    for row in rows:
        told = int(row["labels"][1:].ne(-100).sum())
        with torch.no_grad():
            total += told * float(model(**{n: v[None] for n, v in row.items()}).loss)
        counted += told
    return total / counted


@pytest.mark.usefixtures("in_float32")
@pytest.mark.parametrize("micro", [3, 16])
def test_only_tokens_that_count_are_learned_and_judged(pair, micro):
    rows, student = conversations(), pair[0]
    shown = {"validation": rows, "rate": 0.0, "distil": 0.0, "task": 1.0, "micro": micro}
    healed = heal(*pair, rows, steps=1, batch=len(rows), **shown)
    assert healed.before == pytest.approx(exp(nats(student, rows)), rel=1e-4)
    assert healed.history[0]["loss"] == pytest.approx(nats(student, rows), rel=1e-4)


def test_nothing_of_what_does_not_count_is_learned(pair):
    """Whatever the teacher says there: the student is trained by the tokens that count alone."""
    rows = conversations()
    for row in rows:
        row["labels"][:] = -100
    with pytest.raises(DataError, match="No token of the data counts in the loss"):
        heal(*pair, rows, steps=1)


def test_windows_of_what_counts_are_rows_cut_to_length():
    ids = torch.arange(1, 13).view(2, 6)
    told = torch.tensor([[0, 1, 0, 0, 1, 1], [0, 0, 0, 0, 0, 1]]).bool()
    mask = torch.tensor([[1, 1, 1, 1, 1, 0], [0, 0, 1, 1, 1, 1]])
    batch = {"input_ids": ids, "attention_mask": mask, "labels": ids.where(told, -100)}
    found, counts = told_windows([batch], 4)
    assert found.tolist() == [[1, 2, 3, 4], [9, 10, 11, 12]]
    assert counts.tolist() == [[False, True, False, False], [False, False, False, True]]
    plain = batch | {"labels": ids.where(mask.bool(), -100)}
    assert told_windows([plain], 4)[1] is None  # labels that only leave out padding


def mlps(norm=False):
    torch.manual_seed(0)
    between = nn.BatchNorm1d(32) if norm else nn.Tanh()
    teacher = nn.Sequential(nn.Linear(8, 32), between, nn.Linear(32, 4)).eval()
    student = deepcopy(teacher)
    student[0] = TensorLinear.from_linear(student[0], lowrank(32, 8, 3))
    return student, teacher


@pytest.mark.parametrize("norm", [False, True])
def test_any_module_learns_to_give_what_the_teacher_gives(norm):
    student, teacher = mlps(norm)
    statistics = {name: b.clone() for name, b in teacher.named_buffers()}
    healed = heal(student, teacher, vectors(256), steps=80, rate=0.01, batch=32, micro=32)
    assert healed.measured == "error"
    assert healed.after < 0.75 * healed.before
    kept = dict(healed.model.named_buffers())
    assert all(torch.equal(kept[name], own) for name, own in statistics.items())


@pytest.mark.usefixtures("in_float32")
def test_a_loader_of_batches_and_parts_of_them():
    rows = torch.utils.data.TensorDataset(vectors(64))
    loader = torch.utils.data.DataLoader(rows, batch_size=16)
    choices = {"steps": 20, "rate": 0.01, "batch": 16, "validate": 8}
    whole, parts = (heal(*mlps(), loader, micro=micro, **choices) for micro in (16, 5))
    assert whole.after < whole.before
    torch.testing.assert_close(values(whole.model), values(parts.model), rtol=1e-3, atol=1e-4)


def test_an_encoder_learns_its_last_hidden_state_under_a_mask():
    batches = padded(40, 9, LENGTH, LENGTH, LENGTH)
    healed = heal(*cut(tiny.bert()), batches, steps=8, rate=2e-4, micro=3)
    assert healed.measured == "error"
    assert healed.after < healed.before


@pytest.mark.usefixtures("in_float32")
def test_parts_of_a_padded_batch_add_up_to_it():
    """Every token weighs alike, so a sample of two of them weighs a sixteenth of a whole one."""
    both, batches = cut(tiny.bert()), padded(16, LENGTH, 2, LENGTH, 0)
    whole = heal(*both, batches, steps=3, rate=1e-3, micro=4)
    for micro in (1, 2, 3):
        parts = heal(*both, batches, steps=3, rate=1e-3, micro=micro)
        assert (whole.before, whole.after) == pytest.approx((parts.before, parts.after), rel=1e-3)
        losses = ([line["loss"] for line in found.history] for found in (whole, parts))
        assert next(losses) == pytest.approx(next(losses), rel=1e-3)


def test_an_encoder_and_decoder_learns_its_logits():
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=128, d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4,
        decoder_start_token_id=0,
    )  # fmt: skip
    batches = [
        {
            "input_ids": tiny.tokens(2, 12, seed=k),
            "labels": tiny.tokens(2, 10, seed=50 + k),
            "scale": torch.tensor(1.0),  # unknown to it, and no sample
        }
        for k in range(12)
    ]
    both = cut(T5ForConditionalGeneration(config).eval())
    healed = heal(*both, batches, steps=8, rate=2e-3, micro=1)
    assert healed.measured == "error"
    assert healed.after < healed.before


@pytest.mark.parametrize("given", [torch.float32, *thorough(torch.bfloat16)])
@pytest.mark.parametrize("precision", ["auto", "float32", *thorough("bfloat16")])
def test_short_models_take_vectors_of_any_kind(precision, given):
    student, teacher = (model.bfloat16() for model in mlps(norm=True))
    x = vectors(64).to(given)
    healed = heal(student, teacher, x, steps=20, rate=0.01, precision=precision)
    assert healed.after < healed.before
    assert {t.dtype for t in healed.model.state_dict().values() if t.ndim} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("make", "choices"),
    [
        (tiny.bert, {"train": "pooler"}),
        (tiny.llama, {"train": "lm_head", "distil": 0, "hidden": 1}),
    ],
)
def test_what_trains_has_to_be_in_the_loss(make, choices):
    with pytest.raises(SelectionError, match=r"train=.* came, and none of it is in the loss"):
        heal(*cut(make()), windows(), steps=2, **choices)


@pytest.mark.usefixtures("in_float32")
@pytest.mark.parametrize("make", [tiny.llama, tiny.gpt2, tiny.bert])
def test_a_copy_of_the_teacher_has_nothing_to_learn(make):
    """Whatever is dropped, masked or rounded on the way would show as a loss."""
    teacher = make().train()  # as a user may hand it over
    batches = padded(16, 9, LENGTH, LENGTH, LENGTH)
    healed = heal(deepcopy(teacher), teacher, batches, steps=3, rate=0, top_k=128, length=8)
    assert max(line["loss"] for line in healed.history) < 1e-4


def dense():
    return tiny.cut("llama").dense


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ({"student": lambda: tiny.cut("llama").result}, DataError, r"type Result came; .*\.model"),
        (dict.fromkeys(("student", "teacher"), dense), DataError, "The student is the teacher"),
        (
            {"student": dense, "teacher": lambda: tiny.cut("llama").result.model},
            DataError,
            "The student is dense and the teacher has tensor networks",
        ),
        ({"teacher": "teacher"}, DataError, "A teacher of type str came; give a module"),
        ({"teacher": tiny.bert}, DataError, "A BertModel came as the teacher"),
        ({"student": lambda: tiny.llama().requires_grad_(False)}, SelectionError, "nothing trains"),
        ({"train": "none"}, SelectionError, "nothing trains"),
        ({"train": 5}, BudgetError, "train=5 came; write all, cores"),
        ({"data": windows().flatten()}, DataError, r"A tensor of shape \(640,\) came as data"),
        ({"data": windows() + 100}, DataError, "tokens or positions that the model lacks"),
        ({"data": "bond core", "tokenizer": None}, DataError, "Text came without a tokenizer"),
        ({"validation": "a b\n", "tokenizer": None}, DataError, "Text came without a tokenizer"),
        ({"data": "bond core rank"}, DataError, "has 3 tokens, but 1 windows of 64 need 64"),
        ({"data": Path("none.txt")}, DataError, "There is no text file"),
    ],
)
def test_what_cannot_be_healed_is_refused(pair, given, error, said):
    usual = {"student": pair[0], "teacher": pair[1], "data": windows(), "steps": 2}
    given = usual | {"tokenizer": tiny.tokenizer()} | given
    given = {name: value() if isfunction(value) else value for name, value in given.items()}
    with pytest.raises(error, match=said):
        unwrap(heal)(**given)  # as users have it: types are checked in tests alone


def test_what_is_not_given_fits_what_is_healed(pair):
    """Two windows of text a step, 8 to 64 samples of anything else; the rate goes with the root."""
    spoken = heal(*pair, windows(), steps=1).recipe
    assert (spoken.batch, spoken.rate) == (2, pytest.approx(3e-5))
    small = heal(*mlps(), vectors(64), steps=1).recipe
    assert (small.batch, small.micro, small.rate) == (64, 64, pytest.approx(6e-5 * 8**0.5))
    sizes = {n: suited(Healing(steps=1), {}, False, 1, n).batch for n in (3072, 150_528, None)}
    assert sizes == {3072: 16, 150_528: 8, None: 8}
    given = heal(*pair, windows(), steps=1, batch=32).recipe
    assert (given.batch, given.rate) == (32, pytest.approx(1.2e-4))

    shares = [suited(Healing(steps=1), {}, is_causal=True, processes=k).batch for k in (1, 2, 3, 8)]
    assert shares == [2, 2, 3, 8]  # every process has a window
