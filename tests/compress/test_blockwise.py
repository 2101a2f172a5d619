"""The shrinkage of a site is chosen on tokens that nothing is fitted on."""

import numpy as np
import torch

import bondwise as bw
from bondwise.choose import cost
from bondwise.choose.candidates import COLUMNS, Candidate, Group
from bondwise.compress.blockwise import Fitting, fit_layers
from bondwise.compress.effort import EFFORT
from bondwise.compress.fit_group import NEAR, shrunk
from bondwise.fit.metric import Metric
from bondwise.layers.linear import TensorLinear


def lost(weight, moment, other, rank):
    """Squared error on other tokens of the best low rank in a metric, by numpy alone."""
    values, vectors = np.linalg.eigh(moment)
    half = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    left = np.linalg.svd(weight @ half)[0][:, :rank]
    off = weight - left @ (left.T @ weight)
    return float(np.trace(off @ other @ off.T))


def toned(moment, share):
    return (1 - share) * moment + share * np.diag(np.diag(moment))


NET = bw.lowrank(16, 24, 6)
PICKS = {"w": Candidate.of("w", "lowrank", (NET,), cost.network(NET, 32), 1.0)}


def tried(place):
    """Each shrinkage that is tried, and its squared error on the held-out tokens."""
    weight = place.weights["w"].double().numpy()
    seen, other = (m.second_moment.numpy() for m in (place.metric, place.held_out))
    shares = [min(1.0, place.metric.shrinkage * factor) for factor in NEAR]
    return {share: lost(weight, toned(seen, share), other, 6) for share in shares}


def site(tokens, noise):
    """A weight, and inputs that are alike (noise 1) or in few directions (0); most are unseen."""
    draw = np.random.default_rng(3)
    mix = (1 - noise) * draw.normal(size=(24, 24)) * np.logspace(0, -1.5, 24) + noise * np.eye(24)
    seen, unseen = draw.normal(size=(tokens, 24)) @ mix.T, draw.normal(size=(4000, 24)) @ mix.T
    moments = [torch.from_numpy(x.T @ x) for x in (seen, unseen)]
    share = 24 / (24 + tokens)
    weight = torch.from_numpy(draw.normal(size=(16, 24))).float()
    return Group({"w": weight}, Metric(moments[0], tokens, share), Metric(moments[1], 4000, 0.01))


def test_the_shrinkage_that_is_best_on_other_tokens_wins():
    found = set()
    for tokens, noise in ((12, 1.0), (30, 0.1), (2000, 0.0)):
        place = site(tokens, noise)
        chosen = shrunk(place, PICKS).metric.shrinkage
        errors = tried(place)
        assert errors[chosen] <= min(errors.values()) * (1 + 1e-4)
        found.add(list(errors).index(chosen))
    assert len(found) > 1  # it does depend on the tokens


def test_a_frozen_bias_stays_frozen():
    model = torch.nn.Sequential(torch.nn.Linear(24, 24), torch.nn.Linear(24, 24))
    model[0].bias.requires_grad_(False)
    data = [torch.randn(16, 24) * torch.linspace(0.1, 2, 24) for _ in range(8)]
    result = bw.tensorize(model, 0.5, data)
    first = result.model[0]
    assert not first.bias.requires_grad
    assert result.model[1].bias.requires_grad
    assert all(p.requires_grad for name, p in first.named_parameters() if name != "bias")


def test_nothing_held_out_or_nothing_cut_leaves_the_site_as_it_is():
    place = site(12, 0.1)
    dense = Candidate.of("w", "dense", (), cost.dense(16, 24, 32), 0.0)
    assert shrunk(place, {"w": dense}) is place
    alone = Group(place.weights, place.metric)
    assert shrunk(alone, PICKS) is alone


def test_outside_blocks_the_shrinkage_is_chosen_too():
    place = site(2000, 0.0)
    layer = torch.nn.Linear(24, 16, bias=False)
    layer.weight.data = place.weights["w"]
    model = torch.nn.ModuleDict({"w": layer})
    made = fit_layers(model, [place], PICKS, Fitting(0, 0.0, 0)).modules["w"]
    new = made.dense().double().detach().numpy()
    weight, other = layer.weight.detach().double().numpy(), place.held_out.second_moment.numpy()
    off = weight - new
    best = min(tried(place).values())
    assert float(np.trace(off @ other @ off.T)) <= best * (1 + 1e-3)


class Loud(torch.nn.Module):
    """A block whose weight is of low rank but for two columns of many."""

    def __init__(self, seed):
        super().__init__()
        draw = torch.Generator().manual_seed(seed)
        self.mix = torch.nn.Linear(200, 200, bias=True)
        low = torch.randn(200, 6, generator=draw) @ torch.randn(6, 200, generator=draw)
        low[:, [17, 101]] = 60 * torch.randn(200, 2, generator=draw)
        self.mix.weight.data = low / 200

    def forward(self, x):
        return x + torch.tanh(self.mix(x))


def test_best_keeps_some_columns_dense_and_everything_goes_on_with_them(tmp_path):
    model = torch.nn.Sequential(*[Loud(k) for k in range(3)])
    data = [torch.randn(64, 200) for _ in range(12)]
    result = bw.tensorize(model, 0.1, data, effort="best", prefer="size")
    rows = [row for row in result.table if row.format == COLUMNS]
    assert rows, "no weight kept columns"
    assert all([kind.count for kind in row.beside] == [2] for row in rows)
    assert result.table.kept <= 0.1
    layer = result.model.get_submodule(rows[0].name)
    assert isinstance(layer, TensorLinear)
    (columns,) = layer.beside()
    assert (columns.kind.kind, columns.kind.count) == ("columns", 2)
    stored = sum(m.stored_numbers for m in result.model.modules() if isinstance(m, TensorLinear))
    assert stored == result.table.targeted[1]
    x = data[0]
    with torch.no_grad():
        wanted, given = model(x), result.model(x)
    assert float((given - wanted).norm() / (wanted - x).norm()) < 0.1
    bw.save(result.model, tmp_path / "kept")
    again = bw.load(tmp_path / "kept", torch.nn.Sequential(*[Loud(k) for k in range(3)]))
    with torch.no_grad():
        assert torch.equal(again(x), given)
        assert torch.allclose(bw.merge(result.model)(x), given, atol=1e-4)


def test_fast_leaves_columns_out():
    assert COLUMNS in EFFORT["best"].exact
    assert COLUMNS not in EFFORT["fast"].exact
