"""Contributions add up to the output, whatever the network; dropping costs what Gram says."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import bondwise as bw
from bondwise.errors import ShapeError
from bondwise.read import added, bond, contributions, dropped, gram, readout, values
from read.planted import EVERY, layer


def terms(own, name):
    """Each W_b by numpy's einsum: (rank, out, in)."""
    net, found = own.network, []
    letters = {n: chr(97 + k) for k, n in enumerate(net.sizes)}
    cores = [core.detach().numpy() for core in own.cores()]
    for b in range(net.bonds[name]):
        operands = []
        for core, names in zip(cores, net.names, strict=True):
            if name in names:
                core = np.take(core, [b], axis=names.index(name))
            operands.append(core)
        cols = {i.name: i for i in net.cols}
        through = [i for i in net.rows if i.name in cols]
        spare = {i.name: chr(65 + k) for k, i in enumerate(through)}
        text = ",".join("".join(letters[n] for n in names) for names in net.names)
        for i in through:
            text += f",{letters[i.name]}{spare[i.name]}"
            operands.append(np.eye(i.size))
        out = "".join(letters[i.name] for i in net.rows)
        out += "".join(spare.get(i.name, letters[i.name]) for i in net.cols)
        found.append(np.einsum(f"{text}->{out}", *operands).reshape(net.shape))
    return np.stack(found)


def test_contributions_are_the_terms_and_add_up():
    for net, name in EVERY:
        own = layer(net)
        x = torch.randn(2, 5, net.shape[1], dtype=torch.float64)
        y = contributions(bond(own, "", name), x).numpy()
        np.testing.assert_allclose(
            y, np.einsum("boi,nti->ntbo", terms(own, name), x.numpy()), atol=1e-12
        )
        whole = (own(x) - own.bias).detach().numpy()
        np.testing.assert_allclose(y.sum(-2), whole, atol=1e-12)


def test_some_of_them_together():
    for net, name in EVERY:
        own, size = layer(net), net.bonds[name]
        x = torch.randn(7, net.shape[1], dtype=torch.float64)
        chosen = list(range(size))[::-2]
        expected = contributions(bond(own, "", name), x)[:, chosen].sum(1)
        torch.testing.assert_close(added(bond(own, "", name), x, chosen), expected)


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
    rows=st.lists(st.integers(1, 4), min_size=2, max_size=3),
    cols=st.lists(st.integers(1, 4), min_size=2, max_size=3),
    rank=st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_they_add_up_for_any_chain(rows, cols, rank, seed):
    sites = min(len(rows), len(cols))
    net = bw.mpo(tuple(rows[:sites]), tuple(cols[:sites]), rank)
    own = layer(net, seed, bias=False)
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
        with pytest.raises(ShapeError, match=r"write it as \(.., 8\)"):
            call(read, torch.zeros(3, 7))
    with pytest.raises(ShapeError, match=r"takes \(8, 8\)"):
        gram(read, torch.eye(7))
