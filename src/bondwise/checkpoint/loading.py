"""Reading a model and its tokenizer from whatever MODEL may be, quietly, or saying why not."""

import hashlib
import importlib
import importlib.util
import io
import re
import warnings
from collections.abc import Generator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from bondwise.checkpoint.cache import cache_directory, filling
from bondwise.checkpoint.carry import IGNORED, networks_of
from bondwise.checkpoint.others import check_other, is_other, no_networks, other_model
from bondwise.errors import BondwiseError, CheckpointError, DataError, MissingExtraError
from bondwise.flow.doors import check_bare

Task = Literal["auto", "causal", "encoder"]

_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.txt", "vocab.json", "spiece.model")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)?")
_CONVERSION = 1  # raise it when the conversion below changes what it writes


@dataclass(frozen=True)
class Loaded:
    """A model in evaluation mode and what came with it.

    `tokenizer` is None where the folder has none. `source_file_bytes` is the size of the GGUF file
    that the weights came from, None for other sources. `notes` are the warnings of the libraries
    that read the files: they are handed on instead of printed. `folder` is where the files are,
    None for a GGUF file, code or an exported program: what a result carries along is there. `code`
    is what makes a model of the kind (``package.module:attribute``), where code does.
    """

    model: nn.Module
    tokenizer: Any
    source_file_bytes: int | None = None
    notes: tuple[str, ...] = ()
    folder: Path | None = None
    code: str | None = None


def load_model(
    path: str | Path,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    task: Task = "auto",
    code: str | None = None,
) -> Loaded:
    """Loads a model for use and for fitting.

    `path` is a Hugging Face folder with safetensors (dense, or tensorized by bondwise), a `.gguf`
    file, a folder that holds exactly one, or else an id on the Hugging Face hub; or, for any other
    model, `package.module:attribute`, a `.pt2` file of `torch.export.save`, or a folder that we
    wrote of one of these. `code` makes the model of such a folder (a name in the folder itself is
    not imported). `dtype` None keeps the stored one. `task` "auto" takes the class named in
    `config.json`, with its head; "causal" and "encoder" ask for `AutoModelForCausalLM` and
    `AutoModel`.

    A GGUF file is dequantised once and kept as a float32 folder in the cache: its weights are
    sums of a 4-bit multiple and an offset with 16-bit scales, of which bfloat16 would drop bits
    that a fit can use, and the conversion takes far longer than reading the result.

    Raises:
        CheckpointError: the path holds no model, only pickled weights, a model that needs remote
            code, or files that do not load in full.
        MissingExtraError: transformers (or gguf, for such a file) is not installed.
    """
    if is_other(path):
        return _other(path, dtype, device, task, code)
    _require("transformers", extra="hf")
    with _quiet() as notes:
        source = _resolve(path)
        if source.suffix == ".gguf":
            bytes_, folder = source.stat().st_size, _converted(source)
        else:
            bytes_, folder = None, source
        model = _read_model(folder, dtype, task).to(device).eval()
        tokenizer = _read_tokenizer(folder)
    return Loaded(model, tokenizer, bytes_, tuple(notes), None if bytes_ else folder)


def _other(
    path: str | Path,
    dtype: torch.dtype | None,
    device: str | torch.device,
    task: Task,
    code: str | None,
) -> Loaded:
    """A model that is none of transformers' folders, without a tokenizer."""
    if task != "auto":
        raise DataError(f"{path} is no language model; give a Hugging Face folder or a GGUF file.")
    model, made_by = other_model(path, code)
    check_bare(model)
    return Loaded(model.to(device, dtype).eval(), None, code=made_by)


def check_source(path: str | Path, *, text: bool = False, networks: bool = False) -> None:
    """Refuse a model that will not do, by its files alone; a name on the hub is not looked up.

    Args:
        path: as for `load_model`.
        text: it must have a tokenizer.
        networks: it must hold tensor networks.

    Raises:
        CheckpointError: there is nothing, no model, or no tokenizer.
        DataError: there are no networks where they are asked for.
    """
    if is_other(path):
        check_other(path, text=text, networks=networks)
        return
    local = Path(path).expanduser()
    if not local.exists() and _HUB_ID.fullmatch(str(path)):
        return
    source = _resolve(path)
    if source.suffix != ".gguf":
        _model_class(source, "auto")
        if text and not _has_tokenizer(source):
            raise _no_tokenizer(path)
    if networks and not networks_of(source):
        raise no_networks(path)


def reader(loaded: Loaded, path: str | Path) -> Any:
    """The tokenizer that a model's text is read with.

    Raises:
        CheckpointError: none came with the model.
        DataError: it is no language model.
    """
    if is_other(path):
        check_other(path, text=True)
    if loaded.tokenizer is None:
        raise _no_tokenizer(path)
    return loaded.tokenizer


def _no_tokenizer(path: str | Path) -> CheckpointError:
    return CheckpointError(
        f"{path} has no tokenizer, which text needs; copy the model's tokenizer.json and "
        "tokenizer_config.json into it"
    )


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _TOKENIZERS)


def _require(package: str, extra: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise MissingExtraError(
            f"This needs the package {package}, which is not installed; write "
            f"`pip install 'bondwise[{extra}]'`"
        )


@contextmanager
def _quiet() -> Generator[list[str]]:
    """Collects the warnings of transformers instead of printing them; no bars on the terminal."""
    from transformers.utils import logging

    notes: list[str] = []
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        # The bar of the GGUF conversion heeds no setting: it is plain tqdm on standard error.
        with warnings.catch_warnings(record=True) as caught, redirect_stderr(io.StringIO()):
            warnings.simplefilter("always")
            yield notes
        user = (str(w.message) for w in caught if issubclass(w.category, UserWarning))
        notes.extend(dict.fromkeys(user))
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _resolve(path: str | Path) -> Path:
    """The folder with `config.json` and safetensors, or the GGUF file, that `path` means."""
    local = Path(path).expanduser()
    if local.is_file():
        if local.suffix != ".gguf":
            raise CheckpointError(
                f"{path} is a {local.suffix or 'plain'} file; give the model's folder, or a .gguf"
            )
        return local
    if local.is_dir():
        return _in_folder(local)
    return _in_folder(_from_hub(str(path)))


def _in_folder(folder: Path) -> Path:
    if (folder / "config.json").is_file() and any(folder.glob("*.safetensors")):
        return folder
    files = sorted(folder.glob("*.gguf"))
    if len(files) > 1:
        raise CheckpointError(
            f"{folder} holds {len(files)} GGUF files; name one, for example {files[0]}"
        )
    if files:
        return files[0]
    if any(file for kind in ("*.bin", "*.pt", "*.pth", "*.ckpt") for file in folder.glob(kind)):
        raise CheckpointError(
            f"{folder} has only pickled weights, which can run code when read; convert it to "
            "safetensors first (`model.save_pretrained(folder)` in transformers writes them)"
        )
    missing = "*.safetensors" if (folder / "config.json").is_file() else "config.json"
    raise CheckpointError(
        f"{folder} is not a model: it has no {missing}; give a Hugging Face folder "
        "(config.json and safetensors) or a .gguf file"
    )


def _from_hub(name: str) -> Path:
    """Downloads a hub repository without weights in other forms, unless it is cached already."""
    if not _HUB_ID.fullmatch(name):
        raise CheckpointError(f"There is no folder or file {name}; give the path of a model")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, ignore_patterns=IGNORED))
    except Exception as error:  # the hub client has a dozen classes for "not there"
        raise CheckpointError(
            f"There is no folder {name}, and the Hugging Face hub gave no model of that name "
            f"({type(error).__name__}); give the path of a model"
        ) from error


def _read_model(folder: Path, dtype: torch.dtype | None, task: Task) -> Any:
    kind = _model_class(folder, task)
    # Enters our format in the tables of transformers, also where auto-registration is switched off.
    importlib.import_module("bondwise.checkpoint.quantizer")
    try:
        model, info = kind.from_pretrained(
            folder,
            dtype=dtype or "auto",
            output_loading_info=True,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
        )
    except BondwiseError:
        raise
    except Exception as error:  # whatever a foreign file makes the readers raise
        raise CheckpointError(
            f"{folder} does not load ({_sentence(error)}); copy or download it again"
        ) from error
    if missing := sorted(info["missing_keys"]) if task != "encoder" else []:
        raise CheckpointError(
            f"{folder} lacks {len(missing)} weights of {type(model).__name__} ({missing[0]}, ..), "
            "which would be random; save the whole model again"
        )
    return model


def _model_class(folder: Path, task: Task) -> Any:
    """The class that `config.json` names; code that comes with a model is never run."""
    import transformers

    try:
        config, _ = transformers.PreTrainedConfig.get_config_dict(folder)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{folder}/config.json does not read as JSON; copy or download it again"
        ) from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{folder}/config.json holds no table; copy or download it again")
    name = (config.get("architectures") or [None])[0]
    foreign = config.get("model_type") not in transformers.CONFIG_MAPPING
    known = not foreign and (name is None or hasattr(transformers, name))
    if not known and "auto_map" in config:
        raise CheckpointError(
            f"{folder} needs code of its own ({name}, auto_map in config.json), which bondwise "
            f"does not run; give a model whose class is part of transformers"
        )
    if not known:
        raise CheckpointError(
            f"{folder}/config.json names model type {config.get('model_type')!r} and class "
            f"{name!r}, which transformers {transformers.__version__} does not know; "
            "update transformers or give another model"
        )
    if task == "causal":
        _check_predicts(folder, name)
        return transformers.AutoModelForCausalLM
    return transformers.AutoModel if task == "encoder" or not name else getattr(transformers, name)


def _check_predicts(folder: Path, name: str | None) -> None:
    """Refuse a class whose head does not give the next token: loading would draw one at random."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    known = {
        n
        for names in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
        for n in ([names] if isinstance(names, str) else names)
    }
    if name is not None and name not in known:
        raise CheckpointError(
            f"{folder} holds a {name}, which does not predict the next token; "
            "give a causal language model"
        )


def _read_tokenizer(folder: Path, **where: str) -> Any:
    if not where and not _has_tokenizer(folder):
        return None
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, **where
        )
    except Exception as error:
        raise CheckpointError(
            f"The tokenizer in {folder} does not load ({_sentence(error)}); "
            "copy or download it again"
        ) from error


def _converted(source: Path) -> Path:
    """The float32 folder of a GGUF file, made on the first call and found by content later."""
    _require("gguf", extra="gguf")
    _require("accelerate", extra="gguf")
    with source.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    target = cache_directory() / "gguf" / f"{source.stem}-{digest[:16]}-v{_CONVERSION}"
    if not target.exists():
        model, tokenizer = _read_gguf(source)
        with filling(target) as folder:
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
    return target


def _read_gguf(source: Path) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM

    with source.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise CheckpointError(
                f"{source} is not a GGUF file, though it is called one; give one that is"
            )
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            source.parent, gguf_file=source.name, dtype=torch.float32, local_files_only=True
        )
    except Exception as error:  # a truncated file fails wherever it happens to end
        raise CheckpointError(
            f"{source} does not load ({_sentence(error)}); copy or download it again"
        ) from error
    # transformers still takes the dequantised model for a quantised one, which it cannot save.
    del model.config.quantization_config
    vars(model).pop("hf_quantizer", None)
    model.is_quantized = False
    return model, _read_tokenizer(source.parent, gguf_file=source.name)


def _sentence(error: Exception) -> str:
    """The first line of another library's error, short enough for one sentence of ours."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].strip().rstrip(".")[:300]
