"""`FILE.pt2`: what `torch.export.save` wrote, read as data.

``torch.export.load`` unpickles (weights that are tensor subclasses, constants, the example inputs),
evaluates strings as expressions and compiles guards that the file brings. So none of it is used:
the graph is JSON and the weights are raw bytes, both are read as such, and what is stored in
another way is refused.
"""

import json
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from bondwise.checkpoint.sources.lift import lifted
from bondwise.checkpoint.sources.operations import CHECKS, arguments
from bondwise.checkpoint.sources.program import SCHEMA, Graph, Program
from bondwise.checkpoint.sources.trees import tree_of
from bondwise.errors import BondwiseError, CheckpointError

MAJOR = 8  # of the schema of torch's archives that is read here
_DTYPES = (
    "", "uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64", "complex32",
    "complex64", "complex128", "bool", "bfloat16",
)  # fmt: skip
_MEMORY = ("", "contiguous_format", "channels_last", "channels_last_3d", "preserve_format")
_STRIDED = 7
_PLAIN = {"as_int", "as_float", "as_bool", "as_string", "as_ints", "as_floats", "as_bools",
          "as_strings", "as_int_lists", "as_float_lists"}  # fmt: skip
_TRAINING = {"training", "train"}
_NOT_FOR_USE = ("dropout", "batch_norm", "feature_dropout", "alpha_dropout", "rrelu")


def read_archive(path: str | Path) -> Program:
    """The program in a file, its convolutions and linear layers as modules.

    Raises:
        CheckpointError: no such archive, one of another version, one that holds pickles, custom
            objects or compiled code where tensors are needed, or a program that cannot be run
            step by step (control flow, operations of other libraries, training).
    """
    try:
        with zipfile.ZipFile(path) as opened:
            return _Archive(opened, Path(path)).program()
    except BondwiseError:
        raise
    except (zipfile.BadZipFile, OSError) as error:
        raise CheckpointError(
            f"{path} is no exported program; write one with torch.export.save(torch.export.export"
            "(model, (example,)), 'model.pt2')."
        ) from error
    except (KeyError, ValueError, TypeError, IndexError, RuntimeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise CheckpointError(
            f"{path} cannot be read ({type(error).__name__}: {reason}); export the model again."
        ) from error


class _Archive:
    """An open file."""

    def __init__(self, opened: zipfile.ZipFile, path: Path) -> None:
        self.opened, self.path = opened, path
        self.root = (opened.namelist() or [""])[0].split("/")[0]
        self.names = {name.removeprefix(f"{self.root}/") for name in opened.namelist()}

    def program(self) -> Program:
        """The one program that is in it."""
        models = [n for n in self.names if n.startswith("models/") and n.endswith(".json")]
        if len(models) != 1 or self._text("archive_format") != "pt2":
            compiled = any("aotinductor" in name for name in self.names)
            has = "compiled code" if compiled else f"{len(models)} programs of this form"
            raise CheckpointError(
                f"{self.path} has {has}; give one program as torch.export.save of torch 2.9 or "
                "later writes it."
            )
        if self._text("byteorder", sys.byteorder) != sys.byteorder:
            raise CheckpointError(f"{self.path} has another order of bytes; export it again here.")
        name = models[0].removeprefix("models/").removesuffix(".json")
        said = self._json(models[0])
        major = said["schema_version"]["major"]
        if major != MAJOR:
            raise CheckpointError(
                f"{self.path} has schema {major}, this bondwise reads {MAJOR}; export the model "
                "with torch 2.9 or a later one that writes it."
            )
        tensors = self._tensors("weights", name) | self._tensors("constants", name)
        graph = graph_of(said, tensors, self.path)
        return Program(*lifted(graph, tensors))

    def _text(self, name: str, default: str = "") -> str:
        if name not in self.names:
            return default
        return self.opened.read(f"{self.root}/{name}").decode("utf-8")

    def _json(self, name: str) -> dict[str, Any]:
        return json.loads(self._text(name))

    def _tensors(self, kind: str, model: str) -> dict[str, Tensor]:
        """Weights or constants by name; what shows the same bytes is one tensor."""
        said = f"data/{kind}/{model}_{kind}_config.json"
        if said not in self.names:
            raise CheckpointError(
                f"{self.path} keeps its {kind} in an older form, as pickles, which are never "
                "read; export the model again with torch 2.9 or later."
            )
        storages: dict[str, Tensor] = {}
        made: dict[str, Tensor] = {}
        found: dict[str, Tensor] = {}
        for name, payload in self._json(said)["config"].items():
            meta = payload.get("tensor_meta")
            if payload.get("use_pickle") or meta is None or meta["layout"] != _STRIDED:
                raise CheckpointError(
                    f"{self.path} keeps {name} as a pickle, which is never read; export the model "
                    "with plain tensors, without custom objects or quantised weights."
                )
            key = json.dumps(payload, sort_keys=True)
            if key not in made:
                made[key] = self._tensor(f"data/{kind}/", payload, storages)
            found[name] = made[key]
        return found

    def _tensor(self, folder: str, payload: Any, storages: dict[str, Tensor]) -> Tensor:
        meta, file = payload["tensor_meta"], payload["path_name"]
        dtype = _dtype(meta["dtype"])
        sizes, strides = (_whole(meta[key]) for key in ("sizes", "strides"))
        if file not in storages:
            raw = bytearray(self.opened.read(f"{self.root}/{folder}{file}"))
            storages[file] = torch.frombuffer(raw, dtype=dtype) if raw else torch.empty(0)
        flat = storages[file]
        own = torch.empty(sizes, dtype=dtype)
        if own.numel():
            (offset,) = _whole([meta["storage_offset"]])
            own = flat.view(dtype).as_strided(sizes, strides, offset)
        if not payload.get("is_param"):
            return own.clone()
        return nn.Parameter(own.clone(), bool(meta["requires_grad"]) and own.is_floating_point())


def graph_of(said: Mapping[str, Any], tensors: Mapping[str, Tensor], path: Path) -> Graph:
    """The graph in torch's JSON as `Program` has it, every tensor a value and no layers yet.

    Raises:
        CheckpointError: it has control flow, or changes its own tensors.
    """
    module = said["graph_module"]
    whole, signature = module["graph"], module["signature"]
    call = module["module_call_graph"][0]["signature"]
    inputs, holds = list[dict[str, Any]](), dict[str, str]()
    for spec in signature["input_specs"]:
        ((kind, own),) = spec.items()
        if kind == "user_input":
            inputs.append(_input(own["arg"], whole))
        elif kind == "constant_input":
            ((_, value),) = own["value"].items()
            value = None if "as_none" in own["value"] else value
            inputs.append({"name": own["name"], "fixed": True, "value": value})
        elif kind in ("parameter", "buffer", "tensor_constant"):
            holds[own["arg"]["name"]] = own[f"{kind}_name"]
        else:
            raise CheckpointError(f"{path} takes a {kind}; export the model with tensors alone.")
    for spec in signature["output_specs"]:
        if "user_output" not in spec:
            raise CheckpointError(
                f"{path} changes its own tensors as it runs, as in training; export model.eval()."
            )
    steps = [_step(node, path) for node in whole["nodes"] if not CHECKS.fullmatch(node["target"])]
    is_buffer = {n for n in tensors if not isinstance(tensors[n], nn.Parameter)}
    takes = tree_of(call["in_spec"])
    names = call.get("forward_arg_names") or [each["name"] for each in inputs]
    return {
        "schema": SCHEMA,
        "names": names,
        "takes": takes,
        "gives": tree_of(call["out_spec"]),
        "inputs": inputs,
        "holds": holds,
        "tensors": {n: tensor_spec(tensors[n], n in is_buffer) for n in holds.values()},
        "modules": {},
        "ranks": {n: len(meta["sizes"]) for n, meta in whole["tensor_values"].items()},
        "steps": steps,
        "outputs": [_value(spec["user_output"]["arg"], path) for spec in signature["output_specs"]],
    }


def tensor_spec(tensor: Tensor, buffer: bool) -> dict[str, Any]:
    """What a graph says of a tensor."""
    dtype = str(tensor.dtype).removeprefix("torch.")
    return {"shape": list(tensor.shape), "dtype": dtype, "buffer": buffer}


def _input(arg: Mapping[str, Any], whole: Mapping[str, Any]) -> dict[str, Any]:
    """An input's name, and its sizes where they are fixed."""
    ((kind, own),) = arg.items()
    name = own.get("name") or own.get("as_name")
    found: dict[str, Any] = {"name": name, "fixed": False, "shape": None, "dtype": None}
    if kind == "as_tensor":
        meta = whole["tensor_values"][name]
        found["shape"] = [size.get("as_int") for size in meta["sizes"]]
        found["dtype"] = _DTYPES[meta["dtype"]]
    return found


def _step(node: Mapping[str, Any], path: Path) -> dict[str, Any]:
    target, given = node["target"], {each["name"]: each for each in node["inputs"]}
    if any("as_graph" in each["arg"] for each in node["inputs"]) or ".higher_order." in target:
        raise CheckpointError(
            f"{path} has control flow ({target.rpartition('.')[2]}), which is not run step by "
            "step; give the code that makes the model, as package.module:attribute."
        )
    read = {name: _value(each["arg"], path) for name, each in given.items()}
    base = target.rpartition(".")[0].rpartition(".")[2]
    if base in _NOT_FOR_USE and any(read.get(name) is True for name in _TRAINING):
        raise CheckpointError(f"{path} was exported in training mode; export model.eval().")
    if target.startswith("torch.ops."):
        args, named = _bound(target, read, {n: e.get("kind") for n, e in given.items()})
    else:
        args, named = list(read.values()), {}
    outs = [_out(out, path) for out in node["outputs"]]
    return {
        "call": target,
        "args": args,
        "named": named,
        "outs": outs[0] if len(outs) == 1 else outs,
    }


def _bound(
    target: str, read: Mapping[str, Any], kinds: Mapping[str, Any]
) -> tuple[list[Any], dict[str, Any]]:
    """Arguments in the order of the operation's schema; kind 2 is by keyword."""
    names = [name for name, _ in arguments(target) if name in read]
    lead = [name for name in names if kinds[name] == 1]
    return [read[n] for n in lead], {n: read[n] for n in names if n not in lead}


def _value(arg: Mapping[str, Any], path: Path) -> Any:
    """An argument of a step as `Program` writes it."""
    ((kind, own),) = arg.items()
    if kind in _PLAIN:
        return own
    single = _single(kind, own)
    if single is not None:
        return single[0]
    many = kind.removesuffix("s")
    if many != kind and isinstance(own, list):
        return [_of_many(many, each, path) for each in cast("list[Any]", own)]
    raise CheckpointError(
        f"{path} has an argument of the kind {kind.removeprefix('as_')}, which bondwise does not "
        "read; give the code that makes the model, as package.module:attribute."
    )


def _of_many(kind: str, own: Any, path: Path) -> Any:
    if kind == "as_nested_tensor":
        return [{"ref": each["name"]} for each in own]
    if kind == "as_optional_tensor" or not isinstance(own, Mapping) or len(own) > 1:
        return _value({kind: own}, path)
    return _value({kind: dict(cast("Mapping[str, Any]", own))}, path)


def _single(kind: str, own: Any) -> tuple[Any] | None:
    """A single value in a tuple; None where the kind is another one."""
    if kind == "as_none":
        return (None,)
    if kind in ("as_tensor", "as_optional_tensor"):
        return (None if "as_none" in own else {"ref": own.get("name") or own["as_tensor"]["name"]},)
    if kind in ("as_sym_int", "as_sym_bool", "as_sym_float"):
        return ({"ref": own["as_name"]} if "as_name" in own else next(iter(own.values())),)
    found = _constant(kind, own)
    return None if found is None else (found,)


def _constant(kind: str, own: Any) -> dict[str, Any] | None:
    """A value of torch's own kinds."""
    if kind == "as_scalar_type":
        return {"dtype": str(_dtype(own)).removeprefix("torch.")}
    if kind == "as_memory_format":
        return {"memory": _MEMORY[own]}
    if kind == "as_layout" and own == _STRIDED:
        return {"layout": "strided"}
    if kind == "as_device":
        return {"device": None}
    return {"complex": [own["real"], own["imag"]]} if kind == "as_complex" else None


def _out(out: Mapping[str, Any], path: Path) -> Any:
    value = _value(out, path)
    if isinstance(value, list):
        return [each and each["ref"] for each in cast("list[Any]", value)]
    return value and value["ref"]


def _whole(sizes: list[Mapping[str, Any]]) -> tuple[int, ...]:
    return tuple(size["as_int"] for size in sizes)


def _dtype(code: int) -> torch.dtype:
    if not 0 < code < len(_DTYPES):
        raise CheckpointError(
            f"The program has numbers of torch's kind {code}, which bondwise does not read; export "
            "the model in float32, bfloat16 or float16."
        )
    return getattr(torch, _DTYPES[code])
