"""Peak memory comes from a process of its own; one that fails says why."""

import pytest
import torch

from bondwise.bench.peak import measured, peak_bytes
from bondwise.bench.run import Load
from bondwise.errors import DataError


def test_the_peak_of_a_process_holds_torch_and_the_model(shelf):
    found = peak_bytes(str(shelf / "llama"), Load(8, 2), "cpu", torch.bfloat16)
    assert 50e6 < found < 4e9  # Python with torch takes hundreds of megabytes


def test_the_same_in_this_process(shelf):
    load = {"prompt": 8, "tokens": 2, "seed": 0}
    where = {"device": "cpu", "dtype": "float32", "threads": 1}
    assert measured({"path": str(shelf / "bert"), "load": load, **where}) > 50e6


def test_a_process_that_ends_early_is_one_sentence(tmp_path):
    with pytest.raises(DataError, match=r"ended early \(.*CheckpointError: .*is not a model"):
        peak_bytes(str(tmp_path), Load(8, 2), "cpu", None)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
def test_on_a_gpu_it_is_what_tensors_took(shelf):
    assert 0 < peak_bytes(str(shelf / "llama"), Load(8, 2), "cuda", None) < 50e6
