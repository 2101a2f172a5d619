"""Loading: tiny folders of every kind, all that can be wrong with one, and the real GGUF file."""

import importlib.util
import math
import shutil
import sys

import pytest
import torch
from transformers import BertForMaskedLM, LlamaForCausalLM
from transformers.utils import logging

import tiny
from bondwise.checkpoint.checkpoint import save
from bondwise.checkpoint.loading import load_model
from bondwise.demo import assets
from bondwise.errors import BondwiseError, CheckpointError, MissingExtraError
from bondwise.evaluate.language import perplexity
from bondwise.flow.text import windows
from verbs import edit

from .conftest import make_llama, refused


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path_factory, request):
    if request.node.get_closest_marker("slow") is None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def folder(tmp_path):
    tiny.llama(tied=True).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_folder_loads_as_it_was_saved(folder, capfd) -> None:
    loaded = load_model(folder)
    assert type(loaded.model) is LlamaForCausalLM
    assert not loaded.model.training
    assert loaded.tokenizer is None
    assert loaded.source_file_bytes is None
    twin = LlamaForCausalLM.from_pretrained(folder)
    for name, value in twin.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], value)
    assert loaded.model.lm_head.weight is loaded.model.model.embed_tokens.weight
    assert load_model(str(folder), torch.bfloat16).model.dtype == torch.bfloat16
    assert load_model(folder, task="encoder").model.__class__.__name__ == "LlamaModel"
    twin_bars = logging.is_progress_bar_enabled()
    capfd.readouterr()
    load_model(folder)
    assert capfd.readouterr() == ("", "")
    assert logging.is_progress_bar_enabled() == twin_bars


@pytest.mark.parametrize("model", [BertForMaskedLM(tiny.bert().config), tiny.gpt2()])
def test_the_head_that_config_json_names_is_kept(model, tmp_path) -> None:
    model.save_pretrained(tmp_path)
    assert type(load_model(tmp_path).model) is type(model)


def test_the_tokenizer_comes_with_it(folder) -> None:
    tiny.tokenizer().save_pretrained(folder)
    assert load_model(folder).tokenizer("core")["input_ids"] == [3]
    (folder / "tokenizer.json").write_text("{")
    with refused(r"tokenizer in .* does not load"):
        load_model(folder)


def test_a_tensorized_folder_loads_without_auto_registration(tmp_path, monkeypatch) -> None:
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING as CONFIGS
    from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING as QUANTIZERS

    student, ids = make_llama(), tiny.tokens(2)
    save(student, tmp_path / "student")
    for table in (CONFIGS, QUANTIZERS):
        monkeypatch.delitem(table, "bondwise", raising=False)
    monkeypatch.delitem(sys.modules, "bondwise.checkpoint.quantizer", raising=False)
    loaded = load_model(tmp_path / "student")
    assert type(loaded.model) is LlamaForCausalLM
    assert torch.equal(loaded.model(ids).logits, student(ids).logits)


def test_code_that_comes_with_a_model_is_never_run(folder) -> None:
    (folder / "evil.py").write_text("raise SystemExit('ran')")
    own = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    edit(folder / "config.json", auto_map=own)
    assert type(load_model(folder).model) is LlamaForCausalLM  # part of transformers: no need
    for kind in ("evil", "llama"):
        edit(folder / "config.json", model_type=kind, architectures=["EvilModel"])
        with refused(r"needs code of its own \(EvilModel, auto_map"):
            load_model(folder)


def test_what_does_not_load_ends_in_one_sentence(folder, tmp_path) -> None:
    lacking, mismatched = (
        shutil.copytree(folder, tmp_path / name) for name in ("lacking", "mismatched")
    )
    edit(lacking / "config.json", num_hidden_layers=3)
    edit(mismatched / "config.json", intermediate_size=56)
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    (tmp_path / "b.gguf").write_bytes(b"not at all")
    for path, says in {
        lacking: r"lacks \d+ weights of LlamaForCausalLM \(model.layers.2",
        mismatched: "does not load",
        tmp_path: "2 GGUF files; name one",
        tmp_path / "a.gguf": "does not load",
        tmp_path / "b.gguf": "is not a GGUF file",
        folder / "model.safetensors": r"is a .safetensors file; give the model's folder",
    }.items():
        with refused(says):
            load_model(path)


def test_a_name_that_the_hub_does_not_know_ends_in_one_sentence(monkeypatch) -> None:
    def unreachable(*_: object, **__: object) -> str:
        raise ConnectionError("no route\nmore lines")

    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    with refused(r"no folder some/name.*\(ConnectionError\)"):
        load_model("some/name")


def test_a_missing_package_is_named_with_its_extra(folder, monkeypatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "transformers" else found(name)
    )
    with pytest.raises(MissingExtraError, match=r"pip install 'bondwise\[hf\]'"):
        load_model(folder)
    assert issubclass(MissingExtraError, BondwiseError)


def test_a_full_cache_ends_in_one_sentence(tmp_path) -> None:
    from bondwise.checkpoint.cache import filling

    def fail(target) -> None:
        with filling(target) as fresh:
            (fresh / "half").write_text("x")
            raise OSError(28, "No space left on device")

    with pytest.raises(CheckpointError, match=r"No space left on device.*set XDG_CACHE_HOME"):
        fail(tmp_path / "cache" / "x")
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.slow
def test_the_real_gguf_file_is_converted_once_and_reads_english() -> None:
    """Perplexity of the 4-bit file as dequantised; a wrong permutation of q, k gives thousands."""
    loaded = load_model(assets.smollm2())
    assert loaded.source_file_bytes == 98_362_432
    assert loaded.model.dtype == torch.float32
    assert sum(p.numel() for p in loaded.model.parameters()) == 134_515_008
    assert not hasattr(loaded.model.config, "quantization_config")
    texts = [article.text for article in assets.held_out_articles()]
    shown = windows(loaded.tokenizer, texts, 2, 256)
    found = perplexity(loaded.model, shown, dtype=torch.bfloat16)
    assert 15 < found.perplexity < 30
    assert math.isfinite(found.nats.sum())
