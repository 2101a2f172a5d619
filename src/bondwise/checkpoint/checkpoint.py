"""Checkpoints: safetensors and JSON, written whole or not at all, read without unpickling.

A Hugging Face model is kept as ``save_pretrained`` writes it, its manifest in config.json. Any
other module is kept as model.safetensors, with graph.json where it is an exported program. All have
bondwise.json beside them, which marks a folder as ours.
"""

import os
import re
import shutil
import uuid
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from bondwise.checkpoint.carry import carry_files, carry_tensors, look
from bondwise.checkpoint.hub import (
    METHOD,
    attach,
    is_hub_model,
    need_transformers,
    without_bars,
)
from bondwise.checkpoint.manifest import describe, read_specs
from bondwise.checkpoint.plain import (
    GRAPH,
    MANIFEST,
    given,
    load_module,
    plain_manifest,
    program,
    read_json,
    save_module,
    write_json,
)
from bondwise.checkpoint.whole import check_writable
from bondwise.checkpoint.written import check_written
from bondwise.errors import BondwiseError, CheckpointError, DataError
from bondwise.flow.doors import check_call, check_place
from bondwise.layers.module import check_model

CONFIG = "config.json"


def save(
    model: nn.Module,
    directory: str | Path,
    *,
    tokenizer: Any = None,
    overwrite: bool = False,
    max_shard_size: int | str = "5GB",
    source: str | Path | None = None,
    extra: Callable[[Path], Mapping[str, str | bytes]] | None = None,
    code: str | None = None,
) -> Path:
    """Write a model to a folder, whole or not at all.

    Args:
        model: a Hugging Face model, or any module; its networks are described in JSON.
        directory: where to; its parents are made.
        tokenizer: kept beside the model, if given.
        overwrite: replace a checkpoint of ours; a folder of anybody else is never replaced.
        max_shard_size: of one weights file of a Hugging Face model.
        source: the folder that the model came from (``model.name_or_path``, where it is one): what
            it holds beside the weights is carried along, so small files, subfolders, and tensors
            that the model's class lacks. Weights in other forms, hidden files and links to
            elsewhere are not; `bondwise.checkpoint.carry.look` says which.
        extra: called with the folder once the weights are in it; gives texts or bytes to
            keep beside them, by file name.
        code: what makes a dense model of the kind, ``package.module:attribute``, for a module that
            is none of transformers'. It is noted, to be said where it is needed: see `load`.

    Raises:
        CheckpointError: the folder is not ours or in the way, or cannot be written (a full disk),
            or what was written is not the model.
        SelectionError: what came is no model, a layer on its own, or a model that cannot be
            written whole (adapters, tensors that are elsewhere or quantised).
        DataError: what came as the tokenizer cannot be saved.

    >>> from tempfile import TemporaryDirectory
    >>> from bondwise import tensorize
    >>> result = tensorize(nn.Sequential(nn.Linear(8, 8)), keep=0.5)
    >>> with TemporaryDirectory() as folder:
    ...     path = save(result.model, f"{folder}/small")
    ...     sorted(file.name for file in path.iterdir())
    ['bondwise.json', 'model.safetensors']
    """
    check_model(model)
    check_writable(model)
    check_place("directory", directory)
    if tokenizer is not None and not hasattr(tokenizer, "save_pretrained"):
        raise DataError(
            f"tokenizer={str(tokenizer)[:40]!r} came; give a tokenizer of transformers, such as "
            "AutoTokenizer.from_pretrained(folder)."
        )
    check_call("extra", extra)
    if not re.fullmatch(r"\d+|\d+(\.\d+)? ?[KMGT]B", str(max_shard_size), re.IGNORECASE):
        raise CheckpointError(f"max_shard_size={max_shard_size!r} came; write one such as '5GB'.")
    target = Path(directory).absolute()
    check_folder(target, overwrite)
    found = None if source is None else look(source, target)
    with _written_whole(target) as folder:
        if is_hub_model(model):
            _save_hub_model(model, folder, max_shard_size)
        else:
            save_module(model, folder, code)
        if found is not None:
            carry_tensors(found, model, folder)
        check_written(model, folder)
        if tokenizer is not None:
            _save_tokenizer(tokenizer, folder)
        for name, held in (extra(folder) if extra else {}).items():
            (folder / name).write_bytes(held.encode() if isinstance(held, str) else held)
        if found is not None:
            carry_files(found, folder)
    return target


def load(
    directory: str | Path,
    model: nn.Module | Callable[[], nn.Module] | str | None = None,
    **kwargs: Any,
) -> Any:
    """Read a checkpoint.

    Nothing in a folder is unpickled or run. The code of a plain module is not in it, and though it
    may note what makes one (``package.module:attribute``), a name that came as data is not
    imported: whoever wrote the folder would choose what runs here. It is imported where the caller
    writes it, as ``model``; the error says which name the folder has. An exported program is kept
    as a graph of torch's operations on tensors and needs no code.

    Args:
        directory: as `save` or ``save_pretrained`` wrote it.
        model: a dense instance of the class that was saved, which is copied, not changed; or a
            function without arguments that returns one; or code that has either, as
            ``"package.module:attribute"``. Hugging Face checkpoints and programs do without it.
        kwargs: handed to ``from_pretrained`` (dtype, device_map, ..); for a plain module dtype
            alone, which casts what was loaded.

    Raises:
        CheckpointError: corrupt, truncated, from a later version, or not of this model.
        MissingExtraError: a Hugging Face checkpoint without transformers.

    >>> from tempfile import TemporaryDirectory
    >>> from bondwise import tensorize
    >>> model = nn.Sequential(nn.Linear(8, 8))
    >>> result = tensorize(model, keep=0.5)
    >>> with TemporaryDirectory() as folder:
    ...     again = load(save(result.model, f"{folder}/small"), model=model)
    >>> bool((again[0].dense() == result.model[0].dense()).all())
    True
    """
    check_place("directory", directory)
    model = given(model)
    folder = Path(directory)
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is no folder; name one that bondwise.save wrote.")
    if (folder / CONFIG).is_file():
        return _load_hub_model(folder, model, kwargs)
    if not (folder / MANIFEST).is_file():
        raise CheckpointError(
            f"{folder} has neither {CONFIG} nor {MANIFEST}; name a folder that bondwise.save wrote."
        )
    dtype = kwargs.pop("dtype", None)
    dtype = None if dtype == "auto" else dtype
    if not isinstance(dtype, torch.dtype | None) or (dtype and not dtype.is_floating_point):
        raise CheckpointError(f"dtype={dtype!r} came; write a dtype such as torch.bfloat16.")
    if kwargs:
        raise CheckpointError(
            f"{next(iter(kwargs))}=.. came for a plain module, which takes dtype alone; move what "
            "load gives with .to(..)."
        )
    if model is None and (folder / GRAPH).is_file():
        model = program(folder)
    if model is None:
        noted = plain_manifest(folder).get("code")
        wanted = f"'{noted}' if you trust it" if noted else ".."
        raise CheckpointError(
            f"{folder} holds a plain module, whose code is not in the checkpoint; "
            f"give a dense instance of it: load(directory, model={wanted})."
        )
    made = load_module(folder, model)
    return made if dtype is None else made.to(dtype)


def _save_hub_model(model: Any, folder: Path, max_shard_size: int | str) -> None:
    attach(model)
    try:
        with without_bars():
            model.save_pretrained(str(folder), max_shard_size=max_shard_size)
    except RuntimeError as error:
        if "shared tensors" not in str(error):
            raise
        raise CheckpointError(
            f"{type(model).__name__} has one layer or tensor at several places, which transformers "
            "cannot write, so nothing was left; give each place a copy of its own (deepcopy)."
        ) from error
    write_json(folder / MANIFEST, {"schema": describe(model)["schema"], "manifest": CONFIG})


def _save_tokenizer(tokenizer: Any, folder: Path) -> None:
    try:
        tokenizer.save_pretrained(str(folder))
    except Exception as error:
        if "os error" not in str(error):  # the Rust writer has no class of its own for a full disk
            raise
        raise OSError(str(error)) from error


def _load_hub_model(folder: Path, model: nn.Module | None, kwargs: dict[str, Any]) -> Any:
    config = read_json(folder / CONFIG)
    manifest = config.get("quantization_config")
    if isinstance(manifest, dict) and manifest.get("quant_method") == METHOD:
        read_specs(manifest)
    loader: Any = _class_of(folder, config) if model is None else type(model)
    if not hasattr(loader, "from_pretrained"):
        raise CheckpointError(
            f"{folder} holds a Hugging Face model, and a {loader.__name__} came; leave model out, "
            "or give an instance of the class that was saved."
        )
    try:
        return loader.from_pretrained(str(folder), **kwargs)
    except BondwiseError:
        raise
    except (OSError, RuntimeError, TypeError, ValueError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{folder} cannot be loaded: {reason[:300]}") from error


def _class_of(folder: Path, config: dict[str, Any]) -> Any:
    transformers = need_transformers()
    names = config.get("architectures") or ["AutoModel"]
    found = getattr(transformers, str(names[0]), None)
    if found is None:
        raise CheckpointError(
            f"{folder} holds a {names[0]}, which transformers lacks (remote code is not run); "
            "give an instance of the class: load(directory, model=..)."
        )
    return found


def check_folder(target: Path, overwrite: bool) -> None:
    """Refuse a folder to write to that is in the way.

    Raises:
        CheckpointError: it is not empty and not ours, or ours and not to be replaced, or in
            something that is no folder or cannot be written to.
    """
    if not target.name:
        raise CheckpointError(f"{target} came as a folder to write; name a new one, such as cut.")
    parent = next(p for p in target.absolute().parents if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise CheckpointError(
            f"{target} cannot be written: {parent} is no folder that you may write to; "
            "name another place."
        )
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if not target.is_dir() or not _is_ours(target):
        raise CheckpointError(
            f"{target} exists and is no checkpoint of ours; name another folder or remove it first."
        )
    if not overwrite:
        raise CheckpointError(
            f"{target} holds a checkpoint already; name another folder, or replace it with "
            "overwrite=True (--force)."
        )


def _is_ours(folder: Path) -> bool:
    if (folder / MANIFEST).is_file():
        return True
    try:
        manifest = read_json(folder / CONFIG).get("quantization_config")
    except CheckpointError:
        return False
    return isinstance(manifest, dict) and manifest.get("quant_method") == METHOD


@contextmanager
def _written_whole(target: Path) -> Generator[Path]:
    """A folder beside the target that takes its place once all is written, or is gone."""
    mark = uuid.uuid4().hex[:8]
    folder = target.parent / f".{target.name}-{mark}"
    try:
        folder.mkdir(parents=True)
        yield folder
        _replace(folder, target, target.parent / f".{target.name}-old-{mark}")
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise CheckpointError(
            f"{target} cannot be written ({reason}), and nothing was left there; "
            "free some space or name another folder."
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _replace(folder: Path, target: Path, old: Path) -> None:
    if target.is_dir() and any(target.iterdir()):
        target.rename(old)
        try:
            folder.rename(target)
        except OSError:
            old.rename(target)
            raise
        shutil.rmtree(old, ignore_errors=True)
    else:
        folder.rename(target)
