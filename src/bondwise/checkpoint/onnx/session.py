"""A written file in onnxruntime: its outputs, and how far they are from torch's."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bondwise.checkpoint.onnx.inputs import Values
from bondwise.errors import CheckpointError, optional

OFF = {torch.float32: 1e-3, torch.float64: 1e-6}
"""How far outputs may be apart, relative to the largest: sums in other orders."""
ROUGH = 5e-2  # for shorter numbers
FATAL = 4  # what onnxruntime calls the errors that it cannot raise


class Session:
    """A file that onnxruntime has read, on the processor.

    Args:
        file: an ONNX file.
        threads: for each operation; None for one.

    Raises:
        CheckpointError: onnxruntime refuses it.
    """

    def __init__(self, file: Path, threads: int = 1) -> None:
        runtime = optional("onnxruntime", "onnx")
        options = runtime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = FATAL  # its errors come as exceptions too
        self._how = runtime.RunOptions()
        self._how.log_severity_level = FATAL
        try:
            self._session: Any = runtime.InferenceSession(
                str(file), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # its errors have no common class
            raise CheckpointError(f"onnxruntime refuses the file: {_line(error)}.") from error
        self._takes = {each.name for each in self._session.get_inputs()}

    def given(self, values: Values) -> dict[str, np.ndarray]:
        """Values as it takes them; what the model never used is not in the file."""
        return {name: own.numpy() for name, own in values.items() if name in self._takes}

    def run(self, given: dict[str, np.ndarray]) -> list[Any]:
        """The outputs in order.

        Raises:
            CheckpointError: it cannot run these.
        """
        try:
            return self._session.run(None, given, self._how)
        except Exception as error:
            raise CheckpointError(f"onnxruntime cannot run the file: {_line(error)}.") from error


def difference(found: Any, wanted: Tensor) -> float:
    """The largest difference, relative to the largest number that is wanted.

    >>> difference(np.array([1.0, 2.0]), torch.tensor([1.0, 2.5]))
    0.2
    """
    own, right = torch.as_tensor(np.asarray(found)).double(), wanted.detach().cpu().double()
    if own.shape != right.shape:
        return float("inf")
    off = torch.where((own == right) | (own.isnan() & right.isnan()), 0.0, (own - right).abs())
    whole = right[right.isfinite()].abs()
    most = float(off.max()) if off.numel() else 0.0
    scale = float(whole.max()) if whole.numel() else 0.0
    if most == 0:
        return 0.0
    return most / scale if scale and most == most else float("inf")


def allowed(wanted: Tensor) -> float:
    """How large the difference may be."""
    return OFF.get(wanted.dtype, ROUGH if wanted.is_floating_point() else 0.0)


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0].strip().rstrip(".")[:200]
