"""Padding never weighs, however a model lays out its tokens: as if it had not been there."""

import pytest
import torch
import transformers as hf
from torch import nn

import bondwise as bw
import tiny
from bondwise.flow.calibrate import Inputs
from bondwise.flow.padding import masks, matched, tokens, trimmed
from bondwise.flow.watch import collect, unpadded
from bondwise.read.features import input_moments

LENGTHS = (9, 4, 7, 9, 2, 5)


def padded(width=9, lengths=LENGTHS, left=False, seed=0):
    ids = torch.randint(3, 128, (len(lengths), width), generator=tiny_seed(seed))
    places = torch.arange(width)
    if left:
        mask = torch.stack([places >= width - n for n in lengths])
    else:
        mask = torch.stack([places < n for n in lengths])
    return {"input_ids": ids.masked_fill(~mask, 0), "attention_mask": mask.long()}


def tiny_seed(seed):
    return torch.Generator().manual_seed(seed)


def between(decoder_width, lengths):
    """A batch of an encoder and decoder, both padded."""
    other = padded(decoder_width, lengths, seed=1)
    return padded() | {f"decoder_{name}": value for name, value in other.items()}


def t5():
    torch.manual_seed(0)
    config = hf.T5Config(
        vocab_size=128, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4,
        decoder_start_token_id=0, pad_token_id=0,
    )  # fmt: skip
    return hf.T5ForConditionalGeneration(config).eval()


class Laid(nn.Module):
    """Token ids to a layer, laid out in one way or another."""

    def __init__(self, lay, back):
        super().__init__()
        torch.manual_seed(0)
        self.table, self.one, self.two = nn.Embedding(128, 24), nn.Linear(24, 24), nn.Linear(24, 24)
        self.lay, self.back = lay, back

    def forward(self, input_ids, attention_mask=None):  # noqa: ARG002
        x = self.table(input_ids)
        return self.back(self.two(self.one(self.lay(x)).tanh()), x)


class Routed(Laid):
    """Each expert has the tokens that come to it, padding too, in an order of its own."""

    def __init__(self):
        super().__init__(None, None)

    def forward(self, input_ids, attention_mask=None):  # noqa: ARG002
        x = self.table(input_ids).flatten(0, 1)
        odd = (input_ids.flatten() % 2).bool()
        y = torch.empty_like(x)
        y[odd], y[~odd] = self.one(x[odd].flip(0)).flip(0), self.two(x[~odd])
        return y.view(*input_ids.shape, -1)


class Careless(Laid):
    """Looks at all tokens, padding too."""

    def __init__(self):
        super().__init__(None, None)

    def forward(self, input_ids):
        x = self.table(input_ids)
        return self.two(self.one(x).tanh() + x.mean(1, keepdim=True))


def same(y, x):
    return y.reshape(x.shape)


LAYOUTS = {
    "as they come": (lambda x: x, same),
    "flattened": (lambda x: x.flatten(0, 1), same),
    "flattened, one more axis": (lambda x: x.flatten(0, 1)[None], same),
    "length first": (lambda x: x.transpose(0, 1), lambda y, _: y.transpose(0, 1)),
    "heads between": (lambda x: x[:, None].expand(-1, 3, -1, -1), lambda y, _: y[:, 0]),
    "heads last": (lambda x: x[:, :, None].expand(-1, -1, 2, -1), lambda y, _: y[:, :, 0]),
    "heads in the samples": (lambda x: x.repeat_interleave(2, 0), lambda y, _: y[::2]),
    "as many heads as positions": (
        lambda x: x[:, None].expand(-1, x.shape[1], -1, -1),
        lambda y, _: y[:, 0],
    ),
    "flattened, length first": (
        lambda x: x.transpose(0, 1).flatten(0, 1),
        lambda y, x: y.view(x.shape[1], x.shape[0], -1).transpose(0, 1),
    ),
    "flattened backwards": (lambda x: x.flatten(0, 1).flip(0)[:, None], same),
}
MODELS = {name: lambda how=how: Laid(*how) for name, how in LAYOUTS.items()}
MODELS |= {"experts": Routed, "no mask": Careless, "BERT": tiny.bert, "T5": t5}
BATCHES = {
    "right": padded(),
    "left": padded(left=True),
    "decoder": between(6, (6, 2, 3, 6, 1, 5)),
    "decoder of that length": between(9, (3, 9, 9, 1, 5, 4)),
    "decoder without padding": between(9, (9,) * 6),
}


def linears(model):
    return {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear)}


def alone(batch):
    """Each sample by itself, its tokens alone: what padding must not change."""
    for row in range(len(LENGTHS)):
        found = {}
        for name, value in batch.items():
            mask = batch["decoder_attention_mask" if "decoder" in name else "attention_mask"]
            found[name] = value[row : row + 1, mask[row].bool()]
        yield found


def moments(model, batches):
    return input_moments(model, list(linears(model)), batches)


CASES = [(m, "right") for m in MODELS if m != "T5"]
CASES += [("flattened", "left"), ("experts", "left")]
CASES += [("T5", b) for b in BATCHES if "decoder" in b]


@pytest.mark.parametrize(("kind", "padding"), CASES)
def test_moments_are_those_of_each_sample_by_itself(kind, padding):
    model, batch = MODELS[kind](), BATCHES[padding]
    layers = linears(model)
    seen, wanted = Inputs(layers), Inputs(layers)
    seen.watch(model, unpadded(model, layers, [batch, batch]))
    wanted.watch(model, [*alone(batch), *alone(batch)])
    assert seen.group == wanted.group
    for name, own in wanted.moments.items():
        assert seen.moments[name].tokens == own.tokens or "heads" in kind
        found, expected = (m.metric(shrinkage=0.0).shrunk() for m in (seen.moments[name], own))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["flattened", "experts"])
def test_reading_leaves_padding_out_too(kind):
    model, batch = MODELS[kind](), BATCHES["right"]
    found, wanted = moments(model, [batch]), moments(model, list(alone(batch)))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)
    assert len(collect(model, ["one", "two"], [batch], 100)["two"]) <= sum(LENGTHS)


@pytest.mark.parametrize("kind", ["flattened", "experts", "T5"])
def test_what_stands_in_padding_changes_no_weight(kind, brief):
    """The weights that come of padded data are those of the same data with other padding."""
    batch = BATCHES["decoder of that length" if kind == "T5" else "right"]
    names = [name for name in batch if name.endswith("ids")]
    other = dict(batch)
    for name in names:
        mask = batch[name.replace("input_ids", "attention_mask")].bool()
        other[name] = batch[name].where(mask, torch.tensor(77))
    results = [bw.tensorize(MODELS[kind](), 0.6, data=[b] * 3).model for b in (batch, other)]
    one, two = (
        {n: m.dense().detach() for n, m in model.named_modules() if isinstance(m, bw.TensorLinear)}
        for model in results
    )
    assert one.keys() == two.keys()
    assert one
    assert all((one[n] - two[n]).norm() < 1e-3 * one[n].norm() for n in one)


def test_masks_come_in_many_shapes():
    wanted = BATCHES["right"]["attention_mask"].bool()
    least = torch.finfo(torch.float32).min
    causal = torch.ones(9, 9).tril().bool()
    for mask in (
        wanted,
        wanted.float(),
        wanted[:, None, None],
        wanted[:, None],
        (~wanted).float()[:, None, None] * least,
        wanted[:, None, None] & causal,
        wanted * torch.tensor([1, 1, 2, 2, 3, 3, 3, 4, 4]),  # which of several packed samples
    ):
        (found,) = masks({"attention_mask": mask})
        assert torch.equal(found, wanted)
    assert torch.equal(masks({"src_key_padding_mask": ~wanted})[0], wanted)
    assert masks({"attention_mask": torch.ones(2, 3)}) == ()
    assert masks({"input_ids": torch.ones(2, 3)}) == ()


@pytest.mark.parametrize(
    ("lead", "certain"),
    [
        ((6,), True),  # one row for each sample
        ((36,), True),  # padding taken out
        ((), True),
        ((7,), False),
        ((1, 18), False),  # a table of positions
        ((108,), False),  # heads before positions, or behind them
        ((6, 4, 5), False),
    ],
)
def test_what_no_size_tells_is_not_guessed(lead, certain):
    own = masks(BATCHES["right"])
    assert matched(own, (*lead, 8)) == (None, certain)


def test_an_output_has_the_decoders_padding():
    batch = BATCHES["decoder of that length"]
    found = tokens(batch, torch.zeros(6, 9, 128))
    assert torch.equal(found, batch["decoder_attention_mask"].bool())


def test_a_batch_is_cut_where_its_tokens_are():
    batch = between(4, (4, 4, 2, 4, 0, 1)) | {"labels": torch.arange(24).view(6, 4), "flag": True}
    parts = trimmed(batch)
    assert [tuple(p["input_ids"].shape) for p in parts] == [(2, 9), (1, 4), (1, 7), (1, 5)]
    assert [tuple(p["labels"].shape) for p in parts] == [(2, 4), (1, 4), (1, 2), (1, 1)]
    assert all(p["attention_mask"].all() and p["flag"] for p in parts)
    with_hole = {"input_ids": torch.ones(1, 4), "attention_mask": torch.tensor([[0, 1, 0, 1]])}
    (part,) = trimmed(with_hole)
    assert part["attention_mask"].tolist() == [[1, 0, 1]]
