"""Two processes give what one gives: DDP, FSDP2, `accelerate launch` and Trainer.

One launch does all of it (`worker.py`), since starting two processes takes most of the time.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_model
from transformers import AutoModelForCausalLM

import bondwise as bw

from .models import llama, logits, trained, trainer

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available(), reason="this torch has no torch.distributed"
)
TESTS = Path(__file__).parents[1]


def launch(folder: Path) -> None:
    """Two processes of gloo by `accelerate launch`, whose --cpu would need MPI."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu"]
    command += ["--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no"]
    command += ["--dynamo_backend", "no", "--main_process_port", "0", "--module", "engines.worker"]
    paths = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
    settings = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    command.append(str(folder))
    done = subprocess.run(
        command, env=os.environ | settings, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-6000:]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the two processes left; under xdist one launch serves all its workers."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        launch(own := tmp_path_factory.mktemp("engines"))
        return own
    common = tmp_path_factory.getbasetemp().parent / "engines"
    with FileLock(f"{common}.lock"):
        if not common.exists():
            common.mkdir()
            launch(common)
    return common


@pytest.fixture(scope="module")
def alone():
    """The same steps in one process."""
    return trained(llama())


def assert_close(model, wanted) -> None:
    pairs = zip(model.state_dict().items(), wanted.state_dict().items(), strict=True)
    for (name, value), (also, want) in pairs:
        assert name == also
        assert torch.allclose(value, want, rtol=0, atol=1e-5), name


@pytest.mark.parametrize("how", ["ddp", "fsdp2", "fsdp2-again"])
def test_two_processes_give_the_result_of_one(folder, alone, how):
    model = llama()
    load_model(model, str(folder / f"{how}.safetensors"))
    pairs = zip(model.parameters(), llama().parameters(), strict=True)
    assert max((p - q).abs().max() for p, q in pairs) > 0.01
    assert_close(model, alone)


def test_a_sharded_model_runs_as_the_whole_one(folder, alone):
    said = torch.load(folder / "fsdp2-logits.pt", weights_only=True)
    assert torch.allclose(said, logits(alone), rtol=0, atol=1e-4)


@pytest.mark.parametrize("how", ["fsdp2", "accelerate"])
def test_what_was_saved_is_an_ordinary_checkpoint(folder, alone, how, tmp_path):
    model, info = AutoModelForCausalLM.from_pretrained(folder / how, output_loading_info=True)
    assert not any(info.values())
    assert_close(model, alone)
    assert_close(bw.load(bw.save(model, tmp_path / "again")), alone)


def test_trainer_in_two_processes_with_checkpointing(folder, tmp_path):
    model = llama()
    trainer(model, tmp_path).train()
    assert_close(AutoModelForCausalLM.from_pretrained(folder / "trainer" / "end"), model)
