"""Layers by FSDP2 in two processes, all in one go; a script, started twice."""

import copy
import sys

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    set_model_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.testing import assert_close

from contract.subjects import Cell, cells, few, wanted

FULL = StateDictOptions(full_state_dict=True, cpu_offload=True)


def sharded(cell: Cell, mesh) -> None:
    """A step and a look, then the whole state in an ordinary model and back."""
    plain, x = cell.model(), cell.inputs(6)
    model = fully_shard(copy.deepcopy(plain), mesh=mesh)
    own = x.chunk(dist.get_world_size())[dist.get_rank()]
    with torch.no_grad():
        assert_close(model(x), wanted(plain[0], x))
    model(own).square().mean().backward()
    wanted(plain[0], x).square().mean().backward()
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        assert isinstance(p, DTensor)
        assert_close(p.grad.full_tensor(), q.grad)
    for each in (model, plain):
        torch.optim.SGD(each.parameters(), lr=0.01).step()
    with torch.no_grad():
        assert_close(model(x), wanted(plain[0], x))
    model.reshard()  # a look without gradients leaves it whole
    state = get_model_state_dict(model, options=FULL)
    if dist.get_rank() == 0:
        other = cell.model(1)
        other.load_state_dict(state)
        assert_close(other(x), wanted(plain[0], x))
    again = fully_shard(cell.model(1), mesh=mesh)
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(again, state if dist.get_rank() == 0 else {}, options=options)
    with torch.no_grad():
        assert_close(again(x), wanted(plain[0], x))


def main(rank: int, where: str, every: bool) -> None:
    """All cells; every one that fails is named."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{where}", rank=rank, world_size=2)
    mesh, wrong = init_device_mesh("cpu", (2,)), []
    for cell in cells():
        if not (every or few(cell)):
            continue
        try:
            sharded(cell, mesh)
        except Exception as error:
            wrong.append(f"{cell}: {type(error).__name__}: {str(error)[:300]}")
    dist.barrier()
    dist.destroy_process_group()
    assert not wrong, "\n".join([f"{len(wrong)} cells", *wrong])


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3] == "all")
