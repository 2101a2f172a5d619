"""A run on disk: written beside, then renamed, so that a cut leaves the last state whole.

A folder holds ``heal.json`` (what the run is, and what was decided in it), and in ``steps``
``run.json`` (where it is), ``at-..`` (parameters and the optimizer's moments at that step) and
``best-..`` (parameters where the validation was best). ``run.json`` is written last and names the
others, which are removed only afterwards.
"""

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from bondwise.errors import CheckpointError
from bondwise.flow.files import read_json, write, write_json
from bondwise.flow.identity import difference
from bondwise.train.processes import agreed, rank, wait

ABOUT, RUN = "heal.json", "run.json"
SCHEMA = 4
Values = dict[str, Any]


class RunFolder:
    """The folder of a run, and what was decided in it.

    Args:
        folder: its parents are made.
        identity: what the run is, as JSON: another one does not go on with it.
        resume: go on with what is there; otherwise a state of ours is removed.

    Raises:
        CheckpointError: it holds something else or another run, or cannot be written.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any], resume: bool = True) -> None:
        self.folder = folder.absolute()
        found = self._found(resume) if rank() == 0 else None
        if rank() == 0 and found is None:
            write_json(self.folder / ABOUT, {"schema": SCHEMA, "identity": identity, "decided": {}})
        wait()
        about = read_json(self.folder / ABOUT)
        differs = difference(cast(Values, about["identity"]), identity)
        if differs:
            raise CheckpointError(
                f"{self.folder} holds the state of another healing ({differs}); name another "
                "folder, or remove it to begin anew (in Python resume=False does)."
            )

    def _found(self, resume: bool) -> Values | None:
        """What a state of ours is; None where there is none, or none any more."""
        there = list(self.folder.iterdir()) if self.folder.is_dir() else []
        ours = (self.folder / ABOUT).is_file()
        if (there and not ours) or (self.folder.exists() and not self.folder.is_dir()):
            raise CheckpointError(
                f"{self.folder} holds no state of a healing; name another folder for it."
            )
        if ours and resume:
            about = read_json(self.folder / ABOUT)
            if about.get("schema") != SCHEMA:
                raise CheckpointError(
                    f"{self.folder} holds a state of schema {about.get('schema')}, and this "
                    f"version of bondwise goes on from {SCHEMA}; remove it to begin anew (in "
                    "Python resume=False does)."
                )
            return about
        shutil.rmtree(self.folder, ignore_errors=True)
        return None

    @property
    def begun(self) -> bool:
        """Whether a state is there: something that took time."""
        return (self.folder / "steps" / RUN).is_file()

    def forget(self) -> None:
        """Remove it."""
        if rank() == 0:
            shutil.rmtree(self.folder, ignore_errors=True)

    def decided(self, name: str) -> Any:
        """What was decided under that name; None for nothing yet."""
        return read_json(self.folder / ABOUT)["decided"].get(name)

    def decide(self, **values: Any) -> None:
        """Keep what was decided, so that a resumed run does the same."""
        if rank() == 0:
            about = read_json(self.folder / ABOUT)
            about["decided"] |= values
            write_json(self.folder / ABOUT, about)
        wait()


class Store:
    """States of a training: parameters by name, an optimizer, and plain values.

    Processes that hold shards of the parameters (FSDP) write a file each; otherwise the first does.

    Args:
        folder: where to; made when the first state is kept.
        parameters: what trains, by name.
    """

    def __init__(self, folder: Path, parameters: Mapping[str, nn.Parameter]) -> None:
        self.folder, self.parameters = folder, dict(parameters)
        self.sharded = any(hasattr(p, "to_local") for p in self.parameters.values())
        self.kept: int | None = None  # the step of the best parameters that the state names
        self.best: int | None = None

    def save(self, step: int, values: Values, optimizer: torch.optim.Optimizer) -> None:
        """Keep the state of a step; the one before it is then gone.

        Raises:
            CheckpointError: it cannot be written (a full disk); the one before it is still there.
        """
        self._write(f"at-{step:08d}", dict(self._state(optimizer)))
        self._commit(step, values, done=False)

    def finish(self, step: int, values: Values) -> None:
        """Keep the end of a run: the best parameters and the values.

        Raises:
            CheckpointError: as `save`.
        """
        self._commit(step, values, done=True)

    def load(self, optimizer: torch.optim.Optimizer) -> Values | None:
        """Put the last state in the parameters and the optimizer; its values, None for no state.

        Raises:
            CheckpointError: it cannot be read.
        """
        if not (self.folder / RUN).is_file():
            return None
        run = read_json(self.folder / RUN)
        self.kept = self.best = run["best"]
        if run["done"]:
            return run["values"] | {"done": True}
        fused = any(group.get("fused") for group in optimizer.param_groups)
        for name, value in self._read(f"at-{run['step']:08d}"):
            kind, _, path = name.partition(":")
            if kind == "value":
                _fill(self.parameters[path], value)
                continue
            p = self.parameters[path]
            if value.ndim:
                like = torch.zeros_like(p, dtype=value.dtype)
                _fill(like, value)
                value = like
            elif fused:
                value = value.to(p.device)  # the kernel counts its steps where it computes
            optimizer.state[p][kind] = value
        return run["values"] | {"done": False}

    def keep(self, step: int) -> None:
        """Keep the parameters of now as the best.

        Raises:
            CheckpointError: as `save`.
        """
        self._write(f"best-{step:08d}", {name: local(p) for name, p in self.parameters.items()})
        old, self.best = self.best, step
        if old not in (None, self.kept, step):
            self._remove(f"best-{old:08d}")

    def restore(self) -> None:
        """Put the best in the parameters.

        Raises:
            CheckpointError: it cannot be read.
        """
        for name, value in self._read(f"best-{self.best:08d}"):
            _fill(self.parameters[name], value)

    def _state(self, optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, Tensor]]:
        for name, p in self.parameters.items():
            yield f"value:{name}", local(p)
            for kind, value in cast(Mapping[str, Any], optimizer.state.get(p, {})).items():
                yield f"{kind}:{name}", local(torch.as_tensor(value))

    def _commit(self, step: int, values: Values, *, done: bool) -> None:
        if rank() == 0:
            run = {"step": step, "best": self.best, "done": done, "values": values}
            write_json(self.folder / RUN, run)
        wait()
        self.kept = self.best
        named = {f"best-{self.best or 0:08d}"} | (set() if done else {f"at-{step:08d}"})
        for path in self.folder.glob("*.safetensors"):
            if path.name.partition(".")[0].partition("_")[0] not in named:
                self._remove(path.name.partition(".")[0].partition("_")[0])

    def _file(self, name: str) -> Path:
        own = f"_{rank()}" if self.sharded else ""
        return self.folder / f"{name}{own}.safetensors"

    def _write(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        failed: CheckpointError | None = None
        if self.sharded or rank() == 0:
            try:
                write(self._file(name), tensors)
            except CheckpointError as error:
                failed = error
        if failed is not None:
            agreed([1.0], "max")
            raise failed
        if agreed([0.0], "max")[0]:
            raise CheckpointError(
                f"{self.folder} cannot be written by another process; the state before is kept."
            )

    def _read(self, name: str) -> Iterator[tuple[str, Tensor]]:
        path = self._file(name)
        try:
            with safe_open(str(path), framework="pt") as file:
                for key in file.keys():  # noqa: SIM118
                    yield key, cast(Tensor, file.get_tensor(key))
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"{path} cannot be read ({error}); remove {self.folder} and begin anew."
            ) from error

    def _remove(self, name: str) -> None:
        if self.sharded or rank() == 0:
            self._file(name).unlink(missing_ok=True)


def local(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor: all, or its shard."""
    own = getattr(tensor, "to_local", None)
    return (own() if own is not None else tensor).detach()


@torch.no_grad()
def _fill(tensor: Tensor, value: Tensor) -> None:
    """Write into a tensor, or into the shard of it that is here."""
    local(tensor).copy_(value)
