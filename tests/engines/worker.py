"""What each of two processes does: the same few steps by DDP, FSDP2, accelerate and Trainer.

Started by `accelerate launch`; the first process leaves what came out in the folder it is given.
"""

import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from accelerate import Accelerator
from safetensors.torch import save_model
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from engines.models import IDS, ROWS, batches, llama, logits, optimizer_of, step, trained, trainer

FULL = StateDictOptions(full_state_dict=True, cpu_offload=True)


def keep(model: Any, file: Path) -> None:
    """The first process writes the model as safetensors."""
    if dist.get_rank() == 0:
        save_model(model, str(file))


def sharded(model: Any, **policy: Any) -> Any:
    """The model by FSDP2: each block, then what is left."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for block in model.model.layers:
        fully_shard(block, mesh=mesh, **policy)
    return fully_shard(model, mesh=mesh, **policy)


def by_ddp(folder: Path, rank: int, world: int) -> None:
    model = llama()
    trained(DistributedDataParallel(model), rank, world)
    keep(model, folder / "ddp.safetensors")


def by_fsdp2(folder: Path, rank: int, world: int) -> None:
    """Train; hand the whole state to an ordinary model, and to save_pretrained as Trainer does."""
    model = trained(sharded(llama()), rank, world)
    said = logits(model)
    model.reshard()  # the last group stays whole after a run without gradients
    assert all(isinstance(p, DTensor) for p in model.parameters())
    state = get_model_state_dict(model, options=FULL)
    if rank == 0:
        plain = llama()
        plain.load_state_dict(state)
        keep(plain, folder / "fsdp2.safetensors")
        torch.save(said, folder / "fsdp2-logits.pt")
        model.save_pretrained(folder / "fsdp2", state_dict=state)
    again = sharded(llama())
    set_model_state_dict(again, plain.state_dict() if rank == 0 else {}, options=StateDictOptions(
        full_state_dict=True, broadcast_from_rank0=True))  # fmt: skip
    assert torch.equal(logits(again), said)


def by_fsdp2_in_two_goes(folder: Path, rank: int, world: int) -> None:
    """Stop in the middle, each process writing its shards; go on in a new model."""
    rows = list(batches(rank, world))
    model = sharded(llama())
    optimizer = optimizer_of(model)
    for part in rows[:2]:
        step(model, optimizer, part)
    own, moments = get_state_dict(model, optimizer)
    dcp.save({"model": own, "optimizer": moments}, checkpoint_id=folder / "shards")
    model = sharded(llama())
    optimizer = optimizer_of(model)
    own, moments = get_state_dict(model, optimizer)
    dcp.load({"model": own, "optimizer": moments}, checkpoint_id=folder / "shards")
    set_state_dict(model, optimizer, model_state_dict=own, optim_state_dict=moments)
    for part in rows[2:]:
        step(model, optimizer, part)
    state = get_model_state_dict(model, options=FULL)
    if rank == 0:
        plain = llama()
        plain.load_state_dict(state)
        keep(plain, folder / "fsdp2-again.safetensors")


def by_fsdp2_in_bfloat16(rank: int, world: int) -> None:
    """The loss falls, and the float32 weights stay float32."""
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    model = sharded(llama(), mp_policy=policy)
    optimizer = optimizer_of(model)
    losses = [step(model, optimizer, IDS[rank::world]) for _ in range(6)]
    assert losses[-1] < losses[0] - 0.5, losses
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def by_accelerate(folder: Path, accelerator: Accelerator) -> None:
    model = llama()
    rows = torch.cat([IDS.roll(k, 1) for k in range(4)])
    loader = torch.utils.data.DataLoader(rows, batch_size=ROWS // 2)
    wrapped, optimizer, loader = accelerator.prepare(model, optimizer_of(model), loader)
    assert isinstance(wrapped, DistributedDataParallel)
    for part in loader:
        with accelerator.accumulate(wrapped):
            accelerator.backward(wrapped(input_ids=part, labels=part).loss)
            accelerator.clip_grad_norm_(wrapped.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
    own = accelerator.unwrap_model(wrapped)
    own.save_pretrained(folder / "accelerate", is_main_process=accelerator.is_main_process)


def by_trainer(folder: Path) -> None:
    run = trainer(llama(), folder / "trainer", batch=ROWS // 2, activation_checkpointing=True)
    run.train()
    run.save_model(str(folder / "trainer" / "end"))


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True)
    rank, world = accelerator.process_index, accelerator.num_processes
    assert (world, dist.get_backend()) == (2, "gloo")
    assert torch.equal(logits(deepcopy(llama())), logits(llama()))  # all start from one model
    by_ddp(folder, rank, world)
    by_fsdp2(folder, rank, world)
    by_fsdp2_in_two_goes(folder, rank, world)
    by_fsdp2_in_bfloat16(rank, world)
    by_accelerate(folder, accelerator)
    by_trainer(folder)
    accelerator.wait_for_everyone()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
