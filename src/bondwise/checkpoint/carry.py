"""What a folder held and we do not understand, carried along: files, subfolders, tensors.

Dense weights in other forms are left out, since they could be served for the compressed ones.
"""

import json
import os
import shutil
from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from bondwise.checkpoint.headers import Header, headers
from bondwise.checkpoint.hub import METHOD, is_hub_model, renaming
from bondwise.checkpoint.written import INDEX
from bondwise.errors import CheckpointError
from bondwise.layers.module import TensorLayer

LARGEST = 256 * 2**20  # bytes: more than any tokenizer, less than weights
NAMED = 8  # in a note
_WEIGHTS = {
    ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".ggml", ".msgpack", ".h5", ".ot",
    ".onnx", ".onnx_data", ".tflite", ".pb", ".npz", ".npy", ".pkl", ".pickle", ".mlmodel",
    ".engine", ".nemo", ".llamafile", ".pt2",
}  # fmt: skip
_FOLDERS = ("onnx", "openvino", "checkpoint-*", "*.mlpackage", "*.healing", "*.healing-cut")
IGNORED = [  # of a repository on the hub
    *(f"*{kind}" for kind in sorted(_WEIGHTS - {".safetensors"})),
    *(f"{name}/*" for name in (*_FOLDERS, ".*")),
]
_OURS = {"bondwise.json", "recipe.yaml", "report.json", "report.html", "asked.json", "graph.json"}
CONFIG = "config.json"
_MARK = "bondwise.json"
_ADAPTER = "adapter_config.json"  # without its weights transformers cannot load the folder


@dataclass(frozen=True)
class Found:
    """What a folder holds beside the weights that a model is read from.

    Attributes:
        source: the folder.
        files: to be carried, relative to the folder.
        left: files and folders (with a slash) that are left out.
    """

    source: Path
    files: tuple[Path, ...]
    left: tuple[str, ...]

    @property
    def notes(self) -> list[str]:
        """One sentence that names what is left out, or none."""
        if not self.left:
            return []
        more = len(self.left) - NAMED
        named = ", ".join(self.left[:NAMED]) + (f" and {more} more" if more > 0 else "")
        return [f"left out, as weights in another form, hidden or not of the folder: {named}"]


def look(source: str | Path, target: Path | None = None) -> Found:
    """See what is to be carried from a folder, and what is not.

    Args:
        source: with the files of a model.
        target: a folder that is about to be replaced; it is passed over where it lies in `source`.

    Raises:
        CheckpointError: it is no folder.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     for name in ("labels.txt", "model.safetensors", "pytorch_model.bin"):
    ...         Path(folder, name).touch()
    ...     found = look(folder)
    >>> [str(file) for file in found.files], found.left
    (['labels.txt'], ('pytorch_model.bin',))
    """
    folder = Path(source).expanduser()
    if not folder.is_dir():
        raise CheckpointError(
            f"source={str(source)!r} came, which is no folder; name the folder whose files are to "
            "be carried along, or leave it out."
        )
    root = folder.resolve()
    homes = [root]
    if root.parent.name == "snapshots":  # of the hub's cache, whose files are links to its blobs
        homes.append(root.parent.parent / "blobs")
    away = None if target is None else target.resolve()
    silent = {path.name for path in weights_of(root)} | {INDEX}
    silent |= _OURS if (root / _MARK).is_file() else set()
    files, left = list[Path](), list[str]()
    parts = _parts(root)
    for path in _walk(root, homes, away, left):
        inside = path.relative_to(root)
        if str(inside) in silent:
            continue
        if _is_carried(path, inside, parts):
            files.append(inside)
        else:
            left.append(str(inside))
    return Found(root, tuple(files), tuple(sorted(left)))


def weights_of(folder: Path) -> list[Path]:
    """The safetensors that a model is read from: what its index names, or the one file."""
    single = folder / "model.safetensors"
    if single.is_file():
        return [single]
    try:
        said = json.loads((folder / INDEX).read_text("utf-8"))["weight_map"]
        names = sorted({str(name) for name in said.values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []
    return [folder / name for name in names if (folder / name).is_file()]


def carry_files(found: Found, folder: Path) -> None:
    """Copy what was found into a checkpoint, but nothing over a file that is there.

    A plain module gets no config.json, by which a folder is known to hold one of transformers.
    """
    plain = not (folder / CONFIG).exists()
    for inside in found.files:
        to = folder / inside
        if not to.exists() and not (plain and str(inside) == CONFIG):
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(found.source / inside, to)


def carry_tensors(found: Found, model: nn.Module, folder: Path) -> None:
    """Add the tensors of a source's weights that the model's class does not have, as one shard."""
    extra = extra_tensors(found.source, model)
    if not extra:
        return
    tensors: dict[str, Any] = {}
    for name, header in extra.items():
        with safe_open(str(header.file), framework="pt") as opened:
            tensors[name] = opened.get_tensor(name)
    written = weights_of(folder)
    total = len(written) + 1
    names = [f"model-{k + 1:05d}-of-{total:05d}.safetensors" for k in range(total)]
    for path, name in reversed(list(zip(written, names, strict=False))):
        path.rename(folder / name)
    save_file(tensors, folder / names[-1], metadata={"format": "pt"})
    _write_index(folder, [folder / name for name in names])


def extra_tensors(source: Path, model: nn.Module) -> dict[str, Header]:
    """The tensors of a folder that are no part of a model, nor of what a layer of ours replaced."""
    if not is_hub_model(model):
        return {}
    found = headers(weights_of(source))
    known = set(model.state_dict(keep_vars=True)) | {name for name, _ in model.named_buffers()}
    ours = {path for path, m in model.named_modules(remove_duplicate=False) if _is_layer(m)}
    ours |= networks_of(source)
    renamed = renaming(model)
    names = {name: renamed(name) for name in found}
    return {
        name: found[name]
        for name, here in names.items()
        if here not in known and not _is_under(name, ours) and not _is_under(here, ours)
    }


def networks_of(source: Path) -> set[str]:
    """The paths that a folder's own manifest calls networks; none where there is no manifest."""
    try:
        said: Any = json.loads((source / CONFIG).read_text("utf-8"))["quantization_config"]
        return set(said["modules"]) if said["quant_method"] == METHOD else set()
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def _walk(folder: Path, homes: list[Path], away: Path | None, left: list[str]) -> Generator[Path]:
    """Every file below a folder, in order; folders that are left out are named in `left`."""
    root = homes[0]
    for path in sorted(folder.iterdir()):
        name = str(path.relative_to(root))
        if path.name.startswith(".") or not _is_at_home(path, homes):
            left.append(name + "/" * path.is_dir())
        elif path.is_dir():
            if path.resolve() == away:
                continue
            if path.is_symlink() or (path / _MARK).is_file() or _is_one_of(path, _FOLDERS):
                left.append(f"{name}/")
            else:
                yield from _walk(path, homes, away, left)
        elif path.is_file():
            yield path


def _is_at_home(path: Path, homes: Iterable[Path]) -> bool:
    """Whether a link points into the folder, or to the blobs that the hub's cache keeps for it."""
    return not path.is_symlink() or any(path.resolve().is_relative_to(home) for home in homes)


def _is_one_of(path: Path, patterns: Iterable[str]) -> bool:
    return any(path.match(pattern) for pattern in patterns)


def _is_carried(path: Path, inside: Path, parts: set[str]) -> bool:
    """Whether a file is small, readable and no weights; those of a part of the model are."""
    name = inside.name.removesuffix(".index.json")
    if inside.name == _ADAPTER or not os.access(path, os.R_OK):
        return False
    if str(inside.parent) in parts:
        return True
    return Path(name).suffix.lower() not in _WEIGHTS and path.stat().st_size <= LARGEST


def _parts(root: Path) -> set[str]:
    """Folders of a sentence-transformers model that hold further layers with their weights."""
    try:
        said: Any = json.loads((root / "modules.json").read_text("utf-8"))
        rows = [(str(row["path"]), str(row["type"])) for row in said]
    except (OSError, ValueError, KeyError, TypeError):
        return set()
    return {path for path, kind in rows if path and not kind.endswith(".Transformer")}


def _is_layer(module: nn.Module) -> bool:
    return isinstance(module, TensorLayer)


def _is_under(name: str, paths: set[str]) -> bool:
    steps = name.split(".")
    return any(".".join(steps[:k]) in paths for k in range(1, len(steps)))


def _write_index(folder: Path, files: list[Path]) -> None:
    found = headers(files)
    before: Mapping[str, Any] = {}
    if (folder / INDEX).is_file():
        before = json.loads((folder / INDEX).read_text("utf-8"))["metadata"]
    size = sum(path.stat().st_size for path in files)
    weight_map = {name: found[name].file.name for name in sorted(found)}
    index = {"metadata": {**before, "total_size": size}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", "utf-8")
