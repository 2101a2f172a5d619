"""Contributions add up to the output, whatever the network; dropping costs what Gram says."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import bondwise as bw
from bondwise.errors import ShapeError
from bondwise.read import added, bond, contributions, dropped, gram, readout, values
from nets import numpy_dense
from read.planted import EVERY, layer, refused


def terms(own, name):
    """Each W_b by numpy: (rank, out, in)."""
    net = own.network
    one = bw.parse(str(net), **net.sizes | {name: 1})
    pairs = list(zip(own.cores(), net.names, strict=True))

    def term(b):
        cores = [c.narrow(n.index(name), b, 1) if name in n else c for c, n in pairs]
        return numpy_dense(one, cores)

    return np.stack([term(b) for b in range(net.bonds[name])])


def test_contributions_are_the_terms_and_add_up():
    for net, name in EVERY:
        own = layer(net)
        read, chosen = bond(own, "", name), list(range(net.bonds[name]))[::-2]
        x = torch.randn(2, 5, net.shape[1], dtype=torch.float64)
        y = contributions(read, x)
        expected = np.einsum("boi,nti->ntbo", terms(own, name), x.numpy())
        np.testing.assert_allclose(y, expected, atol=1e-12)
        torch.testing.assert_close(y.sum(-2), (own(x) - own.bias).detach(), rtol=0, atol=1e-12)
        torch.testing.assert_close(added(read, x, chosen), y[..., chosen, :].sum(-2))


def test_dropping_by_the_gram_matrix_is_the_measured_error():
    for net, name in EVERY:
        own, size = layer(net), net.bonds[name]
        read = bond(own, "", name)
        x = torch.randn(50, net.shape[1], dtype=torch.float64)
        C = x.T @ x / len(x)
        G = gram(read, C)
        W = terms(own, name)
        expected = np.einsum("boi,ij,coj->bc", W, C.numpy(), W)
        np.testing.assert_allclose(G.numpy(), expected, atol=1e-12)
        np.testing.assert_allclose(gram(read).numpy(), np.einsum("boi,coi->bc", W, W), atol=1e-12)
        for chosen in ([0], list(range(0, size, 2)), list(range(size))):
            left_out = added(read, x, chosen).square().sum()
            whole = added(read, x, range(size)).square().sum()
            assert dropped(G, chosen) == pytest.approx(float(left_out / whole), rel=1e-9)


@settings(deadline=None, max_examples=25)
@given(
    sites=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=2, max_size=3),
    rank=st.integers(1, 5),
)
def test_they_add_up_for_any_chain(sites, rank):
    net = bw.mpo(*zip(*sites, strict=True), rank)
    own = layer(net, bias=False)
    x = torch.randn(3, net.shape[1], dtype=torch.float64)
    for name in net.bonds:
        torch.testing.assert_close(contributions(bond(own, "", name), x).sum(1), own(x).detach())


def test_what_a_sweep_carries_goes_on_to_the_output():
    """The values on a bond, and the cores that are still to come, give the output (numpy)."""
    for net, name in EVERY:
        own = layer(net, bias=False)
        x = torch.randn(4, net.shape[1], dtype=torch.float64)
        for order in (None, tuple(range(len(net.cores))), tuple(range(len(net.cores)))[::-1]):
            found = values(bond(own, "", name), x, order)
            assert found.values.shape[-1] == net.sizes[name]
            letters = {n: chr(97 + k) for k, n in enumerate(net.sizes)}
            text = "Z" + "".join(letters[n] for n in (*found.rest, name))
            operands = [found.values.numpy()]
            for k in found.order[found.met :]:
                text += "," + "".join(letters[n] for n in net.names[k])
                operands.append(own.cores()[k].detach().numpy())
            out = "Z" + "".join(letters[i.name] for i in net.rows)
            y = np.einsum(f"{text}->{out}", *operands).reshape(4, -1)
            np.testing.assert_allclose(y, own(x).detach().numpy(), atol=1e-12)


def test_a_readout_is_the_leading_singular_pair_of_each_term():
    for net, name in EVERY:
        own = layer(net)
        found, W = readout(bond(own, "", name)), terms(own, name)
        for b, term in enumerate(W):
            s = np.linalg.svd(term, compute_uv=False)
            pair = np.outer(found.directions[b], found.readers[b])
            # power iteration: what it misses is second order in the angle that is left
            assert np.linalg.norm(term - pair) ** 2 == pytest.approx((s[1:] ** 2).sum(), abs=1e-5)
            assert float(found.pure[b]) == pytest.approx(s[0] ** 2 / (s**2).sum(), abs=1e-5)


def test_inputs_of_another_width_are_refused():
    read = bond(layer(bw.lowrank(6, 8, 4)))
    for call in (contributions, values):
        refused(ShapeError, r"write it as \(.., 8\)", call, read, torch.zeros(3, 7))
    refused(ShapeError, r"takes \(8, 8\)", gram, read, torch.eye(7))
