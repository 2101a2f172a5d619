"""Loading: tiny folders of every kind, all that can be wrong with one, and the real GGUF file."""

import importlib.util
import json
import math
import shutil
import sys

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging

from bondwise.checkpoint.checkpoint import save
from bondwise.checkpoint.loading import load_model
from bondwise.compress.tensorize import tensorize
from bondwise.demo import assets
from bondwise.errors import BondwiseError, CheckpointError, MissingExtraError
from bondwise.evaluate.language import perplexity
from bondwise.flow.text import windows


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path_factory, request):
    if request.node.get_closest_marker("slow") is None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    config = LlamaConfig(vocab_size=40, num_attention_heads=2, tie_word_embeddings=True, **sizes)
    model = LlamaForCausalLM(config)
    model.save_pretrained(tmp_path / "model")
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


def test_the_head_that_config_json_names_is_kept(tmp_path) -> None:
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 16}
    BertForMaskedLM(BertConfig(vocab_size=40, intermediate_size=16, **sizes)).save_pretrained(
        tmp_path / "bert"
    )
    assert type(load_model(tmp_path / "bert").model) is BertForMaskedLM
    GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=16, n_layer=1, n_head=2)).save_pretrained(
        tmp_path / "gpt2"
    )
    assert type(load_model(tmp_path / "gpt2").model) is GPT2LMHeadModel


def test_the_tokenizer_comes_with_it(folder) -> None:
    core = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    PreTrainedTokenizerFast(tokenizer_object=core).save_pretrained(folder)
    assert load_model(folder).tokenizer("b")["input_ids"] == [1]
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"tokenizer in .* does not load"):
        load_model(folder)


def test_a_tensorized_folder_loads_without_auto_registration(folder, monkeypatch) -> None:
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING as CONFIGS
    from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING as QUANTIZERS

    ids = torch.randint(40, (8, 16), generator=torch.Generator().manual_seed(0))
    student = tensorize(load_model(folder).model, 0.6, format="lowrank").model
    save(student, folder.parent / "student")
    for table in (CONFIGS, QUANTIZERS):
        monkeypatch.delitem(table, "bondwise", raising=False)
    monkeypatch.delitem(sys.modules, "bondwise.checkpoint.quantizer", raising=False)
    loaded = load_model(folder.parent / "student")
    assert type(loaded.model) is LlamaForCausalLM
    assert torch.equal(loaded.model(ids).logits, student(ids).logits)


def _edit(folder, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_code_that_comes_with_a_model_is_never_run(folder) -> None:
    (folder / "evil.py").write_text("raise SystemExit('ran')")
    own = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    _edit(folder, auto_map=own)
    assert type(load_model(folder).model) is LlamaForCausalLM  # part of transformers: no need
    _edit(folder, auto_map=own, model_type="evil", architectures=["EvilModel"])
    with pytest.raises(CheckpointError, match=r"needs code of its own \(EvilModel, auto_map"):
        load_model(folder)
    _edit(folder, auto_map=own, model_type="llama", architectures=["EvilModel"])
    with pytest.raises(CheckpointError, match="needs code of its own"):
        load_model(folder)


def test_what_does_not_load_ends_in_one_sentence(folder, tmp_path) -> None:
    def broken(name: str):
        return shutil.copytree(folder, tmp_path / name)

    pickled = broken("pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    unknown = broken("unknown")
    _edit(unknown, model_type="nosuch", architectures=["NoSuchModel"])
    truncated = broken("truncated")
    weights = truncated / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    lacking = broken("lacking")
    _edit(lacking, num_hidden_layers=3)
    mismatched = broken("mismatched")
    _edit(mismatched, intermediate_size=56)
    json_error = broken("json")
    (json_error / "config.json").write_text("{")
    no_config = broken("no_config")
    (no_config / "config.json").unlink()
    two = tmp_path / "two"
    two.mkdir()
    (two / "a.gguf").write_bytes(b"GGUF")
    (two / "b.gguf").write_bytes(b"not at all")
    cases = {
        pickled: "pickled weights.*convert it to safetensors first",
        unknown: "model type 'nosuch' and class 'NoSuchModel'",
        truncated: "does not load",
        lacking: r"lacks \d+ weights of LlamaForCausalLM \(model.layers.2",
        mismatched: "does not load",
        json_error: "does not read as JSON",
        no_config: "it has no config.json",
        two: "2 GGUF files; name one",
        two / "a.gguf": "does not load",
        two / "b.gguf": "is not a GGUF file",
        weights: r"is a .safetensors file; give the model's folder",
        tmp_path / "nosuch": "There is no folder or file",
    }
    for path, said in cases.items():
        with pytest.raises(CheckpointError, match=said) as caught:
            load_model(path)
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 500


def test_a_name_that_the_hub_does_not_know_ends_in_one_sentence(monkeypatch) -> None:
    def unreachable(*_: object, **__: object) -> str:
        raise ConnectionError("no route\nmore lines")

    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    with pytest.raises(CheckpointError, match=r"no folder some/name.*\(ConnectionError\)"):
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
