import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import bondwise as bw
from bondwise.errors import NetworkError, ShapeError
from bondwise.network.ranks import useful_ranks
from bondwise.topology import registry


def test_the_eight_topologies_are_found_by_looking_into_the_folder():
    eight = {"btt", "cp", "kron", "lowrank", "mpo", "ring", "tree", "tucker"}
    assert eight <= set(registry.names())
    assert registry.names() == sorted(registry.names())
    assert eight <= set(bw.__all__)
    assert all(registry.find(name).build is getattr(bw, name) for name in registry.names())


def test_an_unknown_name_lists_the_known():
    with pytest.raises(NetworkError, match=r"'tt' is not known; write one of .*btt, .*cp, .*kron"):
        registry.find("tt")


@given(out=st.integers(1, 200), inp=st.integers(1, 200), rank=st.integers(1, 9))
def test_every_topology_splits_every_shape_primes_and_ones_too(out, inp, rank):
    for name in registry.names():
        net = registry.find(name).sized(out, inp, rank)
        assert net.shape == (out, inp)
        assert all(1 <= useful <= rank for useful in useful_ranks(net).values())
        assert bw.parse(str(net), **net.sizes) == net


def test_an_mpo_whose_bonds_are_one_is_a_kronecker_product():
    net = bw.mpo((2, 3, 2), (4, 2, 3), 1)
    cores = [torch.randn(shape, dtype=torch.float64) for shape in net.core_shapes]
    sites = [core.reshape(o, i) for core, o, i in zip(cores, (2, 3, 2), (4, 2, 3), strict=True)]
    expected = torch.kron(torch.kron(sites[0], sites[1]), sites[2])
    torch.testing.assert_close(bw.dense(net, cores), expected)


def test_no_modes_are_refused():
    with pytest.raises(ShapeError, match="whole numbers of at least 1"):
        bw.mpo((), (2, 2), 2)


def test_a_tuple_of_ranks_names_the_bonds_in_order_of_first_use():
    assert bw.mpo((2, 2, 2), (2, 2, 2), (3, 4)).bonds == {"a": 3, "b": 4}
    assert bw.ring((2, 2, 2), (2, 2, 2), (3, 4, 5)).bonds == {"z": 3, "a": 4, "b": 5}
    assert bw.tucker((2, 2), 4, (1, 2, 3)).bonds == {"p1": 1, "p2": 2, "q1": 3}
    assert list(bw.tree((2,) * 4, (2,) * 4, (1, 2, 3, 4, 5)).bonds.values()) == [1, 2, 3, 4, 5]
    with pytest.raises(ShapeError, match="3 ranks"):
        bw.mpo((2, 2), (2, 2), (1, 2, 3))


def test_a_name_is_taken_once():
    def mpo(rows, cols, rank):
        raise AssertionError

    with pytest.raises(NetworkError, match=r"registers a topology 'mpo', which .* another name"):
        registry.register(modes=lambda out, inp: ((out,), (inp,)))(mpo)
    assert registry.find("mpo").build is bw.mpo
