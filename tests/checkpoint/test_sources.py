"""Models that no folder of transformers holds: exported programs and code, read and kept."""

import builtins
import io
import json
import sys
import zipfile
from contextlib import suppress
from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.export import Dim, export

from bondwise.checkpoint.checkpoint import load, save
from bondwise.checkpoint.loading import check_source, load_model
from bondwise.checkpoint.others import shown
from bondwise.checkpoint.sources.archive import read_archive
from bondwise.checkpoint.sources.code import is_code, model_of
from bondwise.checkpoint.sources.program import Program
from bondwise.errors import BondwiseError, CheckpointError, DataError
from bondwise.layers.linear import TensorLinear
from bondwise.topology.lowrank import lowrank

pytestmark = pytest.mark.filterwarnings("ignore")  # of torch.export


class Residual(nn.Module):
    """Norms, 'same' and strided convolutions, a buffer, a table as output."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, padding="same", bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.own = nn.Conv2d(8, 8, (3, 1), padding=(1, 0), groups=4)
        self.up = nn.ConvTranspose2d(8, 4, 3, stride=2, output_padding=1)
        self.drop = nn.Dropout()
        self.head = nn.Linear(4, 5)
        self.register_buffer("shift", torch.randn(5))

    def forward(self, x):
        x = torch.relu(self.norm(self.stem(x)))
        x = self.up(x + self.own(x))
        y = self.drop(self.head(x.mean((2, 3)))) + self.shift
        a, b = y.split([2, 3], 1)
        return {"y": y, "parts": (a, b), "flat": x.view(x.shape[0], -1)}


class Sequence(nn.Module):
    """Convolutions over one and three axes, an embedding, a recurrent layer, reflected edges."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(11, 6)
        self.one = nn.Conv1d(6, 8, 3, padding=2, dilation=2, padding_mode="reflect")
        self.back = nn.ConvTranspose1d(8, 4, 4, stride=2, padding=1)
        self.cube = nn.Conv3d(1, 2, 3, padding=1)
        self.gru = nn.GRU(4, 3, batch_first=True)

    def forward(self, ids):
        x = self.back(torch.tanh(self.one(self.table(ids).mT)))
        x = x + self.cube(x[:, None, None]).sum((1, 2))
        return self.gru(x.mT)[0]


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(9, 6), nn.Linear(6, 9, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids):
        return self.head(self.table(ids))


def vgg():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3),
        nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(32, 6), nn.ReLU(), nn.Linear(6, 4),
    )  # fmt: skip


def images(count=3, size=8, seed=0):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def tokens(count=3):
    return torch.randint(9, (count, 12), generator=torch.Generator().manual_seed(0))


def settled(model):
    """In use, with moments of its norms that are not the first ones."""
    torch.manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.normal_(module.weight)
    return model.eval()


def written(model, given, path, *, free=True, core=False):
    """An exported program on disk."""
    shapes = ({0: Dim.DYNAMIC},) if free else None
    program = export(model, (given,), dynamic_shapes=shapes)
    torch.export.save(program.run_decompositions() if core else program, path)
    return path


def same(one, two, **tolerance):
    torch.testing.assert_close(one, two, **tolerance or {"rtol": 0, "atol": 0})


CASES = {
    "residual": (Residual, images, ["stem", "own", "up", "head"]),
    "vgg": (vgg, images, ["0", "3", "6", "8"]),
    "sequence": (Sequence, tokens, ["table", "one", "back", "cube"]),
}


@pytest.mark.parametrize("kind", CASES)
def test_a_program_gives_what_the_model_gives_and_has_its_layers(tmp_path, kind):
    make, given, layers = CASES[kind]
    model = settled(make())
    program = load_model(written(model, given(), tmp_path / "m.pt2")).model
    assert program.batch is None
    for name, module in model.named_modules():
        if name in layers:
            own = program.get_submodule(name)
            assert type(own) is type(module)
            same(own.state_dict(), module.state_dict())
    assert model.state_dict().keys() <= program.state_dict().keys()
    with torch.no_grad():
        for count in (1, 3, 5):
            same(program(given(count)), model(given(count)))
        same(deepcopy(program).train()(given()), model(given()))


def test_norms_are_layers_so_that_they_can_be_folded(tmp_path):
    model = settled(vgg())
    program = read_archive(written(model, images(), tmp_path / "m.pt2"))
    assert isinstance(program.get_submodule("4"), nn.BatchNorm2d)
    same(program.get_submodule("4").state_dict(), model[4].state_dict())


def test_decomposed_programs_have_layers_too(tmp_path):
    model = settled(vgg())
    program = read_archive(written(model, images(), tmp_path / "m.pt2", core=True))
    kinds = [type(module).__name__ for module in program.modules()]
    assert (kinds.count("Conv2d"), kinds.count("Linear"), kinds.count("BatchNorm2d")) == (2, 2, 1)
    with torch.no_grad():
        same(program(images(5)), model(images(5)), rtol=1e-5, atol=1e-6)


def test_what_is_tied_stays_tied_and_is_no_layer(tmp_path):
    model = Tied().eval()
    program = read_archive(written(model, tokens(), tmp_path / "m.pt2"))
    assert not [m for m in program.modules() if isinstance(m, nn.Linear | nn.Embedding)]
    assert len({id(p) for p in program.parameters()}) == 1
    same(program(tokens()), model(tokens()))


def test_one_sample_at_a_time_where_it_was_exported_so(tmp_path):
    model = settled(Residual())
    program = read_archive(written(model, images(1), tmp_path / "m.pt2", free=False))
    assert program.batch == 1
    with torch.no_grad():
        same(program(images(3)), model(images(3)), rtol=1e-5, atol=1e-5)
    assert [len(batch) for batch in shown(program, images(3))] == [1, 1, 1]


def test_sizes_and_names_that_a_program_was_not_exported_for(tmp_path):
    model = settled(vgg())
    free = read_archive(written(model, images(), tmp_path / "m.pt2"))
    four = read_archive(written(model, images(4), tmp_path / "n.pt2", free=False))
    for program, given, says in (
        (
            free,
            images(2, 9),
            r"was exported as \(any, 3, 8, 8\), and \(2, 3, 9, 9\) came; give tha",
        ),
        (four, images(2), r"exported as \(4, 3, 8, 8\), and \(2, .*export with dynamic_shapes="),
    ):
        with pytest.raises(DataError, match=says):
            program(given)
    with pytest.raises(DataError, match="The exported program takes input, and y came"):
        free(y=images())
    with torch.no_grad():
        same(four(images(4)), model(images(4)))


def test_it_can_be_exported_again_with_networks_and_free_sizes(tmp_path):
    program = read_archive(written(settled(vgg()), images(), tmp_path / "m.pt2"))
    cut = program.get_submodule("6")
    program.add_module("6", TensorLinear.from_linear(cut, lowrank(6, 32, 3)))
    torch.export.save(program.exported(), tmp_path / "again.pt2")
    with torch.no_grad():
        found = torch.export.load(tmp_path / "again.pt2").module()(images(5))
        same(found, program(images(5)), rtol=1e-5, atol=1e-6)


class Bomb:
    def __reduce__(self):
        return (exec, ("import builtins; builtins.went_off = True",))


def changed(path, out, name, change):
    """The archive with one member changed."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(out, "w") as new:
        for each in old.namelist():
            content = old.read(each)
            new.writestr(each, change(content) if each.endswith(name) else content)
    return out


def of_json(change):
    def edit(content):
        found = json.loads(content)
        change(found)
        return json.dumps(found)

    return edit


def nodes(found):
    return found["graph_module"]["graph"]["nodes"]


def first_weight(found):
    return next(iter(found["config"].values()))


def pickled(_):
    stream = io.BytesIO()
    torch.save(Bomb(), stream)
    return stream.getvalue()


def test_nothing_in_an_archive_is_unpickled(tmp_path, monkeypatch):
    monkeypatch.setattr(builtins, "went_off", False, raising=False)
    path = written(settled(vgg()), images(), tmp_path / "m.pt2")
    bomb = changed(path, tmp_path / "bomb.pt2", "data/sample_inputs/model.pt", pickled)
    assert isinstance(read_archive(bomb), Program)
    assert not builtins.went_off
    with suppress(Exception):
        torch.export.load(bomb)
    assert builtins.went_off  # so would torch's own reader have had it


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("weights_config.json", lambda j: first_weight(j).update(use_pickle=True), "as a pickle"),
        ("model.json", lambda j: nodes(j)[0].update(target="torch.os.system"), "calls torch.os.sy"),
        ("model.json", lambda j: nodes(j)[0].update(target="_operator.call"), "calls _operator.ca"),
        ("model.json", lambda j: nodes(j)[0].update(target="torch.ops.load_library"), "load_libr"),
        (
            "model.json",
            lambda j: nodes(j)[0].update(target="torch.ops.aten.from_file.default"),
            "calls torch.ops.aten.from_file.default, which is no operation",
        ),
        ("model.json", lambda j: j["schema_version"].update(major=9), "schema 9, this bondwise re"),
        ("model.json", lambda j: j.pop("graph_module"), "cannot be read .*graph_module"),
        (
            "weights_config.json",
            lambda j: first_weight(j)["tensor_meta"].update(sizes=[{"as_int": 10**6}]),
            "cannot be read",
        ),
    ],
)
def test_archives_that_are_refused(tmp_path, name, change, says):
    path = written(settled(vgg()), images(), tmp_path / "m.pt2")
    odd = changed(path, tmp_path / "odd.pt2", name, of_json(change))
    with pytest.raises(CheckpointError, match=says) as told:
        read_archive(odd)
    assert "\n" not in str(told.value)


class Branches(nn.Module):
    def forward(self, x):
        return torch.cond(x.sum() > 0, torch.sin, torch.cos, (x,))


def test_programs_that_cannot_be_run_step_by_step(tmp_path):
    (tmp_path / "no.pt2").write_bytes(b"no archive")
    for make, says in (
        (
            lambda p: written(vgg().train(), images(), p),
            "training mode; export model.eval()|its ow",
        ),
        (lambda p: written(Branches(), images(), p), "has control flow"),
        (lambda _: tmp_path / "no.pt2", "is no exported program; write one with torch.export"),
        (lambda _: tmp_path / "gone.pt2", "There is no file .*gone.pt2"),
    ):
        path = make(tmp_path / "m.pt2")
        with pytest.raises(CheckpointError, match=says):
            load_model(path)


# -- code


NETS = """
import torch
from torch import nn

def small():
    return nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4))

model, number = small(), 3

class Nets:
    inside = model

def wants(width):
    return small()

def gives():
    return {}

def fails():
    raise RuntimeError("no weights there" + chr(10) + "more")
"""


@pytest.fixture
def nets(tmp_path, monkeypatch):
    """A folder with a module that no other test has imported, as the current one."""
    name = f"nets_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(NETS)
    (tmp_path / f"{name}_odd.py").write_text("import nosuchpackage")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield name
    for each in [n for n in sys.modules if n.startswith(name)]:
        del sys.modules[each]


def test_code_is_a_module_or_what_returns_one(nets):
    for source in (f"{nets}:small", f"{nets}:model", f"{nets}:Nets.inside", f"./{nets}.py:small"):
        assert is_code(source)
        assert [type(m).__name__ for m in load_model(source).model] == ["Linear", "ReLU", "Linear"]
    assert not load_model(f"{nets}:model").model.training
    assert load_model(f"{nets}:small", torch.bfloat16).model[0].weight.dtype == torch.bfloat16
    made = load_model(f"{nets}.py:small")
    assert made.code.endswith(f"{nets}.py:small")
    assert made.code.startswith("/")


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("{}_no:small", "There is no module {}_no in this folder or on PYTHONPATH"),
        ("{}.sub:small", "There is no module {}.sub in this"),
        ("{}_odd:small", r"cannot be imported \(ModuleNotFoundError: No module named 'nosuchpa"),
        ("{}:smal", "{} has no attribute smal; it has small, model, Nets, wants, gives"),
        ("{}:number", "is an int, not an nn.Module"),
        ("{}:gives", "gives returned a dict, not an nn.Module"),
        ("{}:wants", r"wants failed \(TypeError: .*'width'\); give a function without arg"),
        ("{}:fails", r"fails failed \(RuntimeError: no weights there\)"),
        ("gone.py:small", "There is no file gone.py"),
    ],
)
def test_code_that_makes_no_model(nets, source, says):
    with pytest.raises(CheckpointError, match=says.replace("{}", nets)) as told:
        load_model(source.format(nets))
    assert "\n" not in str(told.value)


# -- kept, and read again


def test_a_program_is_kept_as_a_graph_and_needs_no_code(tmp_path):
    program = read_archive(written(settled(Residual()), images(), tmp_path / "m.pt2"))
    program.head = TensorLinear.from_linear(program.head, lowrank(5, 4, 2))
    folder = save(program, tmp_path / "kept")
    check_source(folder, networks=True)
    again = load_model(folder).model
    assert isinstance(again.head, TensorLinear)
    with torch.no_grad():
        same(again(images()), program(images()))
    found = json.loads((folder / "graph.json").read_text())
    for change, says in (
        (lambda: found["steps"][0].update(call="torch.os.system"), "calls torch.os.system"),
        (lambda: found.update(schema=7), "schema 7, this bondwise reads 1"),
        (
            lambda: found.update(schema=1) or found.pop("steps"),
            "read .*step",
        ),
    ):
        change()
        (folder / "graph.json").write_text(json.dumps(found))
        with pytest.raises(CheckpointError, match=says):
            load(folder)


def test_code_that_a_folder_names_is_not_imported(nets, tmp_path):
    model = model_of(f"{nets}:small")
    cut = nn.Sequential(TensorLinear.from_linear(model[0], lowrank(6, 8, 2)), *model[1:])
    folder = save(cut, tmp_path / "kept", code=f"{nets}:small")
    del sys.modules[nets]
    says = rf"is not in the checkpoint; .*load\(directory, model='{nets}:small' if you trust it\)"
    with pytest.raises(CheckpointError, match=says):
        load(folder)
    with pytest.raises(CheckpointError, match=f"add --code {nets}:small, if you trust it"):
        load_model(folder)
    assert nets not in sys.modules
    given = torch.ones(2, 8)
    named = load(folder, model=f"{nets}:small")
    for again in (
        named,
        load(folder, model=model_of(f"{nets}:small")),
        load(folder, model=vgg_like),
    ):
        same(again(given), cut(given))
    assert load_model(folder, code=f"{nets}:small").code == f"{nets}:small"
    with pytest.raises(CheckpointError, match="in the checkpoint and conv"):
        load(folder, model=vgg)


def test_a_norm_that_was_folded_comes_back_as_it_is(tmp_path):
    torch.manual_seed(0)
    model = settled(nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)))
    folded = nn.Sequential(torch.nn.utils.fuse_conv_bn_eval(*model), nn.Identity())
    again = load(save(folded, tmp_path / "folded"), model=model)
    assert [type(module) for module in again] == [nn.Conv2d, nn.Identity]
    same(again(images()), folded(images()))
    assert isinstance(model[1], nn.BatchNorm2d)  # what was given is left as it was


def vgg_like():
    return nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4))


def test_text_and_networks_are_asked_of_other_models_in_one_sentence(nets, tmp_path):
    with pytest.raises(DataError, match="reads no text; give samples"):
        check_source(f"{nets}:small", text=True)
    with pytest.raises(BondwiseError, match="holds no tensor networks"):
        check_source(f"{nets}:small", networks=True)
    folder = save(model_of(f"{nets}:small"), tmp_path / "dense", code=f"{nets}:small")
    with pytest.raises(BondwiseError, match="holds no tensor networks"):
        check_source(folder, networks=True)
