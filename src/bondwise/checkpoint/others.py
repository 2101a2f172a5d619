"""Models that transformers does not know: code, exported programs, and our folders of either."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from bondwise.checkpoint.checkpoint import CONFIG, load
from bondwise.checkpoint.manifest import read_specs
from bondwise.checkpoint.plain import GRAPH, MANIFEST, plain_manifest
from bondwise.checkpoint.sources.archive import read_archive
from bondwise.checkpoint.sources.code import is_code, model_of, whole_name
from bondwise.checkpoint.sources.program import Program
from bondwise.errors import CheckpointError, DataError
from bondwise.flow.data import Batch
from bondwise.flow.forms.samples import in_parts


def is_other(path: str | Path) -> bool:
    """Whether a MODEL is code, an exported program, or a folder that we wrote of a plain module.

    >>> is_other("nets:small"), is_other("model.pt2"), is_other("HuggingFaceTB/SmolLM2-135M")
    (True, True, False)
    """
    return is_code(path) or is_program(path) or _is_plain(Path(path).expanduser())


def is_program(path: str | Path) -> bool:
    """Whether a MODEL is an exported program, by its name."""
    return str(path).endswith(".pt2") and not Path(path).is_dir()


def other_model(path: str | Path, code: str | None = None) -> tuple[nn.Module, str | None]:
    """The model, and the code that makes one of its kind.

    Raises:
        CheckpointError: it cannot be made; with a folder whose model only code makes also that no
            code came. A folder is data: what it names is imported where the user wrote it too.
    """
    if is_code(path):
        return model_of(path), whole_name(str(path))
    source = Path(path).expanduser()
    if is_program(path):
        if not source.is_file():
            raise CheckpointError(f"There is no file {path}; give what torch.export.save wrote.")
        return read_archive(source), None
    if code is None and not (source / GRAPH).is_file():
        said = plain_manifest(source).get("code")
        named = "package.module:attribute" if said is None else said
        trust = "" if said is None else ", if you trust it"
        raise CheckpointError(
            f"{path} holds a plain module, and code that a folder names is not run by itself; add "
            f"--code {named}{trust}."
        )
    model = load(source, model=code)
    return model, None if code is None else whole_name(code)


def named_code(other: str | Path | None) -> str | None:
    """The code that another MODEL of the same command is, since the user wrote it there."""
    return str(other) if other is not None and is_code(other) else None


def shown(model: nn.Module, data: Tensor | list[Batch]) -> Tensor | list[Batch]:
    """Samples as a model takes them: one at a time where it was exported for one."""
    if not isinstance(model, Program) or model.batch != 1:
        return data
    whole = [data] if isinstance(data, Tensor) else data
    return [each for batch in whole for each in in_parts(batch, 1)]


def program_beside(model: nn.Module) -> Callable[[Path], dict[str, str]]:
    """What leaves a dense program beside its weights as model.pt2, for torch without bondwise."""

    def beside(folder: Path) -> dict[str, str]:
        if isinstance(model, Program):
            torch.export.save(model.exported(), str(folder / "model.pt2"))
        return {}

    return beside


def check_other(path: str | Path, *, text: bool = False, networks: bool = False) -> None:
    """Refuse a model that will not do, without running anything of it.

    Raises:
        DataError: text is to be shown to it, which has no tokenizer; or it holds no networks.
    """
    if text:
        raise DataError(
            f"{path} is no language model and reads no text; give samples: a tensor that "
            "torch.save(tensor, 'samples.pt') wrote, as --data samples.pt."
        )
    if networks:
        folder = Path(path).expanduser()
        if not _is_plain(folder) or not read_specs(plain_manifest(folder)):
            raise no_networks(path)


def no_networks(path: str | Path) -> DataError:
    """What is said of a model that is dense where networks are asked for."""
    return DataError(f"{path} holds no tensor networks; give a folder that compress wrote.")


def _is_plain(folder: Path) -> bool:
    return (folder / MANIFEST).is_file() and not (folder / CONFIG).is_file()
