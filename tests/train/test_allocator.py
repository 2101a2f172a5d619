"""Freed memory stays with the process while a model is healed, and no longer."""

import subprocess
import sys
from ctypes import CDLL

import pytest

SCRIPT = """
import resource
import torch
import bondwise.heal.heal  # all that is there when a model is healed
from bondwise.train.allocator import kept

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(40):
        torch.ones(16 * 2**20)  # 64 MB, of 16,384 pages
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

torch.set_num_threads(1)
outside = faults()
with kept():
    torch.ones(16 * 2**20)
    inside = faults()
print(outside, inside, faults())
"""


@pytest.mark.skipif(not hasattr(CDLL(None), "mallopt"), reason="not glibc")
def test_pages_are_cleared_once_and_then_kept():
    run = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    outside, inside, afterwards = map(int, run.stdout.split())
    assert inside < outside / 10  # a small block in the freed one may cost a few clearings
    assert afterwards > outside / 2  # given back: nothing is kept that was not asked for
