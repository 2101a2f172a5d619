"""The loss over a vocabulary against plain torch in float64, and against its own whole logits."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from bondwise.errors import DataError
from bondwise.heal.chunks import ROWS
from bondwise.heal.losses import Top, logits_loss, relative_error, top, vocabulary_loss
from bondwise.train.recipe import Mix, healing

TOKENS, WIDTH, WORDS = 11, 6, 17
HALF = Mix(1.5, distil=0.5, task=0.5)


def made(seed=0, dtype=torch.float64, tokens=TOKENS, words=WORDS):
    """Hidden states, an output embedding, its bias, a teacher's logits, a text."""
    draw = torch.Generator().manual_seed(seed)
    hidden = torch.randn(tokens, WIDTH, generator=draw, dtype=torch.float64)
    weight = torch.randn(words, WIDTH, generator=draw, dtype=torch.float64)
    bias = torch.randn(words, generator=draw, dtype=torch.float64)
    teacher = 3 * torch.randn(tokens, words, generator=draw, dtype=torch.float64)
    targets = torch.randint(words, (tokens,), generator=draw)
    asked = [t.to(dtype).requires_grad_() for t in (hidden, weight, bias)]
    return *asked, teacher.to(dtype), targets


def plain(logits, teacher, targets, mix, k):
    """The definition, with all that the teacher says at hand."""
    counts = targets != -100
    log_q = (logits / mix.temperature).log_softmax(-1)
    p, ids = (teacher / mix.temperature).softmax(-1).topk(k)
    kl = (p * (p.log() - log_q.gather(1, ids))).sum(-1)
    if k < logits.shape[-1]:
        outside = torch.ones_like(log_q, dtype=torch.bool).scatter(1, ids, False)
        others = log_q[outside].view(len(log_q), -1).logsumexp(-1)
        rest = (teacher / mix.temperature).softmax(-1)[outside].view(len(log_q), -1).sum(-1)
        kl = kl + rest * (rest.log() - others)
    nats = F.cross_entropy(logits, targets, reduction="none", ignore_index=-100)
    loss = mix.distil * mix.temperature**2 * kl + mix.task * nats
    return loss[counts].mean()


def agrees(given, k, mix, chunk):
    hidden, weight, bias, teacher, targets = given
    said, asked = top(teacher, k, mix.temperature), [hidden, weight, bias]
    loss = vocabulary_loss(*asked, said, targets, mix, chunk)
    wanted = plain(F.linear(*asked), teacher, targets, mix, k)
    torch.testing.assert_close(loss, wanted)
    grads, expected = (torch.autograd.grad(3 * own, asked) for own in (loss, wanted))
    torch.testing.assert_close(grads, expected)


def near(found, wanted, bound, dtype):
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.dtype == dtype
        assert float((ours.float() - theirs).norm() / theirs.norm()) < bound


@pytest.mark.parametrize("chunk", [1, 4, 100])
@pytest.mark.parametrize("k", [1, 5, WORDS - 1, WORDS])
@pytest.mark.parametrize(
    "mix", [Mix(), Mix(temperature=2.5), Mix(distil=0.0, task=1.0), Mix(2.0, distil=0.7, task=0.3)]
)
def test_loss_and_gradients_are_those_of_the_definition(mix, k, chunk):
    given = made()
    given[-1][2] = -100
    agrees(given, k, mix, chunk)


@pytest.mark.parametrize("chunk", [40, 100, 500])
def test_more_rows_than_a_softmax_takes_at_a_time(chunk):
    agrees(made(tokens=2 * ROWS + 3), 5, HALF, chunk)


def test_one_bucket_never_says_more_than_the_whole():
    hidden, weight, _, teacher, _ = made(2)
    tops = [top(teacher, k) for k in range(1, WORDS + 1)]
    losses = [vocabulary_loss(hidden, weight, None, t, None, Mix()).item() for t in tops]
    assert losses == sorted(losses)
    assert losses[-2] == pytest.approx(losses[-1])  # a bucket of one token is that token


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), *[st.integers(1, 12)] * 3, st.integers(0, 99))
def test_any_sizes(tokens, words, k, chunk, seed):
    agrees(made(seed, tokens=tokens, words=words), min(k, words), HALF, chunk)


def test_logits_that_are_there_give_the_same_and_stay_as_they_are():
    hidden, weight, bias, teacher, targets = made(4)
    said, mix = top(teacher, 5, 2.0), Mix(2.0, task=0.5)
    logits = F.linear(hidden, weight, bias).detach().requires_grad_()
    before = logits.detach().clone()
    loss = logits_loss(logits, said, targets, mix, 4)
    torch.testing.assert_close(loss, vocabulary_loss(hidden, weight, bias, said, targets, mix, 100))
    wanted = plain(logits, teacher, targets, mix, 5)
    torch.testing.assert_close(
        torch.autograd.grad(loss, logits), torch.autograd.grad(wanted, logits)
    )
    assert torch.equal(logits, before)


def test_float32_is_as_near_as_float32_gets():
    exact = made(5)
    hidden, weight, bias, teacher, targets = made(5, torch.float32)
    mix = Mix(2.0, task=0.5)
    loss = vocabulary_loss(hidden, weight, bias, top(teacher, 5, 2.0), targets, mix)
    wanted = plain(F.linear(*exact[:3]), exact[3], targets, mix, 5)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)


def test_under_autocast_products_are_bfloat16_and_the_softmax_is_not():
    hidden, weight, bias, teacher, targets = made(6, torch.float32)
    said, mix = top(teacher, 5), Mix(task=0.5)
    with torch.autocast("cpu", torch.bfloat16):
        loss = vocabulary_loss(hidden, weight, bias, said, targets, mix, 4)
        logits = F.linear(hidden, weight, bias)
    assert logits.dtype == torch.bfloat16
    wanted = plain(logits.float(), teacher, targets, mix, 5)
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)  # the logits are the very same
    grads, expected = (torch.autograd.grad(own, [hidden, weight, bias]) for own in (loss, wanted))
    near(grads, expected, 0.01, torch.float32)  # three digits of bfloat16


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models(dtype):
    hidden, weight, bias, teacher, targets = made(7, dtype)
    loss = vocabulary_loss(hidden, weight, bias, top(teacher, 5), targets, Mix(task=0.5), 4)
    grads = torch.autograd.grad(loss, [hidden, weight, bias])
    exact = [t.detach().float().requires_grad_() for t in (hidden, weight, bias)]
    wanted = plain(F.linear(*exact), teacher.float(), targets, Mix(task=0.5), 5)
    near(grads, torch.autograd.grad(wanted, exact), 0.03, dtype)


def test_only_what_is_asked_for_gets_a_gradient():
    hidden, weight, bias, teacher, _ = made(8)
    vocabulary_loss(hidden, weight.detach(), bias, top(teacher, 5), None, Mix()).backward()
    assert hidden.grad is not None
    assert bias.grad is not None
    with torch.no_grad():
        assert not vocabulary_loss(hidden, weight, None, top(teacher, 5), None, Mix()).requires_grad


def test_works_under_torch_func():
    hidden, weight, _, teacher, _ = made(9)
    said = top(teacher, 5)

    def loss(given):
        return vocabulary_loss(given, weight.detach(), None, said, None, Mix())

    found = torch.func.grad(loss)(hidden.detach())
    torch.testing.assert_close(found, torch.autograd.grad(loss(hidden), hidden)[0])


def test_whoever_says_the_same_loses_nothing():
    hidden, weight, _, _, _ = made(10)
    loss = vocabulary_loss(hidden, weight, None, top(hidden @ weight.T, 3, 2.0), None, Mix(2.0))
    assert abs(loss.item()) < 1e-12
    assert float(torch.autograd.grad(loss, hidden)[0].abs().max()) < 1e-12


def test_a_very_sure_student_has_a_finite_loss():
    logits = torch.tensor([[0.0, 500.0, 0.0, 0.0]], requires_grad=True)
    loss = logits_loss(logits, top(torch.tensor([[1.0, 2.0, 0.0, 0.5]]), 2), None, Mix())
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()


def test_logarithms_of_float16_are_near():
    hidden, weight, _, teacher, _ = made(11)
    said = top(teacher, 5)
    rounded = Top(said.ids, said.logs.half())
    exact, near = (vocabulary_loss(hidden, weight, None, t, None, Mix()) for t in (said, rounded))
    assert near.item() == pytest.approx(exact.item(), rel=2e-3)
    full, places = top(teacher, WORDS), torch.eye(TOKENS, dtype=torch.float64)
    full = Top(full.ids, full.logs.half())
    same = vocabulary_loss(places, teacher.T, None, full, None, Mix())
    assert 0 <= same.item() < 1e-5


def test_no_token_that_counts_has_no_loss():
    hidden, weight, _, teacher, targets = made(12)
    targets.fill_(-100)
    loss = vocabulary_loss(hidden, weight, None, top(teacher, 3), targets, Mix(task=1.0))
    assert loss.item() == 0
    assert not torch.autograd.grad(loss, hidden)[0].any()


def test_top_is_what_torch_says():
    *_, teacher, _ = made(13, tokens=2 * ROWS + 3)
    said = top(teacher.float(), 4, 2.0)
    logs, ids = (teacher.float() / 2).log_softmax(-1).topk(4)
    assert torch.equal(said.ids.long(), ids)
    assert said.ids.dtype == torch.int32
    torch.testing.assert_close(said.logs, logs)
    assert len(said.rows([1, 3])) == 2
    assert torch.equal(said.rows(slice(2, 4)).ids, said.ids[2:4])
    assert len(top(teacher[:0], 4)) == 0


def test_relative_error_weighs_every_token_alike():
    given = torch.tensor([[2.0, 0.0], [0.0, 75.0], [1.0, 1.0]])
    wanted = torch.tensor([[1.0, 0.0], [0.0, 50.0], [1.0, 1.0]])
    assert float(relative_error(given[:2], wanted[:2])) == pytest.approx(0.625, abs=0.002)
    mask = torch.tensor([False, True, True])
    assert float(relative_error(given, wanted, mask)) == pytest.approx(0.125, rel=1e-3)
    assert float(relative_error(torch.zeros(2, 3), torch.zeros(2, 3))) == 0


def _call(**changed):
    hidden, weight, bias, teacher, targets = made()
    given = {
        "hidden": hidden, "head_weight": weight, "bias": bias, "wanted": top(teacher, 3),
        "targets": targets, "mix": Mix(), "chunk": 4,
    }  # fmt: skip
    return vocabulary_loss(**(given | changed))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Mix(temperature=0.0), "temperature=0.0 came; write a number above 0"),
        (lambda: Mix(temperature=float("nan")), "temperature=nan came"),
        (lambda: Mix(distil=-1.0), "distil=-1.0 came as a weight of the loss; write 0 or more"),
        (lambda: Mix(task=float("inf")), "task=inf came"),
        (lambda: Mix(distil=0.0), "All weights of the loss are 0"),
        (lambda: top(torch.zeros(2, 5), 6), "top_k=6 came for 5 tokens; write 1 to 5"),
        (lambda: top(torch.zeros(2, 5), 0), "top_k=0 came for 5 tokens"),
        (lambda: _call(wanted=None), "distil=1.0 came without the teacher's top; .*=0"),
        (lambda: _call(targets=None, mix=Mix(task=0.5)), "task=0.5 came without targets"),
        (lambda: _call(mix=Mix(distil=0.0, hidden=1.0)), "distil=0 and task=0 came"),
        (lambda: _call(chunk=0), "chunk=0 came; write at least 1 row"),
        (lambda: _call(wanted=top(torch.zeros(3, 5), 2)), "11 tokens came with .* top of 3"),
        (lambda: _call(targets=torch.zeros(4).long()), "11 tokens came with targets of 4"),
        (lambda: _call(wanted=top(torch.zeros(11, 20), 20)), "top 20 came for 17 words"),
        (lambda: relative_error(torch.zeros(2, 3), torch.zeros(2, 4)), r"gives \(2, 3\), the"),
        (lambda: relative_error(*torch.zeros(2, 2, 3), torch.zeros(2)), "No token counts"),
        (lambda: healing(steps=1, temperature=0.0), "temperature=0.0 came"),
    ],
)  # fmt: skip
def test_bad_input_is_named(call, message):
    with pytest.raises(DataError, match=message):
        call()
