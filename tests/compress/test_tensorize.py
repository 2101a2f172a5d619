from dataclasses import replace
from itertools import count

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import bondwise as bw
from bondwise.choose.by_rank import check_keep
from bondwise.errors import BudgetError, DataError, FitError, SelectionError
from bondwise.layers.embedding import TensorEmbedding
from bondwise.layers.linear import TensorLinear
from bondwise.layers.module import check_model
from bondwise.topology import registry
from tiny import bert, cut, gpt2, llama, tokens, untouched

MODELS = {"llama": llama, "gpt2": gpt2, "bert": bert}


def output(model, ids):
    with torch.no_grad():
        return model(ids)[0]


@pytest.mark.parametrize("kind", MODELS)
def test_a_model_is_cut_to_its_budget_and_merges_back(kind):
    twin, made = MODELS[kind](), cut(kind)
    model, ids, result = made.dense, made.data, made.result
    before, after = result.table.targeted
    assert 0.98 * 0.6 <= after / before <= 0.6
    layers = [m for m in result.model.modules() if isinstance(m, TensorLinear)]
    assert sum(matrix.numel() for layer in layers for matrix in layer.matrices()) <= after
    small = sum(p.numel() for p in result.model.parameters())
    assert small <= sum(p.numel() for p in model.parameters()) - 0.39 * before
    assert all(
        torch.equal(p, q) for p, q in zip(model.parameters(), twin.parameters(), strict=True)
    )
    merged = bw.merge(result.model)
    assert {type(m) for m in merged.modules()} == {type(m) for m in model.modules()}
    assert torch.allclose(output(merged, ids), output(result.model, ids), atol=1e-4)


@pytest.mark.parametrize("form", [*registry.names(), "o1 i1 a, a o2 i2 -> (o1 o2) (i1 i2)"])
def test_every_format_runs_in_a_model(form):
    model = nn.Sequential(nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 12, bias=False))
    keep = 0.5
    result = bw.tensorize(model, keep=keep, format=form)
    assert result.table.kept <= keep
    assert all(isinstance(result.model[k], TensorLinear) for k in (0, 2))
    x = torch.randn(5, 16)
    dense = bw.merge(result.model)
    assert torch.allclose(result.model(x), dense(x), atol=1e-5)
    assert result.model[2].bias is None


def test_the_error_is_that_of_the_outputs_on_the_calibration_inputs():
    x = torch.randn(20000, 20) @ torch.randn(20, 40)  # inputs that live in half of the space
    model = nn.Sequential(nn.Linear(40, 40, bias=False))
    result = bw.tensorize(model, keep=0.8, data=x)
    metric = bw.merge(result.model)
    plain = bw.merge(bw.tensorize(model, keep=0.8).model)
    with torch.no_grad():
        y = model(x)
        error = (metric(x) - y).norm() / y.norm()
        assert error < 0.05 * (plain(x) - y).norm() / y.norm()


def test_a_weight_that_no_token_reaches_is_fitted_alone_and_named():
    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.spare = nn.Linear(64, 64), nn.Linear(64, 64)

        def forward(self, x):
            return self.used(x)

    model = Experts()
    result = bw.tensorize(model, keep=0.6, data=torch.randn(50, 64))
    assert result.table.notes == ("no token but zeros reached spare: fitted to the weight alone",)
    alone = bw.fit(model.spare.weight, result.table["spare"].network)
    expected = bw.dense(alone.network, alone.cores)
    torch.testing.assert_close(result.model.spare.dense(), expected)


def test_shared_modules_stay_shared_and_ties_stay_tied(brief):
    shared = nn.Linear(16, 16)
    result = bw.tensorize(nn.Sequential(shared, nn.ReLU(), shared), keep=0.5)
    assert result.model[0] is result.model[2]
    model = bw.tensorize(llama(tied=True), keep=0.5, data=tokens(), format="lowrank").model
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_dtype_and_mode_are_kept_and_inplace_swaps_in_the_given_one(brief):
    model = llama().to(torch.bfloat16).train()
    result = bw.tensorize(model, keep=0.5, data=tokens(), inplace=True)
    assert result.model is model
    assert model.training
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model.model.layers[0].mlp.up_proj.training
    assert torch.isfinite(output(model.eval(), tokens())).all()


def test_embeddings_can_be_targets():
    model = nn.Sequential(nn.Embedding(50, 16, padding_idx=3), nn.Linear(16, 4))
    result = bw.tensorize(model, keep=0.7, targets=["embedding", "linear"])
    table = result.model[0]
    assert isinstance(table, TensorEmbedding)
    assert not table(torch.tensor([3])).any()
    ids = torch.tensor([[1, 2, 49]])
    assert torch.allclose(table(ids), table.dense()[ids], atol=1e-6)
    merged = bw.merge(result.model)
    assert merged[0].padding_idx == 3
    assert not merged[0].weight[3].any()


def test_data_in_every_form():
    model = nn.Sequential(nn.Linear(16, 16, bias=False))
    x = torch.randn(40, 16)
    loader = DataLoader(TensorDataset(x, torch.zeros(40)), batch_size=10)
    seen, streamed = [], (part for part in x.split(10))
    for forms in ([x, [(x, 0)]], [list(x.split(10)), loader, streamed]):  # others are held out
        made = [
            bw.tensorize(model, 0.6, data, progress=lambda *at: seen.append(at)).model[0].dense()
            for data in forms
        ]
        assert all(torch.equal(made[0], other) for other in made[1:])
    assert ("calibrate", 4, 4) in seen  # one of them is held out


def test_text_needs_a_tokenizer():
    with pytest.raises(DataError, match="tokenizer"):
        bw.tensorize(llama(), keep=0.5, data="some words")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_named_and_nothing_changes(bad):
    model = llama()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = bad
    with pytest.raises(FitError, match=r"layers.1.mlp.up_proj has NaN or infinite entries \(1 of"):
        bw.tensorize(model, keep=0.5, data=tokens(), inplace=True)
    assert isinstance(model.model.layers[0].mlp.up_proj, nn.Linear)


def test_keep_one_leaves_everything():
    result = bw.tensorize(llama(), keep=1.0, data=tokens())
    assert result.table.kept == 1.0
    assert not any(row.changes for row in result.table)


def test_the_same_seed_gives_the_same_bits(brief):
    one, two = cut("bert").result.model, bw.tensorize(bert(), keep=0.6, data=tokens()).model
    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), two.parameters(), strict=True))


def test_merging_a_dense_model_is_refused():
    with pytest.raises(SelectionError, match="no tensorized layer"):
        bw.merge(llama())


def test_the_report_is_plain_data():
    import json

    report = cut("llama").result.report()
    assert json.loads(json.dumps(report)) == report
    changed = [w for w in report["weights"] if w["action"] == "tensorize"]
    dense = [w for w in report["weights"] if w["reason"] == "dense at this budget"]
    assert len(changed) + len(dense) == 14
    assert all(0 < w["error"] < 1 for w in changed)
    assert [step["name"] for step in report["steps"]] == ["draw", "calibrate", "survey", "fit"]
    assert report["targeted"]["after"] == sum(w["after"] for w in changed + dense)


def test_a_failure_in_the_middle_leaves_the_model(brief, monkeypatch):
    from bondwise.compress import fit_group as module

    calls = count(1)

    def broken(*args, **kwargs):
        if next(calls) == 5:
            raise FitError("the fifth fit failed")
        return fit(*args, **kwargs)

    fit = module.fit_groups
    monkeypatch.setattr(module, "fit_groups", broken)
    model = llama()
    with pytest.raises(FitError, match="fifth"):
        bw.tensorize(model, keep=0.5, data=tokens(), inplace=True)
    assert not any(isinstance(m, TensorLinear) for m in model.modules())


def test_a_state_dict_loads_back(brief):
    one = bw.tensorize(llama(), keep=0.5, format="lowrank", data=tokens()).model
    two = bw.tensorize(llama(), keep=0.5, format="lowrank").model
    output(two, tokens())
    two.load_state_dict(one.state_dict())
    assert torch.equal(output(two, tokens()), output(one, tokens()))


def test_protected_weights_say_so_and_a_pattern_without_any_is_noted():
    model = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32))
    data = torch.randn(300, 32)
    result = bw.tensorize(model, 0.7, data, protect=["0", "nowhere"])
    assert [row.reason for row in result.table if row.name == "0"] == ["protected"]
    assert "protect pattern 'nowhere' matches nothing that was chosen" in result.table.notes


def error_in(off, metric):
    moment = metric.shrunk() if isinstance(metric, bw.Metric) else metric.double()
    return float((off @ moment * off).sum() ** 0.5)


def test_a_dtype_is_rounded_to_in_the_metric_and_the_dense_model_stays(brief, monkeypatch):
    from bondwise.compress import store as module

    errors = []

    def compared(net, cores, dtype, scale):
        late = bw.compact(net, cores, torch.float32)
        late = replace(late, free=tuple(free.to(dtype) for free in late.free))
        early = bw.compact(net, cores, dtype, scale)
        W = bw.dense(net, [core.double() for core in cores])
        errors.append([error_in(form.dense().double() - W, scale) for form in (early, late)])
        return early

    monkeypatch.setattr(module, "compact", compared)
    model = gpt2()
    asked = {"keep": 0.5, "data": tokens(), "format": "lowrank"}
    with untouched(model):
        result = bw.tensorize(model, **asked, dtype=torch.bfloat16)
    assert {p.dtype for p in result.model.parameters()} == {torch.bfloat16}
    assert len(errors) > 4
    assert sum(early for early, _ in errors) < 0.95 * sum(late for _, late in errors)
    tied = result.model
    assert tied.lm_head.weight is tied.transformer.wte.weight


def test_the_dtype_that_a_model_has_already_changes_no_bit(brief):
    asked = {"keep": 0.5, "data": tokens(), "format": "lowrank"}
    one = bw.tensorize(gpt2(), **asked).model
    two = bw.tensorize(gpt2(), **asked, dtype=torch.float32).model
    assert all(map(torch.equal, one.state_dict().values(), two.state_dict().values()))


def test_what_is_no_model_or_a_layer_on_its_own_is_one_sentence(tmp_path):
    layer, data = nn.Linear(16, 16), torch.randn(40, 16)
    result = bw.tensorize(nn.Sequential(layer), keep=0.5)
    calls = [
        lambda model: bw.tensorize(model, keep=0.5, data=data),
        lambda model: bw.plan_model(model, keep=0.5),
        bw.merge,
        lambda model: bw.save(model, tmp_path / "out"),
    ]
    for call in calls:
        for given in (layer, result.model[0], nn.Embedding(4, 4)):
            with pytest.raises(SelectionError, match=r"on its own .* nn\.Sequential\(layer\)"):
                call(given)
    assert not (tmp_path / "out").exists()
    for given in (result, None, "gpt2"):  # types are checked before it in tests
        with pytest.raises(SelectionError, match=r"came as the model; give a torch.nn.Module"):
            check_model(given)
    with pytest.raises(SelectionError, match=r"such as the \.model of what came"):
        check_model(result)
    with pytest.raises(BudgetError, match="keep=1 came"):
        check_keep(True)


def test_padding_changes_nothing(brief):
    ids, mask = tokens(16, 12), torch.ones(16, 20, dtype=torch.long)
    mask[:, 12:] = 0
    padded = torch.cat([ids, torch.zeros(16, 8, dtype=torch.long)], 1)
    plain = bw.tensorize(bert(), keep=0.6, data=[{"input_ids": ids}])
    other = bw.tensorize(bert(), keep=0.6, data=[{"input_ids": padded, "attention_mask": mask}])
    for one, two in zip(plain.table, other.table, strict=True):
        assert (one.format, one.after) == (two.format, two.after)
        assert one.error == pytest.approx(two.error, rel=1e-3) if one.error else not two.error
