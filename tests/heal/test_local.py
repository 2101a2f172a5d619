"""Slices healed on their own: nearer to the teacher, the same however they were shared out."""

import errno
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import tiny
from bondwise import lowrank
from bondwise.errors import BondwiseError, BudgetError, CheckpointError, DataError, SelectionError
from bondwise.flow import files
from bondwise.flow.slices import Row, parameters, slices
from bondwise.heal import alone
from bondwise.heal.local import assemble, heal_locally
from bondwise.layers.layers import TensorLinear
from bondwise.layers.storage import TensorLayer, share

CUT = ("q_proj", "down_proj", "c_attn", "mlp.c_proj", "query", "output.dense")


def compressed(teacher, rank=8):
    """A copy, some of whose linear layers are low rank; all of them in a model of plain layers."""
    student = deepcopy(teacher)
    for name, layer in list(student.named_modules()):
        kind = type(layer).__name__
        if kind in ("Linear", "Conv1D") and (name.endswith(CUT) or not hasattr(teacher, "config")):
            shape = layer.weight.shape if kind == "Linear" else layer.weight.T.shape
            student.set_submodule(name, TensorLinear.from_linear(layer, lowrank(*shape, rank)))
    return student.eval()


def sequential(depth=3, width=8):
    torch.manual_seed(0)
    parts = [part for _ in range(depth) for part in (nn.Linear(width, width), nn.Tanh())]
    return nn.Sequential(*parts)


def vectors(count=6, width=8):
    return list(torch.randn(count, 64, width, generator=torch.Generator().manual_seed(1)))


def padded(rows=8, length=16):
    """Two rows a batch, the second one half padding."""
    ids = tiny.tokens(rows, length)
    mask = torch.ones_like(ids)
    mask[1::2, length // 2 :] = 0
    return [
        {"input_ids": ids[k : k + 2], "attention_mask": mask[k : k + 2]} for k in range(0, rows, 2)
    ]


MODELS = {
    "llama": (tiny.llama, lambda: list(tiny.tokens(16, 16).split(4)), 32),
    "gpt2": (tiny.gpt2, lambda: list(tiny.tokens(16, 16).split(4)), 8),
    "bert": (tiny.bert, padded, 8),
    "sequential": (sequential, vectors, 4),
}


def output(model, batch):
    found = model(batch) if isinstance(batch, torch.Tensor) else model(**batch)
    return found if isinstance(found, torch.Tensor) else found[0]


@torch.no_grad()
def distance(one, two, batches):
    return sum(float((output(one, b) - output(two, b)).pow(2).mean()) for b in batches)


def values(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def same(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


def states(model, names, batches):
    """What the named blocks give, in float64: a list of batches for each."""
    model, found = deepcopy(model).double(), {name: [] for name in names}

    def keep(name):
        return lambda _m, _a, out: found[name].append(out if torch.is_tensor(out) else out[0])

    for name in names:
        model.get_submodule(name).register_forward_hook(keep(name))
    with torch.no_grad():
        for batch in batches:
            output(model, batch.double() if torch.is_tensor(batch) and batch.ndim == 2
                   and batch.is_floating_point() else batch)  # fmt: skip
    return found


def apart(given, wanted, masks):
    """Mean over batches, and in each over tokens, of ``|y~ - y|^2 / |y|^2``."""
    errors = []
    for y, z, mask in zip(given, wanted, masks, strict=True):
        each = (y - z).pow(2).sum(-1) / z.pow(2).sum(-1)
        errors.append(float(each.mean() if mask is None else each[mask.bool()].mean()))
    return sum(errors) / len(errors)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("size", [0, 1, 2])
def test_a_student_comes_nearer_to_its_teacher(kind, size):
    make, data, rank = MODELS[kind]
    teacher, batches = make().eval(), data()
    student = compressed(teacher, rank)
    student.train()
    before, taught = distance(student.eval(), teacher, batches), values(teacher)
    random, modes = torch.get_rng_state(), [m.training for m in student.modules()]
    found = heal_locally(student, teacher, batches, size=size, steps=20, rate=3e-4)
    assert [f.names for f in found] == [part.names for part in slices(student, teacher, size)]
    assert all(f.after <= f.before for f in found)
    assert sum(f.after for f in found) < sum(f.before for f in found)
    assert distance(student, teacher, batches) < before
    assert same(values(teacher), taught)
    assert torch.equal(torch.get_rng_state(), random)
    assert [m.training for m in student.modules()] == modes


@pytest.mark.parametrize("kind", MODELS)
def test_the_errors_are_those_of_the_states_in_plain_float64(kind):
    make, data, rank = MODELS[kind]
    teacher, batches = make().eval(), data()
    student = compressed(teacher, rank)
    names = [part.names[-1] for part in slices(student, teacher)]
    ours, theirs = states(student, names, batches), states(teacher, names, batches)
    masks = [None if torch.is_tensor(b) else b["attention_mask"] for b in batches]
    found = heal_locally(student, teacher, batches, inputs=1.0, steps=0)
    for name, one in zip(names, found, strict=True):
        expected = apart(ours[name][-1:], theirs[name][-1:], masks[-1:])
        assert one.before == one.after == pytest.approx(expected, rel=0.02)  # may run in bfloat16
    before = values(student)
    again = heal_locally(student, teacher, batches, steps=0, held_out=[0, 1])
    expected = apart(ours[names[0]][:2], theirs[names[0]][:2], masks[:2])
    assert again[0].before == pytest.approx(expected, rel=0.02)  # nothing is compressed before it
    assert again[-1].before != pytest.approx(found[-1].before, rel=0.02)
    assert same(values(student), before)


def test_half_of_the_batches_are_the_students():
    """Rates of nothing, and errors on both inputs where a share is between."""
    teacher, batches = sequential(), vectors()
    student = compressed(teacher, 4)
    own, mixed, other = (
        heal_locally(student, teacher, batches, inputs=share, steps=0)[1].before
        for share in (1.0, 0.5, 0.0)
    )
    assert mixed == pytest.approx((own + other) / 2)


def test_going_on_and_two_processes_give_the_same_to_the_bit(tmp_path):
    teacher, batches = tiny.llama(), list(tiny.tokens(16, 8).split(2))
    start = compressed(teacher)
    plain = deepcopy(start)
    expected = heal_locally(plain, teacher, batches, steps=5, inputs=0.5)

    def cut(_stage, done, _total):
        if done == 1:
            raise KeyboardInterrupt

    student = deepcopy(start)
    with pytest.raises(KeyboardInterrupt):
        heal_locally(student, teacher, batches, steps=5, inputs=0.5, folder=tmp_path, progress=cut)
    assert same(values(student), values(start))
    assert [p.name for p in tmp_path.glob("slice-*")] == ["slice-0000.safetensors"]
    changed = (tmp_path / "slice-0000.safetensors").stat().st_mtime_ns
    first = deepcopy(start)
    done = heal_locally(
        first, teacher, batches, steps=5, inputs=0.5, folder=tmp_path, rank=0, world=2
    )
    assert [f.names for f in done] == [expected[0].names]
    assert same(values(first), values(start))  # the other one is missing yet
    with pytest.raises(DataError, match="1 of 2 slices are not healed yet"):
        assemble(first, tmp_path)
    found = heal_locally(
        student, teacher, batches, steps=5, inputs=0.5, folder=tmp_path, rank=1, world=2
    )
    assert (tmp_path / "slice-0000.safetensors").stat().st_mtime_ns == changed
    assert [(f.names, f.before, f.after) for f in found] == [
        (f.names, f.before, f.after) for f in expected
    ]
    assemble(first, tmp_path)
    assert same(values(student), values(plain))
    assert same(values(first), values(plain))


def test_chained_slices_get_what_the_healed_ones_before_give(tmp_path):
    """Its errors are the healed model's, and a run that was cut off ends like one that was not."""
    teacher, batches = sequential(), vectors()
    start = compressed(teacher, 4)
    plain, student = deepcopy(start), deepcopy(start)
    choices = {"steps": 20, "inputs": 1.0, "rate": 3e-3, "chained": True}
    found = heal_locally(plain, teacher, batches, **choices)
    names = [f.names[-1] for f in found]
    ours, theirs = states(plain, names, batches), states(teacher, names, batches)
    for name, one in zip(names, found, strict=True):
        expected = apart(ours[name][-1:], theirs[name][-1:], [None])
        assert one.after == pytest.approx(expected, rel=0.02)

    def cut(_stage, done, _total):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        heal_locally(student, teacher, batches, folder=tmp_path, progress=cut, **choices)
    assert same(values(student), values(start))
    for path in tmp_path.glob("student-0-*"):
        path.unlink()  # they are made again, by way of what was healed
    heal_locally(student, teacher, batches, folder=tmp_path, **choices)
    assert same(values(student), values(plain))
    with pytest.raises(BudgetError, match="chained slices, which wait for one another"):
        heal_locally(student, teacher, batches, folder=tmp_path, world=2, **choices)


def straight():
    """Four layers in a row, and the same of low rank."""
    torch.manual_seed(0)
    teacher = nn.Sequential(*(nn.Linear(8, 8) for _ in range(4)))
    return compressed(teacher, 4), teacher, vectors()


def test_two_at_once_share_the_slices_of_a_folder(tmp_path):
    def work(rank, student, teacher, data):
        heal_locally(student, teacher, data, steps=20, folder=tmp_path, rank=rank, world=2)

    alone, teacher, data = straight()
    heal_locally(alone, teacher, data, steps=20)
    shared, _, _ = straight()
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(work, range(2), *zip(straight(), straight(), strict=True)))
    assemble(shared, tmp_path)
    assert same(values(shared), values(alone))


PROCESS = """
import sys
from pathlib import Path
import torch
from torch import nn
from bondwise import TensorLinear, lowrank
from bondwise.heal.local import heal_locally
torch.set_num_threads(1)
torch.manual_seed(0)
teacher = nn.Sequential(*(nn.Linear(8, 8) for _ in range(4)))
student = nn.Sequential(*(TensorLinear.from_linear(part, lowrank(8, 8, 4)) for part in teacher))
data = list(torch.randn(6, 64, 8, generator=torch.Generator().manual_seed(1)))
heal_locally(student, teacher, data, steps=20, folder=Path(sys.argv[1]), rank=int(sys.argv[2]),
             world=2)
"""


@pytest.mark.slow
def test_two_processes_share_the_slices_of_a_folder(tmp_path):
    alone, teacher, data = straight()
    heal_locally(alone, teacher, data, steps=20)
    shared, _, _ = straight()
    running = [
        subprocess.Popen([sys.executable, "-c", PROCESS, str(tmp_path), str(rank)])
        for rank in range(2)
    ]
    assert [process.wait(timeout=200) for process in running] == [0, 0]
    assemble(shared, tmp_path)
    assert same(values(shared), values(alone))


def test_only_a_few_borders_are_kept_at_a_time_and_none_in_the_end(tmp_path):
    teacher, seen = sequential(6), []

    def look(_stage, _done, _total):
        seen.append(len([p for p in tmp_path.iterdir() if p.name[:7] in ("student", "teacher")]))

    heal_locally(
        compressed(teacher, 4), teacher, vectors(), steps=2, folder=tmp_path, progress=look
    )
    assert max(seen) <= 8  # of 14 borders: the first one, and three of each model
    left = sorted(p.name for p in tmp_path.iterdir())
    assert left == ["about.safetensors", *(f"slice-{k:04d}.safetensors" for k in range(6))]


class Skipping(nn.Module):
    """Blocks that do not run in a row: the second one gets a sum."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.seldom = nn.Linear(8, 8)

    def forward(self, x):
        y = self.blocks[0](x)
        y = self.blocks[1](torch.tanh(x + y))
        some = y[y[:, 0] > 0.5]  # as an expert gets some of the tokens, or none
        extra = self.seldom(some).sum() if len(some) else 0
        return self.blocks[2](torch.tanh(y + x)) + extra


@pytest.mark.usefixtures("in_float32")
@pytest.mark.parametrize("size", [0, 1])
def test_blocks_that_do_not_run_in_a_row_are_healed_layer_by_layer(size, monkeypatch):
    monkeypatch.setattr(alone, "TOGETHER", 2)  # two passes, so two groups of files
    teacher, batches = Skipping(), vectors()
    student = compressed(teacher, 4)
    seen = {}

    def keep(name):
        return lambda _m, args: seen.setdefault(name, []).append(args[0].double())

    handles = [
        layer.register_forward_pre_hook(keep(name))
        for name, layer in teacher.named_modules()
        if isinstance(layer, nn.Linear)
    ]
    for batch in batches:
        teacher(batch)
    for handle in handles:
        handle.remove()
    errors = {}
    for name, entered in seen.items():
        W, V = (deepcopy(m).double().get_submodule(name) for m in (teacher, student))
        x = entered[-1]
        y, z = x @ V.dense().T + V.bias, x @ W.weight.T + W.bias
        errors[name] = float(((y - z).pow(2).sum(-1) / z.pow(2).sum(-1)).mean().detach())
    found = heal_locally(student, teacher, batches, size=size, steps=40)
    assert [f.names[0] for f in found] == ["blocks.0", "blocks.1", "blocks.2"][: len(found)] + (
        ["seldom"] if size == 0 else []
    )
    for one in found:
        assert one.before == pytest.approx(errors[one.names[0]], rel=0.02)
        assert one.after < one.before


def test_layers_that_no_token_reaches_stay_and_are_not_spoken_of():
    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x):
            return self.used(x)

    torch.manual_seed(0)
    teacher = Idle()
    student = compressed(teacher, 2)
    before = values(student.idle)
    found = heal_locally(student, teacher, vectors())
    assert [f.names for f in found] == [("used",)]
    assert same(values(student.idle), before)


def test_padding_is_not_learnt_by_layers():
    teacher, batches = tiny.bert(), padded()
    one, two = compressed(teacher), compressed(teacher)
    other = [
        b | {"input_ids": torch.where(b["attention_mask"] == 1, b["input_ids"], 7)} for b in batches
    ]
    names = "encoder.layer.0.attention.self.query"
    a, b = (
        {f.names[0]: f for f in heal_locally(s, teacher, d, size=0, steps=3)}
        for s, d in ((one, batches), (two, other))
    )
    assert a[names].before == b[names].before
    assert same(values(one.get_submodule(names)), values(two.get_submodule(names)))


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x, scale):
        return (torch.tanh(self.linear(x)) * scale,)


class Varied(nn.Module):
    """Each block gets an argument of its own."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(Scaled() for _ in range(4))

    def forward(self, x):
        for k, block in enumerate(self.blocks):
            (x,) = block(x, scale=torch.full((8,), 1.0 + k))
        return x


@pytest.mark.parametrize("size", [1, 2, 3, 9])
def test_every_block_gets_its_own_arguments(size):
    teacher, batches = Varied(), vectors()
    student = compressed(teacher, 4)
    last = [part.names[-1] for part in slices(student, teacher, size)]
    ours, theirs = states(student, last, batches), states(teacher, last, batches)
    found = heal_locally(student, teacher, batches, size=size, inputs=1.0, steps=20)
    for name, one in zip(last, found, strict=True):
        expected = apart(ours[name][-1:], theirs[name][-1:], [None])
        assert one.before == pytest.approx(expected, rel=0.02)
        assert one.after < one.before


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_students_dtype_stays(dtype):
    teacher = sequential().to(dtype)
    student = compressed(teacher, 4)
    batches = [x.to(dtype) for x in vectors()]
    found = heal_locally(student, teacher, batches, steps=40, rate=3e-3)
    assert found[1].after < found[1].before
    assert {p.dtype for p in student.parameters()} == {dtype}


@pytest.mark.usefixtures("in_float32")
def test_what_trains_and_what_does_not():
    teacher, batches = tiny.llama(), list(tiny.tokens(16, 8).split(2))
    start = compressed(teacher)
    cores = {f"{n}.core_{k}" for n, m in start.named_modules()
             if isinstance(m, TensorLayer) for k in (0, 1)}  # fmt: skip
    norms = {n for n in values(start) if "layernorm" in n}
    blocks = {n for n in values(start) if ".layers." in n}

    def moved(student, **choices):
        heal_locally(student, teacher, batches, steps=5, **choices)
        new, old = values(student), values(start)
        return {name for name in new if not torch.equal(new[name], old[name])}

    assert moved(deepcopy(start)) == blocks  # embedding, last norm and head are in no slice
    assert moved(deepcopy(start), train="cores") == cores
    assert moved(deepcopy(start), train="norms") == norms
    frozen = deepcopy(start)
    frozen.model.layers[0].requires_grad_(False)
    assert not any(name.startswith("model.layers.0") for name in moved(frozen))
    assert not any(p.requires_grad for p in frozen.model.layers[0].parameters())
    with pytest.raises(SelectionError, match="nothing trains"):
        heal_locally(start, teacher, batches, train="nowhere")


def test_what_two_slices_share_is_left_alone_and_what_one_shares_stays_shared():
    teacher = tiny.llama()
    student = compressed(teacher)
    first, second = student.model.layers
    second.input_layernorm.weight = first.input_layernorm.weight
    attention = first.self_attn
    for name in ("k_proj", "v_proj"):
        made = TensorLinear.from_linear(getattr(attention, name), lowrank(24, 48, 8))
        setattr(attention, name, made)
    share([attention.q_proj, attention.k_proj, attention.v_proj])
    parts = slices(student, teacher)
    assert not any("input_layernorm" in n for part in parts for n in parameters(student, part))
    before = first.input_layernorm.weight.clone()
    found = heal_locally(student, teacher, list(tiny.tokens(16, 8).split(2)), steps=40)
    assert found[0].after < found[0].before
    assert torch.equal(first.input_layernorm.weight, before)
    assert attention.q_proj.core_1 is attention.v_proj.core_1


def test_a_dense_student_that_is_its_teacher_stays_as_it_is():
    teacher, batches = tiny.gpt2(), list(tiny.tokens(16, 8).split(2))
    student = deepcopy(teacher)
    found = heal_locally(student, teacher, batches, steps=5)
    assert [f.before for f in found] == [0.0, 0.0]
    assert same(values(student), values(teacher))


@settings(max_examples=25, deadline=None)
@given(
    weighty=st.lists(st.booleans(), min_size=2, max_size=9).filter(lambda w: sum(w) > 1),
    size=st.integers(1, 4),
)
def test_slices_are_all_blocks_in_order(weighty, size):
    teacher = nn.Sequential(*(nn.Linear(4, 4) if w else nn.Tanh() for w in weighty))
    parts = slices(teacher, teacher, size)
    assert [name for part in parts for name in part.names] == [str(k) for k in range(len(weighty))]
    counts = [sum(weighty[int(name)] for name in part.names) for part in parts]
    assert all(count == size for count in counts[:-1])
    assert 1 <= counts[-1] <= size
    x = torch.randn(3, 4)
    for part in parts:
        x = Row.of(teacher, part.names)(x, *[((), {})] * len(part.names))
        assert x.shape == (3, 4)


def other_depth():
    return sequential(4)


def other_width():
    return nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 8), nn.Tanh(),
                         nn.Linear(8, 8), nn.Tanh())  # fmt: skip


def other_bias():
    made = sequential()
    made[2] = nn.Linear(8, 8, bias=False)
    return made


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (other_depth, r"The student \(Sequential\) has 0 to 5, the teacher \(Sequential\) 0 to 7"),
        (
            other_width,
            r"0\.weight of the student .* \(8, 8\), the teacher's has \(12, 8\)",
        ),
        (other_bias, r"2\.bias of the student has the shape \(8,\), the teacher's has none"),
        (tiny.gpt2, r"the teacher \(GPT2LMHeadModel\) transformer\.h\.0 to transformer\.h\.1"),
    ],
)
def test_slices_that_do_not_line_up_are_both_named(make, message, tmp_path):
    student = compressed(sequential(), 4)
    with pytest.raises(DataError, match=message):
        slices(student, make())
    with pytest.raises(DataError):
        heal_locally(student, make(), vectors(), folder=tmp_path / "run")
    with pytest.raises(DataError):
        slices(tiny.llama(), make(), size=0 if make is tiny.gpt2 else 1)


@pytest.mark.parametrize(
    ("choices", "kind", "message"),
    [
        ({"size": -1}, DataError, "Slices of -1 blocks"),
        ({"inputs": 1.5}, BudgetError, "inputs=1.5 came"),
        ({"steps": -1}, BudgetError, "steps=-1"),
        ({"rate": float("nan")}, BudgetError, "rate=nan"),
        ({"rank": 2, "world": 2}, BudgetError, "rank=2 of world=2"),
        ({"world": 2}, BudgetError, "world=2 came without a folder"),
        ({"held_out": [8]}, DataError, r"held_out=\[8\] came with 6 batches"),
    ],
)
def test_bad_choices(choices, kind, message):
    teacher = sequential()
    with pytest.raises(kind, match=message):
        heal_locally(compressed(teacher, 4), teacher, vectors(), **choices)


def test_no_batch_no_network_and_no_number():
    teacher = sequential()
    student = compressed(teacher, 4)
    with pytest.raises(DataError, match="no batch"):
        heal_locally(student, teacher, [])
    with pytest.raises(DataError, match="Linear has no blocks and no layers"):
        slices(nn.Linear(4, 4), nn.Linear(4, 4))
    before = values(student)
    with torch.no_grad():
        teacher[2].weight[0, 0] = float("nan")
    for size in (0, 1):
        with pytest.raises(DataError, match=r"2.* of Sequential gives NaN"):
            heal_locally(student, teacher, vectors(), size=size)
    assert same(values(student), before)


def test_models_on_two_devices_are_refused():
    with pytest.raises(DataError, match="student is on cpu and the teacher on meta"):
        heal_locally(compressed(sequential(), 4), sequential().to("meta"), vectors())


def test_a_rate_that_is_far_too_large_changes_nothing():
    teacher = sequential()
    student = compressed(teacher, 4)
    before = values(student)
    found = heal_locally(student, teacher, vectors(), rate=1e30, steps=20)
    assert all(f.after == f.before for f in found)
    assert same(values(student), before)


@pytest.mark.parametrize("other", ["steps", "data", "student"])
def test_the_folder_of_another_run_is_refused(tmp_path, other):
    teacher, batches = sequential(), vectors()
    student = compressed(teacher, 4)
    start = deepcopy(student)
    heal_locally(student, teacher, batches, steps=3, folder=tmp_path)
    again = deepcopy(start)
    heal_locally(again, teacher, batches, steps=3, folder=tmp_path)
    assert same(values(again), values(student))
    start = compressed(teacher, 3) if other == "student" else start
    shown = batches[::-1] if other == "data" else batches
    with pytest.raises(CheckpointError, match=f"slices of another run .*{other}"):
        heal_locally(start, teacher, shown, steps=4 if other == "steps" else 3, folder=tmp_path)
    with pytest.raises(CheckpointError, match="lacks"):
        assemble(tiny.gpt2(), tmp_path)


def test_a_result_that_was_spoilt_is_named(tmp_path):
    teacher, batches = sequential(), vectors()
    start = compressed(teacher, 4)
    heal_locally(deepcopy(start), teacher, batches, steps=3, folder=tmp_path)
    (tmp_path / "slice-0001.safetensors").write_bytes(b"no such thing")
    with pytest.raises(CheckpointError, match=r"slice-0001\.safetensors cannot be read"):
        heal_locally(start, teacher, batches, steps=3, folder=tmp_path)


def test_a_disk_that_fills_loses_nothing_that_was_done(tmp_path, monkeypatch):
    teacher, batches = sequential(), vectors()
    start = compressed(teacher, 4)
    plain = deepcopy(start)
    heal_locally(plain, teacher, batches, steps=3)
    real, left = files.save_file, [6]

    def full(tensors, path, **named):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(tensors, path, **named)

    monkeypatch.setattr(files, "save_file", full)
    student = deepcopy(start)
    with pytest.raises(CheckpointError, match=r"No space left on device.*free some space") as error:
        heal_locally(student, teacher, batches, steps=3, folder=tmp_path)
    assert isinstance(error.value, BondwiseError)
    assert same(values(student), values(start))
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]
    done = {p: p.stat().st_mtime_ns for p in tmp_path.glob("slice-*")}
    assert done
    monkeypatch.setattr(files, "save_file", real)
    heal_locally(student, teacher, batches, steps=3, folder=tmp_path)
    assert same(values(student), values(plain))
    assert all(p.stat().st_mtime_ns == then for p, then in done.items())
