from copy import deepcopy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn.utils import prune
from torch.utils._pytree import tree_map
from transformers import AutoModelForCausalLM

import bondwise as bw
from bondwise.errors import BondwiseError, BudgetError, CheckpointError, DataError, SelectionError
from bondwise.flow.doors import (
    check_call,
    check_place,
    check_switch,
    check_tokenizer,
    check_whole,
    is_opaque,
)
from bondwise.layers.module import TensorLayer
from tiny import llama, tokens, untouched

AWAY = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk"}
AWAY |= {"model.norm": "cpu", "lm_head": "cpu", "model.rotary_emb": "cpu"}


class Packed(torch.Tensor):
    """A weight in 8 bits that says it is a float, as torchao's are: it has no memory of its own."""

    @staticmethod
    def __new__(cls, codes, scale):
        made = torch.Tensor._make_wrapper_subclass(cls, codes.shape, dtype=torch.float32)
        made.codes, made.scale = codes, scale
        return made

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.detach.default:
            return cls(args[0].codes, args[0].scale)
        plain = tree_map(lambda t: t.codes * t.scale if isinstance(t, cls) else t, args)
        return func(*plain, **(kwargs or {}))


def packed():
    model = nn.Sequential(nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 16))
    codes = torch.randint(-127, 127, (16, 16), dtype=torch.int8)
    model[0].weight = nn.Parameter(Packed(codes, 0.01), requires_grad=False)
    return model


def emptied():
    model = nn.Sequential(nn.Linear(16, 16))
    model[0].weight.untyped_storage().resize_(0)
    return model


def sharded():
    model = nn.Sequential(nn.Linear(16, 16))
    model[0].weight.ds_id = 0  # as DeepSpeed marks it
    return model


def on_meta(model):
    with torch.device("meta"):
        return model()


WRONG = [
    (packed, "0.weight of Sequential is a Packed, whose numbers only its own code reads"),
    (emptied, "0.weight of Sequential has a shape and no memory"),
    (sharded, "0.weight of Sequential is spread over processes"),
    (lambda: on_meta(llama), "embed_tokens.weight of LlamaForCausalLM is on the meta device"),
    (lambda: nn.DataParallel(llama()), "DataParallel came as the model; give .* its .module"),
    (lambda: nn.Sequential(nn.DataParallel(llama())), "with a DataParallel at 0; give the model"),
    (
        lambda: torch.compile(llama(), backend="eager"),
        r"OptimizedModule came as the model; .* ._orig_mod",
    ),
    (lambda: nn.Sequential(nn.LazyLinear(8)), "0.weight of Sequential has no size yet"),
]


@pytest.mark.parametrize(("make", "says"), WRONG)
def test_a_model_whose_numbers_are_not_here_is_one_sentence(make, says):
    model = make()
    before = [(type(m), sorted(vars(m))) for m in model.modules()]
    calls = [
        lambda: bw.tensorize(model, 0.6),
        lambda: bw.tensorize(model, 0.6, tokens(), inplace=True),
        lambda: bw.merge(model),
        lambda: bw.heal(model, nn.Sequential(nn.Linear(16, 16)), torch.randn(8, 16), steps=1),
        lambda: bw.heal(nn.Sequential(nn.Linear(16, 16)), model, torch.randn(8, 16), steps=1),
    ]
    for call in calls:
        with pytest.raises(SelectionError, match=says) as caught:
            call()
        assert str(caught.value).endswith(".")
    assert [(type(m), sorted(vars(m))) for m in model.modules()] == before


@pytest.mark.parametrize("of", ["dense", "networks"])
@pytest.mark.filterwarnings("ignore")
def test_an_offloaded_model_is_one_sentence_and_still_runs(of, tmp_path):
    source = llama() if of == "dense" else bw.tensorize(llama(), 0.6).model
    bw.save(source, tmp_path / "it")
    folders = {"device_map": AWAY, "offload_folder": str(tmp_path / "away")}
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "it", **folders).eval()
    with torch.no_grad():
        wanted = source(tokens(2)).logits
        for call in (bw.merge, lambda model: bw.tensorize(model, 0.6)):
            with pytest.raises(SelectionError, match=r"layers.1\S* of Llama.* without device_map"):
                call(model)
        assert torch.equal(model(tokens(2)).logits, wanted)


def test_a_dry_run_needs_no_numbers_and_names_what_it_cannot_read():
    assert bw.plan_model(on_meta(llama), 0.5).kept == bw.plan_model(llama(), 0.5).kept
    why = {line.name: line.reason for line in bw.plan_model(packed(), 0.5)}
    assert why["0"] == "stored as Packed, which only its own code reads"
    assert not why["2"]


def test_what_is_plain_is_not_opaque():
    assert is_opaque(packed()[0].weight)
    assert not any(map(is_opaque, [torch.ones(2), nn.Parameter(torch.ones(2))]))


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_layers_under_an_adapter_are_refused_or_ignored(brief):
    model = get_peft_model(llama(), LoraConfig(target_modules=["q_proj"]))
    with untouched(model):
        for call in (bw.tensorize, bw.plan_model):
            with pytest.raises(SelectionError, match=r"0.self_attn.q_proj.base_layer carries"):
                call(model, 0.6)
        made = bw.tensorize(model, 0.6, ignore=["q_proj"]).model
    names = [name for name, m in made.named_modules() if isinstance(m, TensorLayer)]
    assert names
    assert not [name for name in names if "q_proj" in name]
    merged = get_peft_model(llama(), LoraConfig(target_modules=["q_proj"])).merge_and_unload()
    assert bw.tensorize(merged, 0.6).table.kept <= 0.6


@pytest.mark.parametrize("inplace", [False, True])
def test_inference_mode_before_and_around_changes_nothing(brief, inplace):
    asked = {"keep": 0.6, "format": "lowrank", "inplace": inplace}
    wanted = bw.tensorize(llama(), data=tokens(), **asked).model
    with torch.inference_mode():
        model, data = llama(), tokens()
        around = bw.tensorize(deepcopy(model), data=data, **asked).model
        merged = bw.merge(around)
    made = bw.tensorize(model, data=data, **asked).model
    for one in (made, around):
        assert all(map(torch.equal, one.state_dict().values(), wanted.state_dict().values()))
    layers = [m for m in made.modules() if isinstance(m, TensorLayer)]
    loss = merged(tokens(2)).logits.mean()
    loss.backward()
    assert layers[0].core_0.requires_grad
    assert not layers[0].core_0.is_inference()
    if inplace:
        with pytest.raises(SelectionError, match="inference_mode and cannot train; write inplace"):
            bw.heal(model, llama(), tokens(), steps=1, inplace=True)
    else:
        assert not any(p.is_inference() for p in made.parameters())


def test_a_pruned_model_is_worked_on_as_it_is(brief):
    model = llama()
    prune.l1_unstructured(model.model.layers[0].mlp.up_proj, "weight", amount=0.5)
    made = bw.tensorize(model, 0.6, tokens(), format="lowrank")
    assert isinstance(made.model.model.layers[0].mlp.down_proj, TensorLayer)
    assert type(made.model.model.layers[0].mlp.up_proj) is nn.Linear


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: check_switch("inplace", "no"), BudgetError, "inplace='no' came; write True or"),
        (lambda: check_call("progress", 3), BudgetError, "progress=3 came; give a function"),
        (lambda: check_place("state", 3), CheckpointError, "state=3 came; write the path of"),
        (lambda: check_tokenizer(3), DataError, "tokenizer='3' came; give a tokenizer of"),
        (lambda: check_tokenizer("folder"), DataError, "tokenizer='folder' came"),
        (lambda: check_whole(3), SelectionError, "A int came as the model"),
    ],
)
def test_wrong_kinds_are_one_sentence(call, error, says):
    with pytest.raises(error, match=says) as caught:
        call()
    assert isinstance(caught.value, BondwiseError)
    for name in ("progress", "state"):
        check_call(name, None)
        check_place(name, None)
