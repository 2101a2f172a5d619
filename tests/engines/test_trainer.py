"""Hugging Face's Trainer trains tensorized models as they are."""

from copy import deepcopy

import pytest
import torch
from transformers import AutoModelForCausalLM, Trainer

import bondwise as bw
import tiny
from bondwise.layers.module import TensorLayer
from tiny import same, values

from .models import STEPS, llama, logits, trainer


def losses(run: Trainer) -> list[float]:
    return [entry["loss"] for entry in run.state.log_history if "loss" in entry]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The model with everything in it, trained; what Trainer left; what it said."""
    folder, model = tmp_path_factory.mktemp("trainer"), llama()
    run = trainer(model, folder)
    run.train()
    return model, folder, losses(run)


@pytest.mark.parametrize(
    ("make", "target", "better"),
    [(tiny.llama, "re:layers.0.(self_attn.[qkv]|mlp)", 0.5), (tiny.gpt2, "c_attn", 0.0)],
)
def test_a_tensorized_model_trains_saves_and_loads(tmp_path, make, target, better):
    """Also GPT-2, whose layers are of another class."""
    given = {"keep": 0.6, "format": "lowrank", "targets": [target], "data": tiny.tokens(4)}
    model = bw.tensorize(make(), **given).model
    run = trainer(model, tmp_path, max_steps=6, save_steps=6)
    run.train()
    found = losses(run)
    assert found[-1] < found[0] - better
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint-6")
    assert type(again) is type(model)
    assert any(isinstance(module, TensorLayer) for module in again.modules())
    assert same(values(again), values(model))
    ids = tiny.tokens(2)
    with torch.no_grad():
        assert torch.equal(again(ids).logits, model.eval()(ids).logits)


def test_everything_that_is_stored_trains(done):
    model, _, found = done
    before = dict(llama().named_parameters())
    still = [name for name, p in model.named_parameters() if torch.equal(p, before[name])]
    assert not still
    assert found[-1] < found[0] - 0.3


def test_checkpointing_of_activations_changes_nothing(done, tmp_path):
    model, runs = llama(), []
    model.model.layers[0].mlp.up_proj.register_forward_hook(lambda *_: runs.append(1))
    trainer(model, tmp_path, activation_checkpointing=True).train()
    assert len(runs) == 2 * STEPS  # each step runs it again for the gradient
    assert same(values(model), values(done[0]))


def test_a_resumed_run_ends_as_one_that_went_through(done, tmp_path):
    through, folder, found = done
    model = llama()
    run = trainer(model, tmp_path)
    run.train(resume_from_checkpoint=str(folder / "checkpoint-2"))
    assert same(values(model), values(through))
    assert losses(run) == found  # those before the stop are in its state


def test_its_checkpoint_is_ours(done):
    model, folder, _ = done
    last = folder / f"checkpoint-{STEPS}"
    for again in (AutoModelForCausalLM.from_pretrained(last), bw.load(last)):
        assert torch.equal(logits(again), logits(deepcopy(model).eval()))


def test_a_loaded_checkpoint_trains(done, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(done[1] / "checkpoint-2")
    start = deepcopy(model)
    run = trainer(model, tmp_path, max_steps=3)
    before = run.evaluate()["eval_loss"]  # on all rows: those of one step are too few to compare
    run.train()
    assert run.evaluate()["eval_loss"] < before
    pairs = zip(model.parameters(), start.parameters(), strict=True)
    assert not any(torch.equal(p, q) for p, q in pairs)


def test_evaluation_and_the_best_weights_kept(tmp_path):
    model = llama()
    settings = {"eval_strategy": "steps", "eval_steps": 1, "save_steps": 1}
    run = trainer(model, tmp_path, load_best_model_at_end=True, **settings)
    run.train()
    said = [entry["eval_loss"] for entry in run.state.log_history if "eval_loss" in entry]
    assert len(said) == STEPS
    fresh = llama()
    fresh.load_state_dict(model.state_dict())
    with torch.no_grad():
        rows = torch.stack([row["labels"] for row in run.train_dataset])
        loss = fresh.eval()(input_ids=rows, labels=rows).loss.item()
    assert loss == pytest.approx(min(said), abs=1e-5)


def test_bfloat16_autocast(tmp_path):
    model = llama()
    run = trainer(model, tmp_path, bf16=True, save_strategy="no", max_steps=6)
    run.train()
    assert losses(run)[-1] < losses(run)[0] - 0.3
    assert {p.dtype for p in model.parameters()} == {torch.float32}
