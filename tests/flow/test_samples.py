"""Files of samples: what they may hold, and what is said of the others."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from bondwise import tensorize
from bondwise.errors import DataError
from bondwise.flow.forms.door import batches
from bondwise.flow.forms.samples import is_samples, read_samples


def tensor(count=20, width=6):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", ["pt", "safetensors", "npy", "npz", "old.pt"])
def test_one_tensor_in_every_kind_of_file(tmp_path, kind):
    path, given = tmp_path / f"samples.{kind}", tensor()
    if kind == "safetensors":
        save_file({"x": given}, path)
    elif kind == "npy":
        np.save(path, given.numpy())
    elif kind == "npz":
        np.savez(path, x=given.numpy())
    else:
        torch.save(given, path, _use_new_zipfile_serialization=kind == "pt")
    found = batches(path)
    rows = [batch if isinstance(batch, torch.Tensor) else batch["x"] for batch in found]
    assert torch.equal(torch.cat(rows), given)
    assert torch.equal(torch.cat([*map(_rows, batches(str(path)))]), given)


def _rows(batch):
    return batch if isinstance(batch, torch.Tensor) else batch["x"]


def test_tables_are_split_and_lists_are_batches_as_they_are(tmp_path):
    path = tmp_path / "samples.pt"
    torch.save({"x": tensor(), "y": tensor()[:, :2]}, path)
    found = batches(path)
    assert [len(batch["x"]) for batch in found] == [8, 8, 4]
    assert torch.equal(torch.cat([batch["y"] for batch in found]), tensor()[:, :2])
    sizes = [(1, 3, 4, 4), (1, 3, 5, 7), (2, 3, 4, 4)]
    torch.save([torch.ones(size) for size in sizes], path)
    assert [tuple(batch.shape) for batch in batches(path)] == sizes
    torch.save([{"x": tensor(9)}, {"x": tensor(2)}], path)
    assert [len(batch["x"]) for batch in batches(path)] == [9, 2]


def test_samples_fit_as_their_tensor_does(tmp_path):
    torch.save(tensor(64, 16), tmp_path / "samples.pt")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))
    given = (tmp_path / "samples.pt", tensor(64, 16))
    one, two = (tensorize(model, 0.6, data, format="lowrank") for data in given)
    assert torch.equal(one.model(tensor(3, 16)), two.model(tensor(3, 16)))


def nan(size=(4, 3)):
    found = torch.ones(size)
    found[0, 0] = torch.nan
    return found


@pytest.mark.parametrize(
    ("held", "says"),
    [
        ({1, 2}, "holds more than tensors|holds a set where tensors"),
        (nn.Linear(2, 2), "could only be unpickled, .*write it with torch.save"),
        ([1, 2], "holds a int where tensors|holds an int where tensors"),
        ([], "holds an empty list"),
        ({}, "holds a dict where tensors"),
        ({"x": 3}, "holds a int where|holds an int where"),
        ([[tensor()]], "a list of tensors, or of dicts"),
        ({"x": tensor(64), "y": tensor(63)}, r"unlike numbers of samples \(64 of x, 63 of y\)"),
        (torch.zeros(0, 3), r"has shape \(0, 3\), and no samples"),
        (torch.tensor(1.0), r"has shape \(\), and no samples"),
        (tensor().to(torch.complex64), "is complex; write real numbers"),
        (nan(), "has 1 numbers that are NaN or infinite"),
        ([tensor(), nan()], "of batch 1 in .* NaN"),
        ({"x": tensor(), "y": nan()}, "y in .* NaN"),
    ],
)
def test_what_is_no_file_of_samples(tmp_path, held, says):
    path = tmp_path / "samples.pt"
    torch.save(held, path)
    with pytest.raises(DataError, match=says) as told:
        read_samples(path)
    assert "\n" not in str(told.value)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(DataError, match=r"There is no file .*gone.pt; write it with torch.save"):
        read_samples(tmp_path / "gone.pt")
    for name in ("a.pt", "b.safetensors", "c.npy", "d.npz"):
        (tmp_path / name).write_bytes(b"none of these")
        with pytest.raises(DataError, match=r"cannot be read|could only be unpickled"):
            read_samples(tmp_path / name)
    np.save(tmp_path / "e.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="could only be unpickled"):
        read_samples(tmp_path / "e.npy")
    assert not is_samples("The end of a text named notes.pt")


class Flat(nn.Module):
    """Takes images of one size."""

    def __init__(self):
        super().__init__()
        self.conv, self.up, self.head = nn.Conv2d(3, 4, 3), nn.Linear(16, 8), nn.Linear(8, 8)

    def forward(self, x):
        return self.head(self.up(self.conv(x).flatten(1)))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (
            torch.ones(4, 3, 4, 4, dtype=torch.long),
            r"int64 \(4, 3, 4, 4\).*give data.float\(\), if",
        ),
        (
            [torch.ones(1, 3, 4, 4), torch.ones(1, 3, 6, 4)],
            r"float32 \(1, 3, 6, 4\): .*takes 16 num",
        ),
    ],
)
def test_samples_that_the_model_does_not_take(tmp_path, given, says):
    torch.save(given, tmp_path / "samples.pt")
    with pytest.raises(DataError, match=says):
        tensorize(Flat(), 0.8, tmp_path / "samples.pt")
