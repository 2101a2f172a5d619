"""A report of pitch as the demo leaves it."""

import copy

import pytest

TESTS = ["clean", "0 dB", "others"]


def model(name, numbers, shares, seconds, wide=0.005):
    return {
        "name": name,
        "numbers": numbers,
        "bytes": 4 * numbers,
        "shares": dict(zip(TESTS, shares, strict=True)),
        "differences": {
            test: [share - dense, share - dense - wide, share - dense + wide]
            for test, share, dense in zip(TESTS, shares, (0.9925, 0.9325, 1.0), strict=True)
        },
        "cents": 2.5,
        "seconds": seconds,
    }


@pytest.fixture
def report():
    track = {
        "file": "a<b>.wav",
        "hop": 0.01,
        "models": [
            {"name": "CREPE", "cents": [5350.0 + k for k in range(100)], "sure": [0.9] * 100},
            {
                "name": "ours",
                "cents": [5350.0 + k + 70 * (k >= 60) for k in range(100)],
                "sure": [0.4] * 20 + [0.9] * 80,
            },
        ],
    }
    told = {
        "tests": [{"short": s, "what": f"sounds of {s}", "count": 400} for s in TESTS],
        "models": [
            model("CREPE", 22_239_976, (0.9925, 0.9325, 1.0), 2.99),
            model("ours", 2_223_000, (0.985, 0.9475, 0.9975), 0.4),
            model("CREPE tiny", 486_552, (0.9575, 0.88, 0.95), 0.12),
        ],
        "batch": 32,
        "threads": 2,
        "swift": 1.61,
        "track": track,
    }
    weights = [{"name": "conv1", "action": "tensorize"}, {"name": "conv1.bias", "action": "leave"}]
    return copy.deepcopy(
        {"source": "bondwise.demo.crepe:full", "name": "CREPE", "weights": weights, "pitch": told}
    )
