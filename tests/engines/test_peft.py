"""LoRA of peft on the cores trains, saves, loads and merges; the cores stay as they are."""

import warnings

import pytest
import torch
from torch import nn

import bondwise as bw
from bondwise.layers.module import TensorLayer
from tiny import same, values

from .models import IDS, llama, logits, step, trainer

peft = pytest.importorskip("peft", reason="peft is not installed: pip install 'bondwise[peft]'")
lora = pytest.importorskip("peft.tuners.lora")
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*is_gradient_checkpointing.*:FutureWarning"  # peft 0.21 asks transformers 5.23 so
)


def all_cores(model: nn.Module) -> list[str]:
    """All cores, as docs/training.md finds them."""
    return [
        f"{path}.core_{k}"
        for path, layer in model.named_modules()
        if isinstance(layer, TensorLayer)
        for k in range(len(layer.network.cores))
    ]


def adapted(model: nn.Module, targets: list[str] | None = None, seed: int = 0):
    torch.manual_seed(seed)
    chosen = all_cores(model) if targets is None else targets
    config = peft.LoraConfig(r=2, lora_alpha=8, target_modules=[], target_parameters=chosen)
    return peft.get_peft_model(model, config)


def fit(model: nn.Module, steps: int = 5) -> list[float]:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    return [step(model, optimizer, IDS) for _ in range(steps)]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A loaded checkpoint, an adapter on every core of its own trained, and where it was saved."""
    folder = tmp_path_factory.mktemp("lora")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        model = adapted(bw.load(bw.save(llama(), folder / "base"))).train()
        losses = fit(model)
        model.eval().save_pretrained(folder)
    return model, folder, losses


def test_only_adapters_train_and_each_of_them_does(done):
    model, _, losses = done
    assert losses[-1] < losses[0] - 0.2
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * len(all_cores(llama()))
    assert all(".lora_" in name for name in trained)
    still = [name for name, p in trained.items() if "lora_B" in name and not p.any()]
    assert not still  # each starts at zero
    before = llama().state_dict()
    for name, value in model.get_base_model().state_dict().items():
        plain = name.replace("base_layer.", "")
        assert ".lora_" in name or torch.equal(value, before[plain]), name


def test_the_adapted_model_is_the_one_whose_cores_have_the_product_added(done):
    """Against dense weights made of ``core + 8/2 B A``, by torch alone."""
    model, other = done[0], llama().eval()
    wrappers = {p: m for p, m in model.named_modules() if isinstance(m, lora.ParamWrapper)}
    for path, wrapper in wrappers.items():
        layer = path.removeprefix("base_model.model.").replace(".base_layer", "")
        core = getattr(other.get_submodule(layer), wrapper.parameter_name)
        with torch.no_grad():
            core += 4 * wrapper.lora_B["default"].weight @ wrapper.lora_A["default"].weight
    dense = bw.merge(other)
    assert not any(isinstance(module, TensorLayer) for module in dense.modules())
    assert torch.allclose(logits(dense), logits(model), atol=1e-3)


def test_a_saved_adapter_loads(done):
    model, folder, _ = done
    again = peft.PeftModel.from_pretrained(llama().eval(), folder)
    assert torch.equal(logits(again), logits(model))
    going_on = peft.PeftModel.from_pretrained(llama(), folder, is_trainable=True)
    losses = fit(going_on, steps=3)
    assert losses[-1] < losses[0] < done[2][-1] + 0.1


def test_merged_it_is_a_tensorized_model_again(done, tmp_path):
    model, folder, _ = done
    base = llama().eval()
    merged = peft.PeftModel.from_pretrained(base, folder).merge_and_unload()
    assert type(merged) is type(base)
    assert torch.allclose(logits(merged), logits(model), atol=1e-4)
    shapes = {name: p.shape for name, p in llama().named_parameters()}
    assert {name: p.shape for name, p in merged.named_parameters()} == shapes
    again = bw.load(bw.save(merged, tmp_path / "merged"))
    assert torch.equal(logits(again), logits(merged))


def test_what_comes_out_follows_the_adapter(done):
    """An adapter on a core is no parameter of its layer."""
    model = adapted(llama().eval(), seed=1).eval()
    plain = logits(model)
    assert torch.allclose(plain, logits(llama().eval()), atol=1e-5)  # a new one changes nothing
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.add_(0.05)
    one = logits(model)
    assert not torch.allclose(one, plain, atol=1e-2)
    fresh = adapted(llama().eval(), seed=1).eval()
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(logits(fresh), one)
    model.load_adapter(done[1], "other")
    model.set_adapter("other")
    assert torch.allclose(logits(model), logits(done[0]), atol=1e-4)
    model.set_adapter("default")
    assert torch.equal(logits(model), one)
    with model.disable_adapter():
        assert torch.equal(logits(model), logits(llama().eval()))


def test_trainer_saves_and_resumes_the_adapter_alone(tmp_path):
    model = adapted(llama())
    trainer(model, tmp_path, activation_checkpointing=True, save_steps=2).train()
    last = tmp_path / "checkpoint-2"
    assert not (last / "model.safetensors").exists()
    again = adapted(llama())
    trainer(again, tmp_path / "again").train(resume_from_checkpoint=str(last))
    assert same(values(model), values(again))
