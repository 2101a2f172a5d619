"""Programs worth measuring: right, few, none twice, and those of fewest multiplications first."""

from math import prod

import torch
from torch.testing import assert_close

import bondwise as bw
from bondwise.compute.fast import ways
from bondwise.compute.fast.ways import as_plan, programs
from bondwise.compute.plan import plan
from bondwise.compute.run import apply
from nets import random_cores, reference


def per_row(made):
    """Multiplications along the path."""
    return sum(step.macs for step in made.resized(1).path)


def is_dense(net, made):
    return len(made.path) == 1 and per_row(made) == prod(net.shape)


def test_every_program_is_right_for_any_rows_in_chunks_too(net):
    cores = random_cores(net)
    W = reference(net, cores)
    for made in programs(net):
        for rows, chunk in ((0, None), (3, None), (10, 4)):
            x = torch.randn(rows, net.shape[1], dtype=torch.float64)
            assert_close(apply(as_plan(net, made, 64, chunk), cores, x), x @ W.T)


def test_programs_are_few_and_none_is_dense_or_there_twice(net):
    found = programs(net)
    assert len(found) <= ways.MOST
    assert len(set(found)) == len(found)
    assert not any(is_dense(net, made) for made in found)


def test_the_plans_of_fewest_multiplications_are_among_them(net):
    macs = [[made.resized(batch).macs for made in programs(net)] for batch in (1, 256)]
    for batch, own in zip((1, 256), macs, strict=True):
        made = plan(net, batch)
        wastes = per_row(made.program) > ways.WASTE * prod(net.shape)  # dense is then faster
        assert is_dense(net, made.program) or wastes or min(own) == made.macs


def test_a_plan_of_a_program_is_for_its_batch():
    net = bw.mpo((8, 8), (8, 8), 4)
    made = as_plan(net, programs(net)[0], 100, chunk=16)
    assert made.macs == plan(net, 100).macs
    assert "planned for batch 100, goal time, 16 rows at a time" in str(made)


def test_a_long_chain_has_a_few_good_ones():
    net = bw.mpo((2,) * 9, (2,) * 9, 4)
    found = programs(net)
    assert 2 <= len(found) <= ways.MOST
    assert per_row(found[0]) < prod(net.shape) / 2
