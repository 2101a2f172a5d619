"""Shared by all tests: one thread, so that runs repeat to the bit and no two fight for cores."""

import torch

torch.set_num_threads(1)
