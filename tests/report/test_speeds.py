"""The table of a measurement fits 80 columns and holds its numbers."""

import pytest

from bondwise.report.speeds.benchmark import benchmark
from report.test_table import text_of


def spread(middle, wide=0.1):
    return {"median": middle, "low": middle * (1 - wide), "high": middle * (1 + wide)}


def entry(factor):
    times = {"decode": 41.27 * factor, "prefill": 20061.2 * factor}
    times = {
        name: spread(v) for name, v in (times | {"time_to_first_token": 0.0841 / factor}).items()
    }
    numbers = {"resident_bytes": 538e6 / factor, "peak_bytes": 1.4e9 / factor}
    macs = {"prefill": 106.2e6 / factor, "decode": 134.5e6 / factor}
    return {"networks": 3, "dtype": "float32", "macs": macs} | times | numbers


@pytest.fixture
def speeds():
    ratio = {name: spread(1.312) for name in ("decode", "prefill", "time_to_first_token")}
    ratio |= {"macs": {"prefill": 0.6, "decode": 0.65}, "resident_bytes": 0.7, "peak_bytes": 0.8}
    return {
        "source": "/models/a-folder-with-a-very-long-name-for-a-model-at-keep-0.6",
        "vs": "/models/SmolLM2-135M-Instruct.Q4_1.gguf",
        "threads": 1, "device": "cuda:1", "prompt": 256, "tokens": 32, "batch": 8, "repeats": 5,
        "before": entry(1.0), "after": entry(2.0), "ratio": ratio,
    }  # fmt: skip


def test_every_number_is_there_within_80_columns(speeds):
    text = text_of(benchmark(speeds))
    assert "\u2026" not in text  # nothing cut
    for number in ("41.3", "82.5", "20,061", "40,122", "84.1 ms", "42.0 ms", "75.7..92.5 ms"):
        assert number in text
    for number in ("1.4 GB", "538.0 MB", "269.0 MB", "134.5 M", "53.1 M", "0.650", "0.700"):
        assert number in text
    for part in ("1.312", "1.181..1.443", "cuda:1, 1 thread, float32"):
        assert part in text


def test_slow_and_huge_models_fit_too(speeds):
    first = {"median": 1.2, "low": 0.9, "high": 123.4}
    for part in ("before", "after"):
        speeds[part] |= {"time_to_first_token": first, "prefill": spread(1234567.8)}
    assert "900.0 ms..123.40 s" in text_of(benchmark(speeds))


def test_an_encoder_and_a_model_alone(speeds):
    after = {key: speeds["after"][key] for key in ("networks", "dtype", "resident_bytes")}
    after |= {"forward": spread(100), "batched": spread(700), "peak_bytes": None}
    after["macs"] = {"forward": 10.6e6, "batched": 10.6e6}
    text = text_of(benchmark(speeds | {"vs": None, "before": {}, "after": after, "ratio": {}}))
    for part in ("1 text of 256", "8 texts of 256", "multiplications, forward"):
        assert part in text
    assert "ratio" not in text
    assert "in turns" not in text
    assert next(line for line in text.splitlines() if "peak" in line).split()[-1] == "-"


@pytest.fixture
def prepared(speeds):
    over = {name: spread(1.777) for name in ("decode", "prefill", "time_to_first_token")}
    ways = [
        {"rows": 1, "path": 120, "joined": 60, "dense": 30, "built": 0},
        {"rows": 256, "path": 0, "joined": 0, "dense": 0, "built": 210},
    ]
    told = {"seconds": 14.1, "bytes": 12_300_000, "layers": 210, "skipped": 2, "ways": ways}
    own = entry(2.5) | {"ratio": over | {"resident_bytes": 0.444}, "chosen": told}
    del own["macs"], own["peak_bytes"]
    return speeds | {"prepared": own}


def test_prepared_stands_beside_as_built_and_both_are_compared_with_dense(prepared):
    text = text_of(benchmark(prepared))
    assert max(map(len, text.splitlines())) <= 80
    assert "\u2026" not in text
    lines = text.splitlines()
    assert "as built prepared" in " ".join(next(li for li in lines if "as built" in li).split())
    at = next(k for k, line in enumerate(lines) if "decode of 32" in line)
    assert lines[at].split()[-3:] == ["41.3", "82.5", "103.2"]
    assert lines[at + 2].split() == ["ratio", "1.312", "1.777"]
    at = next(k for k, line in enumerate(lines) if "in memory" in line)
    assert lines[at].split()[-6:] == ["538.0", "MB", "269.0", "MB", "215.2", "MB"]
    assert lines[at + 1].split() == ["ratio", "0.700", "0.444"]
    at = next(k for k, line in enumerate(lines) if "multiplications, decode" in line)
    assert lines[at + 1].split() == ["ratio", "0.650"]  # prepared ways count otherwise
    flat = " ".join(text.split())
    assert "Prepared in 14.1 s, 12.3 MB beside the parameters; at 1 row: 120 by path, " in flat
    assert "60 joined, 30 dense; at 256 rows: 210 as built; 2 layers left as built." in flat


def test_a_model_alone_is_prepared_without_ratios(prepared):
    alone = {"vs": None, "before": {}, "ratio": {}}
    prepared["prepared"]["ratio"] = {}
    text = text_of(benchmark(prepared | alone))
    assert "ratio" not in text
    assert "prepared" in text
    assert "in turns" in text
