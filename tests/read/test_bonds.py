"""Bonds are found by name, told apart by what they do to the network, and cut into terms."""

import numpy as np
import torch
from torch import nn

import bondwise as bw
from bondwise.errors import NetworkError, SelectionError, ShapeError
from bondwise.read import bond, bonds, part
from bondwise.read.bonds import matrices, sides
from read.planted import NETS, layer, refused


def test_what_a_bond_does_to_its_network():
    kinds = {
        bw.lowrank(6, 8, 4): ["cut"],
        bw.mpo((2, 3, 2), (2, 2, 5), 4): ["cut", "cut"],
        bw.ring((2, 3, 2), (2, 2, 5), 3): ["terms"] * 3,
        bw.cp((4, 2), (3, 2), 5): ["terms"],
        bw.btt((2, 2), (3, 3), 2): ["blocks"],
        bw.tree((2, 2, 2, 2), (2, 2, 2, 2), 3): ["cut"] * 5,
        bw.parse("b o a, a b i -> (b o) (b i)", b=3, o=2, i=2, a=2): ["terms"],
    }
    for net, expected in kinds.items():
        assert [found.kind for found in bonds(layer(net))] == expected, net


def test_both_sides_of_a_bond_that_cuts_give_the_weight():
    for net in NETS:
        own = layer(net)
        W = own.dense().detach().numpy()
        for found in bonds(own):
            if sides(net, found.name) is None:
                refused(NetworkError, "does not cut it", matrices, found)
                continue
            first, second = matrices(found)
            product = np.einsum("kaz,kbz->kab", first.numpy(), second.numpy())
            # the same numbers in another order
            ours, theirs = (np.sort(numbers, axis=None) for numbers in (product, W))
            np.testing.assert_allclose(ours, theirs, atol=1e-12)


def test_all_bonds_of_a_model_and_one_by_name():
    shared = layer(bw.lowrank(6, 6, 2))
    model = nn.Sequential(shared, nn.ReLU(), shared, layer(bw.mpo((2, 3), (2, 3), 4)))
    assert [(b.layer, b.name) for b in bonds(model)] == [("0", "a"), ("3", "a")]
    assert bond(model, "3").size == 4


def test_a_bfloat16_layer_is_read_in_float32():
    own = layer(bw.lowrank(6, 8, 4), dtype=torch.bfloat16)
    assert {core.dtype for core in bond(own).cores} == {torch.float32}


def test_what_is_not_there_is_named_with_its_nearest():
    model = nn.ModuleDict({"up_proj": layer(bw.mpo((2, 3), (2, 2), 4))})
    refused(SelectionError, "the nearest are up_proj", bond, model, "up_prj")
    said = "No bond 'b' in layer 'up_proj'; the nearest are a"
    refused(SelectionError, said, bond, model, "up_proj", "b")
    refused(SelectionError, "has no bond to read", bonds, nn.Linear(3, 3))
    refused(SelectionError, "has no bond to read", bond, nn.Linear(3, 3), "weight")
    alone = layer(bw.parse("o i -> (o) (i)", o=3, i=4))
    refused(SelectionError, "without a bond", bond, alone)


def test_values_that_a_bond_lacks_are_refused():
    own = bond(layer(bw.lowrank(6, 8, 4)))
    for wrong in ([4], [-1], [], [1, 1]):
        refused(ShapeError, "write some of 0 to 3", part, own, wrong)
