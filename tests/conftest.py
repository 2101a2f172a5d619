"""Shared by all tests: one thread, so that runs repeat to the bit and workers do not fight for cores."""

import torch

torch.set_num_threads(1)
