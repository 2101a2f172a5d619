"""Registration without an import, and what happens where it is missing: never random weights."""

import importlib
import shutil
import sys
import types

import pytest
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

import bondwise_autoload as autoload
from verbs import edit, process

from .conftest import logits, pop

LOADS = """
{first}
import sys, torch
from transformers import AutoModelForCausalLM
from safetensors.torch import load_file
assert not any(name == "bondwise" or name.startswith("bondwise.") for name in sys.modules)
model = AutoModelForCausalLM.from_pretrained({folder!r})
ids = torch.tensor([[5, 17, 3, 60, 2, 9]])
want = load_file({want!r})["logits"]
with torch.no_grad():  # as what is wanted was made: with gradients other plans run
    logits = model(ids).logits
assert torch.equal(logits, want), (logits - want).abs().max()
print("loaded")
"""

LOUD = """
import sys

class Block:  # bondwise is not installed
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("bondwise", "bondwise_autoload"):
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

block = Block()
sys.meta_path.insert(0, block)
from transformers import AutoModel, AutoModelForCausalLM, LlamaForCausalLM

def all_loud():
    for cls in (AutoModel, AutoModelForCausalLM, LlamaForCausalLM):
        for folder in {folders!r}:
            for ignore in (False, True):
                try:
                    cls.from_pretrained(folder, ignore_mismatched_sizes=ignore)
                except ValueError as error:
                    assert "pip install 'bondwise[hf]'" in str(error), error
                else:
                    raise SystemExit(f"{{cls.__name__}} made up weights: {{folder}} {{ignore}}")
    # the second defence: the notice was taken out by hand
    try:
        LlamaForCausalLM.from_pretrained({unguarded!r})
    except RuntimeError as error:
        assert "size" in str(error) or "mismatch" in str(error), error
    else:
        raise SystemExit("made up weights")
    assert not any(name == "bondwise" or name.startswith("bondwise.") for name in sys.modules)

all_loud()
sys.meta_path.remove(block)  # installed now, but its registration is switched off
all_loud()
import bondwise
assert AutoModelForCausalLM.from_pretrained({folders!r}[0]) is not None
print("loud")
"""


def run(script: str, **env: str) -> str:
    done = process("-c", script, HF_HUB_DISABLE_PROGRESS_BARS="1", **env)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip().rpartition("\n")[2]


@pytest.mark.parametrize(
    "first",
    [
        "import torch",
        pytest.param("import transformers.modeling_utils", marks=pytest.mark.thorough),
        pytest.param("import transformers.quantizers.auto", marks=pytest.mark.thorough),
    ],
)
def test_the_auto_classes_load_where_nobody_imported_us(llama, folder, tmp_path, first):
    save_file({"logits": logits(llama)}, tmp_path / "want.safetensors")
    script = LOADS.format(first=first, folder=str(folder), want=str(tmp_path / "want.safetensors"))
    assert run(script) == "loaded"


def test_not_installed_or_switched_off_loading_is_loud(folder, tmp_path):
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(tmp_path / "resaved")
    unguarded = shutil.copytree(folder, tmp_path / "unguarded")
    edit(unguarded / "config.json", pop("transformers_weights"))
    folders = [str(folder), str(tmp_path / "resaved")]
    script = LOUD.format(folders=folders, unguarded=str(unguarded))
    assert run(script, TORCH_DEVICE_BACKEND_AUTOLOAD="0") == "loud"


def test_it_imports_nothing():
    # so it costs next to nothing at `import torch`: benchmarks/registration.py has the time
    bare = "import sys, typing; before = set(sys.modules); import bondwise_autoload as ours; "
    call = "ours.register(); print(sorted(set(sys.modules) - before - {'bondwise_autoload'}))"
    assert run(bare + call) == "[]"


def test_it_never_raises(monkeypatch, capsys):
    monkeypatch.setattr(autoload, "_is_ready", None)
    autoload.register()
    assert "bondwise" in capsys.readouterr().err


def a_module(tmp_path, monkeypatch, name, text):
    """A module that stands for the tables of transformers, not imported yet."""
    (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.setattr(autoload, "_TABLES", name)


TABLES = "AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING = {}, {}"


def test_the_tables_are_entered_as_soon_as_they_are_there(tmp_path, monkeypatch):
    a_module(tmp_path, monkeypatch, "tables_a", TABLES)
    before = len(sys.meta_path)
    autoload.register()
    autoload.register()
    assert len(sys.meta_path) == before + 1
    tables = importlib.import_module("tables_a")
    assert "bondwise" in tables.AUTO_QUANTIZER_MAPPING
    assert len(sys.meta_path) == before
    assert "exec_module" not in vars(tables.__spec__.loader)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("x = 1", pytest.warns(RuntimeWarning, match="bondwise is unknown to transformers")),
        ("raise RuntimeError('mine')", pytest.raises(RuntimeError, match="mine")),
    ],
)
def test_tables_of_an_unknown_shape_warn_and_errors_are_their_own(
    tmp_path, monkeypatch, text, told
):
    a_module(tmp_path, monkeypatch, "tables_b", text)
    autoload.register()
    with told:
        assert importlib.import_module("tables_b").x == 1
    sys.modules.pop("tables_b", None)


def test_tables_in_the_middle_of_their_import_are_waited_for(monkeypatch):
    half = types.ModuleType("tables_d")
    half.__spec__ = types.SimpleNamespace(_initializing=True)
    monkeypatch.setitem(sys.modules, "tables_d", half)
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.setattr(autoload, "_TABLES", "tables_d")
    autoload.register()
    assert sys.meta_path[0].name == "transformers.modeling_utils"
