"""Slices and what is between them: the states of a model, kept as files, whoever asked for them."""

from copy import deepcopy
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import tiny
from bondwise import TensorLinear, lowrank
from bondwise.errors import DataError
from bondwise.flow.boundaries import Boundaries
from bondwise.flow.slices import Row, slices

pytestmark = pytest.mark.usefixtures("in_float32")


def sequential(*ways):
    """Linear layers, by what each is made of, and functions between them."""
    torch.manual_seed(0)
    parts = [part for way in ways or [(8, 8)] * 3 for part in (nn.Linear(*way), nn.Tanh())]
    return nn.Sequential(*parts)


def vectors():
    return list(torch.randn(4, 16, 8, generator=torch.Generator().manual_seed(1)))


def padded(rows=8, length=16):
    """Two rows a batch, the second one half padding."""
    mask = torch.ones(2, length, dtype=torch.long)
    mask[1, length // 2 :] = 0
    parts = tiny.tokens(rows, length).split(2)
    return [{"input_ids": ids, "attention_mask": mask} for ids in parts]


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


MODELS = {
    "llama": (tiny.llama, lambda: list(tiny.tokens(8, 16).split(4))),
    "gpt2": (tiny.gpt2, lambda: list(tiny.tokens(8, 16).split(4))),
    "bert": (tiny.bert, padded),
    "sequential": (sequential, vectors),
    "arguments": (Varied, vectors),
}


def compressed(teacher):
    """A copy whose layers are low rank."""
    student = deepcopy(teacher)
    for name, layer in teacher.named_modules():
        if isinstance(layer, nn.Linear):
            made = TensorLinear.from_linear(layer, lowrank(*layer.weight.shape, 4))
            student.set_submodule(name, made)
    return student


@torch.no_grad()
def states(model, names, batches):
    """What the named blocks give: a list of batches for each."""
    found = {name: [] for name in names}

    def keep(name):
        return lambda _m, _a, out: found[name].append(out if torch.is_tensor(out) else out[0])

    handles = [model.get_submodule(n).register_forward_hook(keep(n)) for n in names]
    for batch in batches:
        _ = model(batch) if torch.is_tensor(batch) else model(**batch)
    for handle in handles:
        handle.remove()
    return found


close = partial(torch.testing.assert_close, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", MODELS)
def test_they_are_the_states_of_the_model(kind, tmp_path):
    """In any order, however large the slices, and when some of the files were removed."""
    make, data = MODELS[kind]
    model, batches = make().eval(), data()
    for size in (1, 2, 9):
        parts = slices(model, model, size)
        wanted = states(model, [part.names[-1] for part in parts], batches)
        found = Boundaries(model, parts, batches, tmp_path, f"model-{size}")
        assert found.in_a_row
        for at in reversed(range(len(parts))):
            close(found.leaving(at), wanted[parts[at].names[-1]])
            assert len(found.entering(at)) == len(batches)
        masks = [None if torch.is_tensor(b) else b["attention_mask"].bool() for b in batches]
        torch.testing.assert_close(list(found.masks), masks)
        for path in list(tmp_path.glob(f"model-{size}-*"))[1:]:
            path.unlink(missing_ok=path.name.endswith("000.safetensors"))
        again = Boundaries(model, parts, batches, tmp_path, f"model-{size}")
        close(again.leaving(len(parts) - 1), wanted[parts[-1].names[-1]])
        found.clear()
        assert not list(tmp_path.glob(f"model-{size}-*"))


def test_a_way_through_other_blocks_gives_what_these_give(tmp_path):
    teacher = sequential()
    student = compressed(teacher)
    parts, batches = slices(student, teacher), vectors()
    wanted = states(student, [part.names[-1] for part in parts], batches)
    rows = [Row.of(student, part.names) for part in parts]
    found = Boundaries(teacher, parts, batches, tmp_path, "student", rows.__getitem__)
    for at, part in enumerate(parts):
        close(found.leaving(at), wanted[part.names[-1]])
    assert [row.training for row in rows] == [True] * 3


def test_only_a_few_are_kept_at_a_time(tmp_path):
    model, seen = sequential(*[(8, 8)] * 6), []
    parts = slices(model, model)
    found = Boundaries(model, parts, vectors(), tmp_path, "model")
    for at in range(len(parts)):
        found.entering(at)
        found.leaving(at)
        found.forget(at)
        seen.append(len(list(tmp_path.iterdir())))
    assert max(seen) <= 3  # of seven: the first one, what enters and what leaves


def test_a_state_that_is_no_number_is_named(tmp_path):
    model = sequential()
    parts, batches = slices(model, model), vectors()
    nn.init.constant_(model[2].weight, float("nan"))
    found = Boundaries(model, parts, batches, tmp_path, "model")
    found.leaving(0)
    with pytest.raises(DataError, match=r"2 to 3 of Sequential gives NaN"):
        found.leaving(1)
    assert len(list(tmp_path.iterdir())) == 2
    with pytest.raises(DataError, match="no batch"):
        Boundaries(model, parts, [], tmp_path, "none")


class Skipping(nn.Module):
    """Blocks that do not run in a row: the second one gets a sum."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))

    def forward(self, x):
        y = self.blocks[0](x)
        return self.blocks[2](self.blocks[1](torch.tanh(x + y)))


def test_blocks_that_do_not_run_in_a_row_have_none(tmp_path):
    model = Skipping()
    found = Boundaries(model, slices(model, model), vectors(), tmp_path, "model")
    assert not found.in_a_row
    assert not list(tmp_path.iterdir())


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


@pytest.mark.parametrize(
    ("teacher", "said"),
    [
        ([(8, 8)] * 4, r"The student \(Sequential\) has 0 to 5, the teacher \(Sequential\) 0 to 7"),
        (
            [(8, 12), (12, 8), (8, 8)],
            r"0\.weight of the student .* \(8, 8\), the teacher's has \(12, 8\)",
        ),
        (
            [(8, 8), (8, 8, False), (8, 8)],
            r"2\.bias of the student has the shape \(8,\), the teacher's has none",
        ),
        (None, r"the teacher \(GPT2LMHeadModel\) transformer\.h\.0 to transformer\.h\.1"),
    ],
)
def test_slices_that_do_not_line_up_are_both_named(teacher, said):
    with pytest.raises(DataError, match=said):
        slices(compressed(sequential()), sequential(*teacher) if teacher else tiny.gpt2())


def test_what_cannot_be_cut():
    with pytest.raises(DataError, match="Slices of -1 blocks"):
        slices(sequential(), sequential(), -1)
    with pytest.raises(DataError, match="Linear has no blocks and no layers"):
        slices(nn.Linear(4, 4), nn.Linear(4, 4))
    one = nn.Sequential(nn.Linear(8, 8))
    assert [part.names for part in slices(compressed(one), one)] == [("0",)]
