"""The verbs on models that are no language models: code, exported programs, samples."""

import json
import sys

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch.export import Dim, export

import tiny
from bondwise.compress.effort import EFFORT
from verbs import bondwise, documented

pytestmark = pytest.mark.filterwarnings("ignore")  # of torch.export
NETS = """
import torch
from torch.nn import Linear, ReLU, Sequential

def small():
    torch.manual_seed(0)
    return Sequential(Linear(24, 32), ReLU(), Linear(32, 32), ReLU(), Linear(32, 5))
"""


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """The current folder, which is on no path: code, a program of it, samples, a text."""
    monkeypatch.setitem(EFFORT, "fast", tiny.BRIEF)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    name = f"nets_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(NETS)
    draw = torch.Generator().manual_seed(0)
    data = torch.randn(96, 8, generator=draw) @ torch.randn(8, 24, generator=draw)
    torch.save(data, "samples.pt")
    (tmp_path / "text.txt").write_text("words and words " * 50)
    model = model_of_folder(tmp_path / f"{name}.py")
    program = export(model, (data[:3],), dynamic_shapes=({0: Dim.DYNAMIC},))
    torch.export.save(program, "net.pt2")
    yield name
    sys.modules.pop(name, None)


def model_of_folder(path):
    own = {}
    exec(path.read_text(), own)
    return own["small"]().eval()


def test_code_goes_the_whole_way(capsys, shelf, tmp_path):
    code, data = f"{shelf}:small", ("--data", "samples.pt")
    plan = bondwise(capsys, "plan", code, "--keep", 0.5, "--json", "-q").json
    assert [w["name"] for w in plan["weights"] if w["action"] == "tensorize"] == ["0", "2", "4"]
    said = bondwise(capsys, "compress", code, *data, "--keep", 0.5, "--out", "cut", "--json", "-q")
    assert said.code == 0, said.err
    assert said.json["commands"][-1] == f"bondwise eval cut --vs {code} --data FILE"
    assert json.loads((tmp_path / "cut/bondwise.json").read_text())["code"] == code

    again = bondwise(capsys, "compress", "--recipe", "cut/recipe.yaml", "--out", "two", "-q")
    assert again.code == 0, again.err
    one, two = ((tmp_path / f / "model.safetensors").read_bytes() for f in ("cut", "two"))
    assert one == two

    report = bondwise(capsys, "eval", "cut", "--vs", code, *data, "--json", "-q").json
    (entry,) = report["evaluation"]
    assert set(entry) == documented("The evaluation on samples")
    wanted, found = whole(tmp_path, shelf)
    assert entry["samples"] == 96
    assert entry["after"]["error"] == pytest.approx(float((found - wanted).norm() / wanted.norm()))
    same = (found.argmax(1) == wanted.argmax(1)).double().mean()
    assert entry["after"]["agreement"] == pytest.approx(float(same))
    shown = bondwise(capsys, "eval", "cut", "--vs", code, *data, "-q").out
    assert "relative error of the outputs" in shown
    assert max(map(len, shown.splitlines())) <= 80

    refused = bondwise(capsys, "merge", "cut", "--out", "dense", "-q")
    assert (refused.code, f"add --code {code}, if you trust it" in refused.err) == (1, True)
    assert not (tmp_path / "dense").exists()
    assert bondwise(capsys, "merge", "cut", "--out", "dense", "--code", code, "-q").code == 0
    dense = model_of_folder(tmp_path / f"{shelf}.py")
    dense.load_state_dict(load_file("dense/model.safetensors"))
    given = dense(torch.load("samples.pt")).double()
    torch.testing.assert_close(given, found, rtol=1e-4, atol=1e-5)

    teacher = ("--teacher", code, *data, "--out", "healed", "--steps", 40, "--rate", 0.01, "-q")
    healed = bondwise(capsys, "heal", "cut", *teacher, "--json")
    assert healed.code == 0, healed.err
    assert healed.json["healing"]["after"] < healed.json["healing"]["before"]

    report = bondwise(
        capsys, "bench", "cut", "--vs", code, *data, "--repeats", 2, "--json", "-q"
    ).json
    assert set(report) == documented("bench")
    assert report["before"]["macs"] == {"forward": 24 * 32 + 32 * 32 + 32 * 5}
    assert report["after"]["macs"]["forward"] < report["before"]["macs"]["forward"]
    assert (report["batch"], report["kind"], report["after"]["networks"] > 0) == (
        8,
        "samples",
        True,
    )


def whole(folder, name):
    """What the model and the folder `cut` give for the samples, the latter by its own numbers."""
    from bondwise import load

    model = model_of_folder(folder / f"{name}.py")
    data = torch.load(folder / "samples.pt")
    with torch.no_grad():
        cut = load(folder / "cut", model=model)
        return model(data).double(), cut(data).double()


def test_a_program_goes_the_whole_way_and_needs_no_code(capsys, shelf, tmp_path):
    data = ("--data", "samples.pt")
    usual = ("compress", "net.pt2", *data, "--keep", 0.5)
    said = bondwise(capsys, *usual, "--out", "cut", "--json", "-q")
    assert said.code == 0, said.err
    assert yaml.safe_load((tmp_path / "cut/recipe.yaml").read_text())["model"].startswith("/")
    report = bondwise(capsys, "eval", "cut", "--vs", "net.pt2", *data, "--json", "-q").json
    assert 0 < report["evaluation"][0]["after"]["error"] < 0.9
    assert bondwise(capsys, "merge", "cut", "--out", "dense", "-q").code == 0
    alone = torch.export.load("dense/model.pt2").module()
    report = bondwise(capsys, "eval", "dense", "--vs", "cut", *data, "--json", "-q").json
    assert report["evaluation"][0]["after"]["error"] < 1e-5
    given = torch.load("samples.pt")
    from bondwise import load

    torch.testing.assert_close(alone(given), load("cut")(given), rtol=1e-4, atol=1e-5)
    timed = bondwise(capsys, "bench", "cut", "--vs", "net.pt2", "--repeats", 2, "-q")
    assert timed.code == 0, timed.err
    assert "8 at once, samples/s" in timed.out
    assert max(map(len, timed.out.splitlines())) <= 80
    healing = (*usual, "--out", "healed", "--heal", "1s", "--json", "-q")
    assert bondwise(capsys, *healing).json["healing"]["student"] == "healed"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            "compress {0}:small --data text.txt --out o",
            "{0}:small is no language model and reads no",
        ),
        ("compress {0}:small --data gone.pt --out o", "gone.pt; write it with torch.save(tensor, "),
        ("compress net.pt2 --data text.txt --out o", "net.pt2 is no language model"),
        ("eval {0}:small --data samples.pt", "add --vs MODEL, the dense one"),
        ("eval {0}:small --vs {0}:small --data text.txt", "reads no text; give samples"),
        ("bench {0}:small", "what it takes is not known; add samples of it, as --data samples.pt"),
        ("heal net.pt2 --teacher net.pt2 --data samples.pt --out o", "holds no tensor networks"),
        ("merge net.pt2 --out o", "holds no tensor networks"),
        (
            "read net.pt2 --data text.txt --out p.html",
            "net.pt2 reads no text, over which bonds are",
        ),
    ],
)
def test_what_a_verb_cannot_do_with_such_a_model_is_one_sentence(capsys, shelf, words, says):
    said = bondwise(capsys, *words.format(shelf).split(), "-q")
    assert said.code in (1, 2)
    assert says.format(shelf) in said.err
    assert said.err.count("\n") == 1
