"""Fits of networks with blocks on two threads: batches of LU hang or fail there in some builds."""

import subprocess
import sys

CODE = """
import torch, bondwise as bw
torch.set_num_threads(2)
x = torch.randn(900, 768, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
W = torch.randn(384, 768, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
done = bw.fit(W, bw.btt((384, 1), (2, 384), 300), metric=x.T @ x, sweeps=1)
assert 0 < done.error < 1, done.error
bw.compact(done.network, done.cores, torch.bfloat16, x.T @ x)
"""


def test_blocks_are_fitted_and_rounded_on_two_threads():
    done = subprocess.run(
        [sys.executable, "-c", CODE], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "ERROR" not in done.stderr + done.stdout
