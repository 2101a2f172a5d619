"""LoRA beside layers of terms: as beside their dense twins, and one more term once it is merged."""

import warnings
from copy import deepcopy

import pytest
import torch
from torch import nn

import bondwise as bw
import tiny
from bondwise.checkpoint.hub import attach
from bondwise.errors import SelectionError
from bondwise.layers.hosts.registry import host_of
from bondwise.layers.module import TensorLayer
from bondwise.layers.networks import compacted
from verbs import process

from .conftest import logits

peft = pytest.importorskip("peft", reason="peft is not installed: pip install 'bondwise[peft]'")
pytestmark = [
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Careful, disabling adapter layers with bias:UserWarning"),
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`:UserWarning"),
]

NETWORKS = ("q_proj", "up_proj", "c_attn", "embed_tokens", "lm_head")


def networked(module):
    """Low rank without its gauge, in the place of a module."""
    host = host_of(module)
    weight = host.matrix(module)
    fitted = bw.fit(weight, bw.lowrank(*weight.shape, 8))
    return host.build(module, [compacted(bw.compact(fitted.network, fitted.cores))])


def with_networks(make=tiny.llama, names=NETWORKS):
    """Networks in the place of the modules of some names; the first block keeps a dense one."""
    model = make()
    for path, module in list(model.named_modules()):
        parent, _, name = path.rpartition(".")
        tied = name == "lm_head" and model.config.tie_word_embeddings
        if name in names and "layers.0.mlp" not in path and not tied:
            setattr(model.get_submodule(parent), name, networked(module))
    attach(model)
    return model


def dense(model):
    """The twin, which LoRA of peft alone is put on."""
    return deepcopy(bw.merge(model))


def adapted(model, seed=1, name="default", **how):
    """With LoRA whose two halves are drawn, so that it changes what comes out."""
    how = {"r": 2, "lora_alpha": 3} | how
    if name == "default":
        model = peft.get_peft_model(model, peft.LoraConfig(**how))
    else:
        model.add_adapter(name, peft.LoraConfig(**how))
    draw = torch.Generator().manual_seed(seed)
    for path, parameter in model.named_parameters():
        if "lora_" in path and f".{name}" in path:
            parameter.data = torch.randn(parameter.shape, generator=draw) / 10
    return model.eval()


def near(one, two):
    return torch.allclose(one, two, atol=1e-5)


KINDS = {
    "targets": (tiny.llama, {"target_modules": ["q_proj", "up_proj", "v_proj"]}),
    "all-linear": (tiny.llama, {"target_modules": "all-linear"}),
    "a head": (tiny.llama, {"target_modules": ["lm_head", "up_proj"]}),
    "an embedding": (tiny.llama, {"target_modules": ["embed_tokens", "q_proj"]}),
    "rank-stabilised": (tiny.llama, {"target_modules": ["q_proj"], "use_rslora": True}),
    "a rank above the width": (tiny.llama, {"target_modules": ["q_proj"], "r": 64}),
    "Conv1D": (tiny.gpt2, {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}),
    "Conv1D, not said": (tiny.gpt2, {"target_modules": ["c_fc", "c_attn"]}),
    "a bias": (tiny.gpt2, {"target_modules": ["c_attn"], "lora_bias": True, "bias": "all"}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_what_it_is_beside_the_dense_twin(kind):
    make, how = KINDS[kind]
    small = with_networks(make)
    wanted, found = adapted(dense(small), **how), adapted(small, **how)
    trained = [{n for n, p in m.named_parameters() if p.requires_grad} for m in (found, wanted)]
    assert trained[0] == trained[1] != set()
    before = logits(found)
    assert near(before, logits(wanted))
    assert not near(before, logits(with_networks(make)))
    for merged in (False, True):
        for model in (found, wanted):
            model.merge_adapter(safe_merge=merged)
        assert near(logits(found), before)
        assert near(logits(found), logits(wanted))
        for model in (found, wanted):
            model.unmerge_adapter()
        assert near(logits(found), before)
    with found.disable_adapter():
        assert near(logits(found), logits(with_networks(make)))
    merged = found.merge_and_unload()
    assert near(logits(merged), before)
    assert near(logits(bw.merge(merged)), logits(wanted.merge_and_unload()))


def test_merged_it_is_a_low_rank_term_of_its_layer_and_is_saved(tmp_path):
    small = with_networks()
    before = {path: len(m.parts) for path, m in small.named_modules() if isinstance(m, TensorLayer)}
    merged = adapted(small, target_modules=["q_proj"]).merge_and_unload()
    for path, parts in before.items():
        layer = merged.get_submodule(path)
        assert len(layer.parts) == parts + path.endswith("q_proj")
        if path.endswith("q_proj"):
            assert [p.shape for p in layer.terms[-1].numbers] == [(48, 2), (2, 48)]
    assert not any(p.requires_grad for p in merged.parameters())  # as peft leaves a dense model
    assert "lora" not in str(merged).lower()
    merged.save_pretrained(tmp_path / "pretrained")
    for folder in (tmp_path / "pretrained", bw.save(merged, tmp_path / "saved")):
        assert torch.equal(logits(bw.load(folder)), logits(merged))


@pytest.mark.parametrize("targets", [["q_proj", "embed_tokens"], "all-linear"])
def test_an_adapter_trains_is_saved_and_loads(targets, tmp_path):
    model = adapted(with_networks(), target_modules=targets).train()
    ids = tiny.tokens(4, 8)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(4):
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.2
    model.eval().save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(with_networks(), tmp_path)
    assert torch.equal(logits(again), logits(model))
    assert near(logits(again.merge_and_unload()), logits(model))


def test_adapters_that_transformers_itself_adds(tmp_path):
    small = with_networks()
    small.add_adapter(peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
    small.save_pretrained(tmp_path)
    assert not (tmp_path / "model.safetensors").exists()
    again = with_networks()
    again.load_adapter(tmp_path)
    assert torch.equal(logits(again), logits(small))


def both(do):
    """What two adapters do to networks, and to their dense twins."""
    for model in (small := with_networks(), dense(small)):
        model = adapted(model, target_modules=["q_proj"])
        more = ["q_proj", "up_proj", "gate_proj"]
        yield do(adapted(model, seed=2, name="other", r=3, target_modules=more))


def one_after_the_other(model):
    model.merge_adapter(["default"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that one is merged already
        model.merge_adapter(["other"])
    return logits(model)


def at_once_and_back(model):
    before = logits(model)
    model.base_model.set_adapter(["default", "other"])
    model.merge_adapter()
    assert not near(logits(model), before)
    model.unmerge_adapter()
    model.set_adapter("default")
    assert near(logits(model), before)
    return logits(model)


def joined(model):
    model.add_weighted_adapter(["default", "other"], [1, 2], "sum", combination_type="cat")
    model.set_adapter("sum")
    model.delete_adapter("default")
    return logits(model.merge_and_unload())


def one_each(model):
    ids = torch.tensor([[5, 17, 3], [60, 2, 9], [4, 4, 1]])
    with torch.no_grad():
        return model(ids, adapter_names=["default", "other", "__base__"]).logits


@pytest.mark.parametrize("do", [one_after_the_other, at_once_and_back, joined, one_each])
def test_several_adapters(do):
    found, wanted = both(do)
    assert near(found, wanted)


def test_a_copy_and_another_device_dtype_keep_what_is_merged():
    model = adapted(with_networks(), target_modules=["q_proj"])
    before = logits(model)
    model.merge_adapter()
    again = deepcopy(model).double().float()
    again.unmerge_adapter()
    assert near(logits(again), before)
    assert model.base_model.model.model.layers[0].self_attn.q_proj.merged


REFUSED = {
    "use_dora=True": {"use_dora": True},
    "init_lora_weights='pissa'": {"init_lora_weights": "pissa"},
    "init_lora_weights='olora'": {"init_lora_weights": "olora"},
    "Trainable tokens": {"trainable_token_indices": {"embed_tokens": [1]}},
}


@pytest.mark.parametrize("says", REFUSED)
def test_what_needs_a_matrix_of_is_refused_in_a_sentence(says):
    with pytest.raises(SelectionError, match=f"^{says} came for .*merge the model first.$"):
        adapted(with_networks(), target_modules=["q_proj"], **REFUSED[says])


@pytest.mark.filterwarnings("ignore:`lora_bias=True` was passed")
def test_an_adapter_that_cannot_be_merged_leaves_the_layer_as_it_was():
    model = adapted(with_networks(), target_modules=["q_proj"], lora_bias=True)
    before = logits(model)
    with pytest.raises(SelectionError, match="the layer has none"):
        model.merge_adapter()
    assert torch.equal(logits(model), before)
    model = adapted(with_networks(), target_modules=["q_proj"])
    model.get_parameter(next(n for n, _ in model.named_parameters() if "lora_A" in n)).data[0] = (
        float("nan")
    )
    with pytest.raises(SelectionError, match="not finite"):
        model.merge_adapter(safe_merge=True)
    assert not any(isinstance(m, TensorLayer) and len(m.parts) > 1 for m in model.modules())


def test_what_was_added_after_merging_is_not_taken_for_the_adapter():
    model = adapted(with_networks(), target_modules=["q_proj"])
    model.merge_adapter()
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    base = layer.get_base_layer()
    base.add(base.terms[-1])
    with pytest.raises(SelectionError, match="remove what was added"):
        layer.unmerge()
    base.remove()
    layer.unmerge()
    assert len(base.parts) == 1


def test_other_layers_are_wrapped_as_peft_does():
    model = adapted(nn.Sequential(nn.Linear(4, 4), nn.Embedding(3, 4)), target_modules=["0", "1"])
    kinds = [type(model.base_model.model[k]).__module__ for k in (0, 1)]
    assert kinds == ["peft.tuners.lora.layer"] * 2


def test_it_is_known_where_peft_was_imported_first():
    say = "print(hasattr(peft.tuners.lora.model.dispatch_default, 'wraps_terms'))"
    done = process("-W", "error::RuntimeWarning", "-c", f"import peft, bondwise; {say}")
    assert done.stdout.strip() == "True", done.stderr
