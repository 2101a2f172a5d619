"""The benchmark of convolutions counts what it says it counts, and is fair to whom it compares."""

import copy
import importlib.util
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from convs import heal, page, quick, vbmf
from convs.count import multiplications, numbers
from convs.methods import METHODS, NEEDS
from convs.models import Subject, decoded, tones
from torch import Tensor, nn


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2),
        nn.Flatten(), nn.Linear(128, 24), nn.ReLU(), nn.Linear(24, 5),
    ).eval()  # fmt: skip


def batch(step: int, size: int) -> Tensor:
    return torch.randn(size, 1, 8, 8, generator=torch.Generator().manual_seed(step))


SUBJECT = Subject(
    "small", "small", small, lambda: batch(999, 8), batch, F.mse_loss, lambda _: {}, (1,)
)


def test_multiplications_are_those_counted_by_hand() -> None:
    # 16 * 9 * 64 + 32 * 16 * 9 * 16 + 128 * 24 + 24 * 5, of one sample
    assert multiplications(small(), batch(0, 3)) == 3 * (9216 + 73728 + 3072 + 120)
    with torch.inference_mode():
        assert multiplications(small(), batch(0, 1)) == 9216 + 73728 + 3072 + 120
    grouped = nn.ConvTranspose2d(8, 4, 3, stride=2, groups=2)
    assert multiplications(grouped, torch.randn(2, 8, 5, 5)) == 2 * 25 * 8 * 2 * 9


def test_vbmf_finds_a_planted_rank_and_hooi_planted_factors() -> None:
    torch.manual_seed(0)
    noisy = torch.randn(60, 4) @ torch.randn(4, 200) + 0.3 * torch.randn(60, 200)
    assert vbmf.evbmf_rank(noisy) == vbmf.evbmf_rank(noisy.T) == 4
    assert vbmf.evbmf_rank(torch.randn(60, 200)) == 0
    conv = nn.Conv2d(12, 10, 3, stride=2, padding=1)
    with torch.no_grad():
        weight = torch.einsum(
            "op,pqyx,iq->oiyx", torch.randn(10, 3), torch.randn(3, 2, 3, 3), torch.randn(12, 2)
        )
        conv.weight.copy_(weight)
    x = torch.randn(2, 12, 7, 7)
    thin = vbmf.factorized(conv, (3, 2))
    torch.testing.assert_close(thin(x), conv(x), rtol=1e-4, atol=1e-4)
    assert numbers(thin) == vbmf.cost(conv.weight, (3, 2)) + 10


@pytest.mark.parametrize("method", [m for m, own in METHODS.items() if own.sized and m != "ours"])
@pytest.mark.parametrize("keep", [0.5, 0.2])
def test_a_peer_keeps_the_numbers_asked_for_and_leaves_the_dense_model(
    method: str, keep: float
) -> None:
    if (needs := METHODS[method].needs) and importlib.util.find_spec(needs) is None:
        pytest.skip(f"{NEEDS[needs]} is not installed")
    dense = small()
    before = copy.deepcopy(dense.state_dict())
    made = METHODS[method].make(copy.deepcopy(dense), SUBJECT, keep)
    assert 0.7 * keep < numbers(made) / numbers(dense) <= keep
    assert made(batch(0, 2)).shape == (2, 5)
    torch.testing.assert_close(dense.state_dict(), before, rtol=0, atol=0)


def test_healing_comes_nearer_to_the_teacher_and_leaves_the_student(tmp_path: Path) -> None:
    dense = small()
    student = METHODS["vbmf"].make(copy.deepcopy(dense), SUBJECT, 0.4)
    before = copy.deepcopy(student.state_dict())
    aims = heal.targets(SUBJECT, dense, 40, tmp_path)
    better, rate = heal.healed(SUBJECT, student, aims, (1e-6, 1e-2))
    x = batch(5000, 64)
    with torch.no_grad():
        errors = [float(F.mse_loss(m(x), dense(x))) for m in (student, better)]
    assert errors[1] < 0.8 * errors[0]
    assert rate == 1e-2
    torch.testing.assert_close(student.state_dict(), before, rtol=0, atol=0)


def test_convolutions_that_are_turned_give_the_same() -> None:
    torch.manual_seed(0)
    tall = nn.Conv2d(4, 6, (5, 1), stride=(2, 1), padding=(3, 0), dilation=(2, 1), groups=2)
    square = nn.Conv2d(4, 6, 3, padding="same")
    for conv, x in ((tall, torch.randn(3, 4, 30, 1)), (square, torch.randn(3, 4, 7, 5))):
        wanted = conv(x)
        with quick.turned():
            torch.testing.assert_close(conv(x), wanted)


def test_tones_are_what_they_are_said_to_be() -> None:
    x, pitch = tones(200, 0, "none")
    torch.testing.assert_close(x.mean(1), torch.zeros(200), rtol=0, atol=1e-5)
    torch.testing.assert_close(x.std(1), torch.ones(200))
    assert pitch.min() >= 60
    assert pitch.max() <= 1000
    noisy, same = tones(200, 0, "0 dB")
    assert torch.equal(pitch, same)
    alike = (x * noisy).mean(1)  # half of the power is the tone's
    torch.testing.assert_close(alike.mean(), torch.tensor(0.5).sqrt(), rtol=0, atol=0.03)
    bins = torch.zeros(1, 360)
    bins[0, 100:103] = torch.tensor([0.5, 1.0, 0.5])
    wanted = 10 * 2 ** ((20 * 101 + 1997.3794) / 1200)
    torch.testing.assert_close(decoded(bins), torch.tensor([wanted]))


def test_the_page_says_what_the_cells_say(tmp_path: Path) -> None:
    cell = {
        "subject": "mnist", "method": "vbmf", "keep": 0.25, "status": "done", "numbers": 24,
        "dense_numbers": 100, "macs": 3, "dense_macs": 10, "judged": {"MNIST test": 0.5},
        "healed": {"steps": 7, "judged": {"MNIST test": 0.875}}, "tones": 1, "commit": "abc",
        "processor": "one", "torch": "2",
    }  # fmt: skip
    row = {"model": "mnist-vbmf-0.25", "threads": 2, "batch": 1, "ratio": 0.5}
    (tmp_path / "mnist-vbmf-0.25.json").write_text(json.dumps(cell))
    (tmp_path / "speed-mnist.json").write_text(json.dumps({"rows": [row]}))
    target = tmp_path / "page.md"
    target.write_text("<!-- convolutions -->\n<!-- end of convolutions -->\nafter")
    page.refresh(tmp_path, target)
    text = target.read_text()
    assert "| Tucker-2, VBMF's ranks scaled | 0.240 | 0.300 | 50.00 % | 87.50 % | 2.00x |" in text
    assert text.endswith("after")
