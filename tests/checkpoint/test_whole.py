"""What cannot be written whole is refused before anything is written, and what was is read back."""

import pytest
import torch
from peft import LoraConfig, PeftModel, inject_adapter_in_model
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.utils import parametrize, prune
from torch.utils._python_dispatch import return_and_correct_aliasing

import tiny
from bondwise.checkpoint.checkpoint import load, save
from bondwise.checkpoint.whole import check_no_adapter, check_writable
from bondwise.errors import CheckpointError, SelectionError
from bondwise.flow.doors import check_whole
from bondwise.layers.linear import TensorLinear
from bondwise.topology.lowrank import lowrank

from .conftest import logits, make_llama, offloaded, refused, transformers

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # of transformers, by peft
LORA = LoraConfig(r=2, target_modules=["k_proj"])


class Coded(torch.Tensor):
    """A tensor that stands for codes, as the subclasses of torchao do."""

    @staticmethod
    def __new__(cls, codes):
        return torch.Tensor._make_wrapper_subclass(cls, codes.shape, dtype=torch.float32)

    def __init__(self, codes):
        self.codes = codes

    def __tensor_flatten__(self):
        return ["codes"], None

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.detach.default:
            return return_and_correct_aliasing(func, args, kwargs or {}, cls(args[0].codes))
        raise NotImplementedError(func)


def coded():
    model = make_llama()
    codes = Coded(torch.ones(48, 48, dtype=torch.int8))
    model.model.layers[0].self_attn.o_proj.weight = nn.Parameter(codes, requires_grad=False)
    return model


def added():
    model = make_llama()
    model.add_adapter(LORA)
    return model


def injected():
    return inject_adapter_in_model(LORA, make_llama())


def wrapped():
    return PeftModel(make_llama(), LORA)


def on_meta():
    model = make_llama()
    model.lm_head = nn.Linear(48, 128, bias=False, device="meta")
    return model


def lazy():
    return nn.Sequential(nn.Linear(2, 2), nn.LazyLinear(3))


def marked():
    model = make_llama()
    model.config.quantization_config = {"quant_method": "gptq", "bits": 4}
    return model


ADAPTER = r"has an adapter; save the adapter apart .*merge_and_unload\(\)"
CASES = [
    (added, ADAPTER),
    (injected, ADAPTER),
    (wrapped, ADAPTER),
    (on_meta, r"lm_head.weight of \w+ is on the meta device.*load its weights first"),
    (coded, r"o_proj.weight of \w+ is a Coded, .*load the model without quantization"),
    (lazy, r"1.weight of \w+ has no size yet; run the model once"),
    (marked, r"came quantised \(gptq\).*load it dequantised"),
]


@pytest.mark.parametrize(("make", "says"), CASES)
def test_what_cannot_be_whole_is_refused_before_anything_is_written(tmp_path, make, says):
    with pytest.raises(SelectionError, match=says) as caught:
        save(make(), tmp_path / "x")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore")
def test_what_a_device_map_sent_away_is_refused(tmp_path):
    folder = save(make_llama(), tmp_path / "llama")
    away = offloaded(folder, tmp_path / "off", "disk")
    with pytest.raises(SelectionError, match=r"offloaded by its device_map .*without device_map"):
        save(away, tmp_path / "x")
    assert not (tmp_path / "x").exists()
    save(offloaded(folder, tmp_path / "off", "cpu"), tmp_path / "near")


def test_what_is_whole_passes():
    plain = inject_adapter_in_model(
        LoraConfig(target_modules=["0"]), nn.Sequential(nn.Linear(4, 4))
    )
    for model in (make_llama(), tiny.llama(tied=True), plain, nn.LSTM(2, 3)):
        check_writable(model)
    check_whole(added())
    with pytest.raises(SelectionError):
        check_no_adapter(added())


def test_after_the_way_out_it_is_saved(tmp_path):
    model = added()
    for module in model.modules():
        if hasattr(module, "lora_B"):
            nn.init.normal_(module.lora_B["default"].weight)
    dense_twin = logits(model)
    model.save_pretrained(tmp_path / "adapter")
    merged = PeftModel.from_pretrained(make_llama(), tmp_path / "adapter").merge_and_unload()
    again = load(save(merged.eval(), tmp_path / "merged"))
    torch.testing.assert_close(logits(again), dense_twin, rtol=1e-4, atol=1e-4)


def fault(kind):
    """A change to the file that was just written: what a writer may get wrong."""

    def change(state):
        name = next(n for n in state if n.endswith("core_0"))
        if kind == "lost":
            del state[name]
        elif kind == "shape":
            state[name] = state[name][:1].clone()
        else:
            state[name] = state[name].half()

    return change


@pytest.mark.parametrize("hub", [True, False])
@pytest.mark.parametrize(
    ("kind", "says"),
    [("lost", "was not written"), ("shape", "was written as F32"), ("dtype", "was written as F16")],
)
def test_what_was_written_wrongly_is_not_left(tmp_path, monkeypatch, hub, kind, says):
    model = make_llama()
    owner, name = (transformers.modeling_utils, "safe_save_file") if hub else (None, "save_model")
    change = fault(kind)

    def written(state, path, metadata=None):
        if isinstance(state, nn.Module):
            state = {n: t for n, t in state.state_dict().items() if not n.startswith("lm_head.")}
        state = {n: t.contiguous().clone() for n, t in state.items()}
        change(state)
        save_file(state, path, metadata=metadata)

    if owner is None:
        monkeypatch.setattr(f"bondwise.checkpoint.plain.{name}", written)
        model = nn.Sequential(model.model.layers[0].self_attn.q_proj, nn.Linear(48, 2))
    else:
        monkeypatch.setattr(owner, name, written)
    with refused(rf"{says}.*nothing was left"):
        save(model, tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_a_layer_at_two_places_ends_in_one_sentence(tmp_path):
    model = make_llama()
    first, second = model.model.layers
    second.mlp.up_proj = first.mlp.up_proj
    with refused(r"at several places.*a copy of its own"):
        save(model, tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


def test_an_index_that_is_wrong_is_not_left(tmp_path, monkeypatch):
    split = transformers.modeling_utils.split_torch_state_dict_into_shards

    def wrong(*args, **kwargs):
        found = split(*args, **kwargs)
        found.tensor_to_filename.pop("lm_head.weight")
        return found

    monkeypatch.setattr(transformers.modeling_utils, "split_torch_state_dict_into_shards", wrong)
    with refused("nothing was left; save the model again"):
        save(make_llama(), tmp_path / "x", max_shard_size="20KB")
    assert list(tmp_path.iterdir()) == []


class Renamed(nn.Module):
    """Ties a parameter, and has another as a view: both are written once, or apart."""

    def __init__(self):
        super().__init__()
        self.one = nn.Linear(3, 3)
        self.two = nn.Linear(3, 3)
        self.two.weight = self.one.weight
        self.register_buffer("view", self.one.bias.detach()[:2])
        self.register_buffer("empty", torch.zeros(0))


def test_ties_views_and_empty_tensors_are_there(tmp_path):
    model = Renamed()
    parametrize.register_parametrization(model.one, "bias", nn.Tanh())
    target = save(model, tmp_path / "x")
    assert len(load_file(target / "model.safetensors")) == len(model.state_dict()) - 2
    with pytest.raises(CheckpointError):
        save(model, target)


@pytest.mark.parametrize(
    ("name", "config", "sizes"),
    [
        ("MixtralForCausalLM", "MixtralConfig", {"num_local_experts": 2, "num_key_value_heads": 2}),
        ("BertForMaskedLM", "BertConfig", {}),
        ("SiglipVisionModel", "SiglipVisionConfig", {"image_size": 8, "patch_size": 4}),
    ],
)
def test_models_whose_files_have_other_names_are_read_back_too(tmp_path, name, config, sizes):
    own = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    sizes = own | {"num_hidden_layers": 1, "vocab_size": 32} | sizes
    model = getattr(transformers, name)(getattr(transformers, config)(**sizes))
    loaded = load(save(model, tmp_path / "x"))
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for one, two in zip(loaded.parameters(), model.parameters(), strict=True):
        assert torch.equal(one, two)


def tied_terms():
    p = nn.Parameter(torch.ones(4, 4))
    model = nn.Sequential(TensorLinear(lowrank(4, 4, 1)), nn.Linear(4, 4))
    model[0].weight = model[1].weight = p
    return model


def one_core():
    model = nn.Sequential(*(TensorLinear(lowrank(4, 4, 1)) for _ in range(2)))
    model[1].core_0 = model[0].core_0
    return model


def pruned():
    model = nn.Sequential(TensorLinear(lowrank(4, 4, 1)))
    prune.l1_unstructured(model[0], "core_0", amount=0.5)
    return model


def parametrized():
    model = nn.Sequential(TensorLinear(lowrank(4, 4, 1)))
    parametrize.register_parametrization(model[0], "core_1", nn.Identity())
    return model


class Own(TensorLinear):
    def forward(self, x):
        return super().forward(x) + 1


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (tied_terms, r"0.t0_dense and 1.weight are one parameter"),
        (one_core, r"0.core_0 and 1.core_0 are one parameter"),
        (pruned, r"core_0 of 0 is pruned or parametrized; .*prune.remove\(layer, 'core_0'\)"),
        (parametrized, r"core_1 of 0 is pruned or parametrized"),
        (lambda: nn.Sequential(Own(lowrank(4, 4, 1))), "0 is a Own with a forward of its own"),
        (lambda: nn.DataParallel(one_core()), "A DataParallel came as the model"),
    ],
)
def test_layers_that_would_not_come_back_as_they_are_are_refused(tmp_path, make, says):
    with pytest.raises(SelectionError, match=says):
        save(make(), tmp_path / "x")
    assert list(tmp_path.iterdir()) == []
