"""Files of models whose weights are sums of several terms: every one comes back, bit for bit."""

import struct

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    LlamaForCausalLM,
)

import bondwise as bw
from bondwise.checkpoint.checkpoint import load, save
from bondwise.checkpoint.hub import attach
from bondwise.layers.entries import columns, dense, entries, rows
from nets import BESIDE, beside_of
from verbs import edit

from .conftest import IDS, gauge_free, logits, make_llama, manifest_of, offloaded, pop, refused

ATTENTION = "model.layers.0.self_attn"
GATE = "model.layers.0.mlp.gate_proj"
X = torch.linspace(-1, 1, 36).view(3, 12)


class Several(nn.Module):
    """One layer with a term of each kind, and a dense one behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.o = nn.Linear(12, 16), nn.Linear(16, 12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.o(self.q(x))


@pytest.fixture
def model() -> Several:
    model = Several()
    beside = [beside_of(kind, (16, 12), seed)[0] for seed, kind in enumerate(BESIDE)]
    model.q = gauge_free(model.q, 4, beside)
    return model


@pytest.fixture
def plain(model, tmp_path):
    return save(model, tmp_path / "several")


def bytes_of(folder) -> int:
    """Bytes of the tensors in the safetensors file of a folder, without its header."""
    raw = (folder / "model.safetensors").read_bytes()
    return len(raw) - 8 - struct.unpack("<Q", raw[:8])[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_round_trip_is_exact_and_a_second_writes_the_same(model, tmp_path, dtype):
    folder = save(model.to(dtype), tmp_path / "one")
    loaded = load(folder, model=Several())
    assert torch.equal(loaded(X.to(dtype)), model(X.to(dtype)))
    want, got = model.state_dict(), loaded.state_dict()
    assert list(want) == list(got)
    assert all(torch.equal(want[name], got[name]) for name in want)
    assert {p.dtype for p in loaded.parameters()} == {dtype}
    again = save(loaded, tmp_path / "again")
    assert (again / "bondwise.json").read_bytes() == (folder / "bondwise.json").read_bytes()
    one, two = (load_file(at / "model.safetensors") for at in (again, folder))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in two)


def test_the_files_say_what_there_is_and_hold_nothing_else(plain):
    numbers = 4 * 16 + 4 * (12 - 4)  # cores
    numbers += 16 * 4 + 4 * 12 + 4 + 16 * 12 + 2 * 16 + 2 * (12 - 2)  # beside them
    numbers += 16 + 16 * 12 + 12  # biases and the dense layer
    # four positions as int32, or a mask where that is less: columns, rows; two masks of pivots
    positions = 2 + 2 + 2 + 4 * 4 + 2
    assert bytes_of(plain) == 4 * (numbers + 1) + positions + 4  # a guard, a checksum
    spec = manifest_of(plain, "bondwise.json")["modules"]["q"]
    kinds = [term["kind"] for term in spec["terms"]]
    assert kinds == ["network", *BESIDE]
    assert [term.get("count") for term in spec["terms"]] == [None, 4, 4, 4, None, None]
    names = load_file(plain / "model.safetensors").keys()
    assert {name.removeprefix("q.") for name in names if name[0] == "q"} == {
        *("core_0", "core_1", "t1_entries", "t2_entries", "t3_entries", "t4_dense"),
        *("t5_core_0", "t5_core_1", "bias", "weight", "_extra_state"),
    }


def at(k: int):
    """What a manifest says of one term."""
    return lambda manifest: manifest["modules"]["q"]["terms"][k]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m: at(1)(m).update(kind="diagonals"), "'q' cannot be read.*'diagonals'"),
        (lambda m: at(2)(m).update(count=5), r"'q\.t2_entries' of shape"),
        (lambda m: at(3)(m).update(count="many"), "'q' cannot be read"),
        (lambda m: at(4)(m).update(shape=[16, 13]), r"'q' cannot be read.*\(16, 13\)"),
        (lambda m: at(4)(m).update(shape=3), "'q' cannot be read"),
        (lambda m: m["modules"]["q"]["terms"].pop(), "does not fit|lacks|'q"),
    ],
)
def test_bad_manifests_of_a_plain_module(plain, change, says):
    edit(plain / "bondwise.json", change)
    with refused(says):
        load(plain, model=Several())


def positions(change):
    """A change of the positions of `GATE` or `q` in a file of tensors."""

    def edited(tensors):
        (name,) = (n for n in tensors if n in (f"{GATE}._extra_state", "q._extra_state"))
        tensors[name] = change(tensors[name])

    return edited


WRONG = {
    "averaged": lambda t: (t + t.roll(1)) // 2,
    "cast": lambda t: t.to(torch.int8),
    "short": lambda t: t[:-1].clone(),
    "zero": torch.zeros_like,
}


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG)
def test_positions_that_are_not_those_that_were_stored(plain, folder, change):
    edit(plain / "model.safetensors", positions(change))
    with refused("(q|gate_proj).*(positions|_extra_state)"):
        load(plain, model=Several())
    edit(folder / "model.safetensors", positions(change))
    with refused("(q|gate_proj).*(positions|_extra_state)"):
        AutoModelForCausalLM.from_pretrained(folder)


def make_several(dtype=torch.float32):
    model = make_llama(dtype)
    for block in model.model.layers:
        attention, mlp = block.self_attn, block.mlp
        some = rows(torch.tensor([0, 23]), torch.randn(2, 48), (24, 48))
        attention.v_proj = gauge_free(attention.v_proj, beside=[some])
        whole = dense(torch.randn(48, 48))
        attention.o_proj = gauge_free(attention.o_proj, beside=[whole])
        some = columns(torch.tensor([3, 30]), torch.randn(96, 2, dtype=dtype), (96, 48))
        mlp.gate_proj = gauge_free(mlp.gate_proj, beside=[some])
        few = entries(torch.tensor([0, 700, 4607]), torch.randn(3, dtype=dtype), (48, 96))
        mlp.down_proj = gauge_free(mlp.down_proj, beside=[few])
    return model


@pytest.fixture
def several():
    return make_several()


@pytest.fixture
def folder(several, tmp_path):
    return save(several, tmp_path / "llama")


def same_in(dtype, loaded, model) -> bool:
    model = model.to(dtype)
    model.model.rotary_emb = loaded.model.rotary_emb  # whose angles only `to` rounds
    return torch.equal(logits(loaded), logits(model))


def test_the_auto_class_gives_back_the_same_model(several, folder, tmp_path):
    loaded, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values())
    assert torch.equal(logits(loaded), logits(several))
    want, got = several.state_dict(), loaded.state_dict()
    assert list(want) == list(got)
    assert all(torch.equal(want[name], got[name]) for name in want)
    assert [n for n, _ in loaded.named_parameters()] == [n for n, _ in several.named_parameters()]
    optimizer = torch.optim.SGD(loaded.parameters(), lr=0.1)
    loaded(torch.tensor([[1, 2, 3]])).logits.square().sum().backward()
    optimizer.step()
    assert torch.equal(logits(load(save(loaded, tmp_path / "trained"))), logits(loaded))


def test_a_resave_writes_the_same_again(several, folder, tmp_path):
    saved = load_file(folder / "model.safetensors")
    assert manifest_of(folder)["quantization_config"]["schema"] == 3
    loaded, again = AutoModelForCausalLM.from_pretrained(folder), tmp_path / "again"
    loaded.save_pretrained(again)
    assert manifest_of(folder) == manifest_of(again)
    assert not hasattr(loaded.config, "transformers_weights")
    assert saved.keys() == load_file(again / "model.safetensors").keys()
    assert bytes_of(again) == bytes_of(folder)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(again)), logits(several))


@pytest.mark.parametrize(
    "how",
    [{"dtype": torch.bfloat16}, {"device_map": "cpu"}, {"low_cpu_mem_usage": True}],
    ids=["bf16", "device_map", "low_cpu_mem"],
)
def test_ways_of_loading(several, folder, how):
    loaded = AutoModelForCausalLM.from_pretrained(folder, **how)
    dtype = how.get("dtype", torch.float32)
    assert {p.dtype for p in loaded.parameters()} == {dtype}
    assert loaded.model.layers[0].mlp.gate_proj.get_extra_state().dtype == torch.uint8
    assert same_in(dtype, loaded, several)


def test_bf16_is_kept(tmp_path):
    model = make_several(torch.bfloat16)
    folder = save(model, tmp_path / "bf16")
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}
    assert AutoModel.from_pretrained(folder, dtype=torch.float32).dtype == torch.float32
    assert same_in(torch.bfloat16, loaded, model)


def test_shards_and_state_dicts_of_copies(several, tmp_path):
    shards = save(several, tmp_path / "shards", max_shard_size="10KB")
    assert len(list(shards.glob("model-*.safetensors"))) > 2
    for loaded in (AutoModelForCausalLM.from_pretrained(shards), load(shards)):
        assert torch.equal(logits(loaded), logits(several))
    attach(several)
    whole = {name: value.clone() for name, value in several.state_dict().items()}  # as FSDP gives
    several.save_pretrained(tmp_path / "copies", state_dict=whole)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "copies")
    assert torch.equal(logits(loaded), logits(several))


def test_other_classes_find_the_backbone(several, folder, tmp_path):
    base = AutoModel.from_pretrained(folder)
    with torch.no_grad():
        assert torch.equal(base(IDS).last_hidden_state, several.model(IDS).last_hidden_state)
    classifier = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3)
    assert classifier.score.weight.shape[0] == 3
    gate, want = (model.model.layers[1].mlp.gate_proj for model in (classifier, several))
    assert torch.equal(gate.dense(), want.dense())
    alone = save(base, tmp_path / "base")
    assert "layers.0.mlp.up_proj" in manifest_of(alone)["quantization_config"]["modules"]
    again = LlamaForCausalLM.from_pretrained(alone)
    one, two = (model.model.layers[1].self_attn.v_proj for model in (again, several))
    assert torch.equal(one.dense(), two.dense())


PARTS = ("q_proj", "k_proj", "v_proj", "o_proj")


@pytest.mark.parametrize(
    "first",
    [None, {f"self_attn.{name}": ("disk" if name == "v_proj" else "cpu") for name in PARTS}],
    ids=["block", "part"],
)
@pytest.mark.parametrize("far", ["disk", "cpu"])
def test_offloaded_parts(several, folder, tmp_path, far, first):
    if first is not None:
        near = ("mlp", "input_layernorm", "post_attention_layernorm")
        first = dict.fromkeys(near, "cpu") | first
    loaded = offloaded(folder, tmp_path / "off", far, first)
    if far == "disk":
        attention = loaded.model.layers[0].self_attn
        assert attention.v_proj.core_0.is_meta
        assert attention.q_proj.core_0.is_meta == (first is None)
    for _ in range(2):  # the second time they were there once and were sent away again
        assert torch.equal(logits(loaded), logits(several))


def test_merged_it_is_an_ordinary_checkpoint(several, tmp_path):
    folder = save(bw.merge(several), tmp_path / "merged")
    assert "quantization_config" not in manifest_of(folder)
    merged = AutoModelForCausalLM.from_pretrained(folder)
    torch.testing.assert_close(logits(merged), logits(several), rtol=1e-4, atol=1e-4)


def test_without_the_manifest_loading_is_loud(folder):
    edit(
        folder / "config.json",
        lambda c: [c.pop(n) for n in ("quantization_config", "transformers_weights")],
    )
    with pytest.raises(RuntimeError, match="ismatch"):
        AutoModelForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        *((pop(f"{GATE}.{n}"), rf"lacks '{GATE}\.{n}'") for n in ("core_1", "t1_entries")),
        (pop(f"{GATE}._extra_state"), rf"lacks '{GATE}\._extra_state'"),
        (pop(f"{ATTENTION}.o_proj.t1_dense"), r"lacks '.*o_proj\.t1_dense'"),
        (
            lambda t: t.update({f"{GATE}.core_0": torch.zeros(95, 8)}),
            rf"'{GATE}.core_0' of shape \(95, 8\)",
        ),
        (
            lambda t: [t.pop(n) for n in list(t) if n.startswith(GATE)],
            rf"lacks '{GATE}.core_0'",
        ),
    ],
)
def test_bad_tensors(folder, change, says):
    edit(folder / "model.safetensors", change)
    for ignore in (False, True):
        with refused(says):
            AutoModelForCausalLM.from_pretrained(folder, ignore_mismatched_sizes=ignore)
