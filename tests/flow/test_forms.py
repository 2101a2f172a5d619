"""Data in the forms people have comes out as the same batches; what cannot is one sentence."""

from inspect import unwrap
from itertools import count as counting

import numpy as np
import pytest
import torch
import transformers as hf
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import bondwise as bw
import tiny
from bondwise.errors import DataError
from bondwise.flow.data import checked
from bondwise.flow.forms.chat import rendered
from bondwise.flow.forms.door import batches, opened

IDS = tiny.tokens(10, 12)
RAGGED = [row[: 3 + k].tolist() for k, row in enumerate(IDS)]
PLAIN = "{% for m in messages %}{{ m['role'] }} {{ m['content'] }}{{ '\n' }}{% endfor %}"
PLAIN += "{% if add_generation_prompt %}assistant {% endif %}"
MARKED = (
    "{% for m in messages %}{{ m['role'] }} {% if m['role'] == 'assistant' %}{% generation %}"
    "{{ m['content'] }}{% endgeneration %}{% else %}{{ m['content'] }}{% endif %}{{ '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}assistant {% endif %}"
)
CHAT = [
    {"role": "user", "content": "bond core"},
    {"role": "assistant", "content": "rank rank core"},
    {"role": "user", "content": "core"},
    {"role": "assistant", "content": "bond"},
]


class Table:
    """As ``datasets.Dataset``: columns, rows by their number, neither list nor mapping."""

    def __init__(self, **columns):
        self.columns, self.column_names = columns, list(columns)

    def __len__(self):
        return len(next(iter(self.columns.values())))

    def __getitem__(self, k):
        if isinstance(k, str):
            return self.columns[k]
        if k >= len(self):
            raise IndexError(k)
        return {name: values[k] for name, values in self.columns.items()}


class Streamed:
    """As ``datasets.IterableDataset``: no end that is known."""

    column_names = None

    def __init__(self, rows):
        self.rows = rows

    def __iter__(self):
        return iter(self.rows)


def speaker(template=None):
    made = tiny.tokenizer()
    made.chat_template = template
    return made


def whole(found, name="input_ids"):
    parts = [batch if torch.is_tensor(batch) else batch[name] for batch in found]
    return torch.cat(parts)


SAME = {
    "a tensor": lambda: IDS,
    "an array": IDS.numpy,
    "rows of lists": lambda: [{"input_ids": row.tolist()} for row in IDS],
    "rows of tensors": lambda: [{"input_ids": row} for row in IDS],
    "rows of arrays": lambda: [{"input_ids": row.numpy(), "name": "a"} for row in IDS],
    "a data set": lambda: Table(input_ids=IDS.tolist(), title=list("abcdefghij")),
    "a stream": lambda: Streamed({"input_ids": row.tolist()} for row in IDS),
    "lists": IDS.tolist,
    "tensors": lambda: list(IDS),
    "a mapping of lists": lambda: {"input_ids": IDS.tolist()},
    "a mapping of tensors": lambda: {"input_ids": IDS},
    "a mapping of arrays": lambda: [{"input_ids": IDS.numpy()}],
    "batches": lambda: [IDS[:4], IDS[4:]],
    "batches and targets": lambda: [(IDS[:4], IDS[:4]), (IDS[4:], IDS[4:])],
    "a loader": lambda: DataLoader(TensorDataset(IDS), batch_size=4),
    "a data set of torch": lambda: TensorDataset(IDS, IDS),
    "a generator of rows": lambda: ({"input_ids": row} for row in IDS),
    "a generator of batches": lambda: iter([IDS[:4], IDS[4:]]),
}


@pytest.mark.parametrize("form", SAME)
def test_every_form_is_the_same_data(form):
    assert torch.equal(whole(batches(SAME[form]())), IDS)


@pytest.mark.parametrize("form", ["rows of lists", "a data set", "lists", "a mapping of lists"])
def test_the_result_is_that_of_the_tensor(form, brief):
    one, two = (bw.tensorize(tiny.llama(), 0.6, data=d) for d in (IDS, SAME[form]()))
    assert all(map(torch.equal, one.model.state_dict().values(), two.model.state_dict().values()))


@pytest.mark.parametrize(
    "data",
    [
        RAGGED,
        [torch.tensor(row) for row in RAGGED],
        [{"input_ids": row} for row in RAGGED],
        Table(input_ids=RAGGED),
        {"input_ids": RAGGED},
    ],
    ids=["lists", "tensors", "rows", "data set", "columns"],
)
@pytest.mark.parametrize("tokenizer", [None, speaker()])
def test_rows_of_other_lengths_are_padded_and_masked(data, tokenizer):
    found = batches(data, tokenizer)
    pad = 0 if tokenizer is None else tokenizer.pad_token_id or tokenizer.eos_token_id or 0
    rows = [row for batch in found for row in batch["input_ids"]]
    masks = [row.bool() for batch in found for row in batch["attention_mask"]]
    for row, mask, wanted in zip(rows, masks, RAGGED, strict=True):
        assert row[mask].tolist() == wanted
        assert set(row[~mask].tolist()) <= {pad}


def test_a_tokenizer_without_a_pad_token_pads_all_the_same():
    class Bare:
        pad_token_id, eos_token_id = None, 7

    (found,) = batches([[1, 2, 3], [4]], Bare())
    assert found["input_ids"].tolist() == [[1, 2, 3], [4, 7, 7]]
    assert found["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]


def test_columns_that_go_with_the_tokens_are_padded_as_they_are_to_be():
    rows = [
        {"input_ids": [1, 2, 3], "labels": [1, -100, 3], "token_type_ids": [0, 1, 1]},
        {"input_ids": [4], "labels": [4], "token_type_ids": [1]},
    ]
    (found,) = batches(rows)
    assert found["labels"].tolist() == [[1, -100, 3], [4, -100, -100]]
    assert found["token_type_ids"].tolist() == [[0, 1, 1], [1, 0, 0]]
    rows = [{"input_ids": [1], "attention_mask": [1], "label": 0, "decoder_input_ids": [k] * k}
            for k in (2, 3)]  # fmt: skip
    (found,) = batches(rows)
    assert found["decoder_attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]
    assert found["label"].tolist() == [0, 0]


TEXT = tiny.text(600)
PIECES = [line for line in TEXT.split("\n") if line.strip()] * 3


@pytest.mark.parametrize(
    "data",
    [
        PIECES,
        tuple(PIECES),
        Table(text=PIECES, url=["u"] * len(PIECES)),
        Table(words=PIECES, stars=list(range(len(PIECES)))),
        [{"text": piece} for piece in PIECES],
        np.array(PIECES),
        DataLoader(PIECES, batch_size=2),
    ],
    ids=["list", "tuple", "column text", "only column", "rows", "array", "loader"],
)
def test_texts_in_every_form_are_the_same_windows(data):
    wanted = batches(PIECES, tiny.tokenizer(), count=4, length=16)
    found = batches(data, tiny.tokenizer(), count=4, length=16)
    assert torch.equal(whole(found), whole(wanted))
    assert whole(found).shape == (4, 16)


def test_what_has_no_end_is_read_as_far_as_it_is_needed():
    seen = []

    def endless(make):
        for k in counting():
            seen.append(k)
            yield make(k)

    found = batches(endless(lambda k: {"input_ids": [k, k]}), count=5)
    assert whole(found)[:, 0].tolist() == seen == [0, 1, 2, 3, 4]
    found = batches(endless(lambda _: TEXT), tiny.tokenizer(), count=4, length=16)
    assert whole(found).shape == (4, 16)
    assert len(seen) < 20
    found = batches(endless(lambda k: torch.full((3, 2), k)), count=5)
    assert whole(found).shape == (6, 2)


def test_of_a_large_data_set_rows_are_drawn():
    table = Table(input_ids=[[k, k] for k in range(1000)])
    one, two, other = (whole(batches(table, count=16, seed=s))[:, 0].tolist() for s in (0, 0, 1))
    assert one == two != other
    assert len(set(one)) == 16
    assert max(one) > 500
    assert len(whole(batches(table, count=None))) == 1000


@pytest.mark.parametrize("template", [PLAIN, MARKED])
def test_of_a_chat_the_assistant_is_told_from_the_others(template):
    ids, said = rendered(speaker(template), CHAT)
    words = speaker().convert_ids_to_tokens([t for t, s in zip(ids, said, strict=True) if s])
    assert words == ["rank", "rank", "core", "bond"]
    assert len(ids) > len(words) + 2


@pytest.mark.parametrize(
    "data",
    [
        [CHAT, CHAT[:2]],
        Table(messages=[CHAT, CHAT[:2]], topic=["a", "b"]),
        [{"messages": CHAT}, {"messages": CHAT[:2]}],
        (chat for chat in (CHAT, CHAT[:2])),
    ],
    ids=["list", "data set", "rows", "generator"],
)
def test_chats_are_shown_whole_and_learned_in_part(data):
    found = opened(data, speaker(PLAIN), learning=True)
    ids = [row.tolist() for batch in found for row in batch["input_ids"]]
    labels = [row.tolist() for batch in found for row in batch["labels"]]
    wanted = [rendered(speaker(PLAIN), chat) for chat in (CHAT, CHAT[:2])]
    for row, label, (tokens, said) in zip(ids, labels, wanted, strict=True):
        assert row[: len(tokens)] == tokens
        told = [t if s else -100 for t, s in zip(tokens, said, strict=True)]
        assert label == told + [-100] * (len(row) - len(tokens))


def test_a_chat_is_shown_to_calibrate_on(brief):
    assert "labels" not in batches([CHAT], speaker(PLAIN))[0]
    assert batches(CHAT, speaker(PLAIN))[0]["input_ids"].shape[0] == 1
    pieces = whole(batches([CHAT], speaker(PLAIN), length=5))
    assert pieces.shape[1] == 5
    result = bw.tensorize(tiny.llama(), 0.6, data=[CHAT] * 4, tokenizer=speaker(PLAIN))
    assert result.blocks


def bare(x):
    return nn.Sequential(nn.Embedding(128, 8), nn.Linear(8, 8))(x)


REFUSED = {
    "nothing": ([], None, "An empty list"),
    "a generator of nothing": (iter(()), None, "held no batch"),
    "one axis": (IDS.flatten(), None, r"shape \(120,\) came"),
    "a number": (7, None, "type int"),
    "None among rows": ([None], None, "type NoneType"),
    "mixed kinds": ([IDS, "text"], None, "came in one list of data; give items of one kind"),
    "other columns": ([{"input_ids": [1]}, {"inputs": [1]}], None, "came in one list|same columns"),
    "no tokenizer": (["some words"] * 2, None, "Text came without a tokenizer"),
    "a chat and no tokenizer": ([CHAT], None, "A chat came without a tokenizer"),
    "no template": ([CHAT], speaker(), "has no chat template"),
    "a template that refuses": ([CHAT], speaker("{{ messages.nothing.at_all }}"), "refuses a chat"),
    "a text column of numbers": (Table(text=[1, 2]), speaker(), "column text holds int, not text"),
    "a text column with holes": (Table(text=["a b", None]), speaker(), "holds NoneType, not text"),
    "two text columns": (Table(ask=["a"], say=["b"]), speaker(), "text columns ask, say came"),
    "ragged and no tokens": ([{"x": [1.0]}, {"x": [1.0, 2.0]}], None, "in the column x; pad them"),
    "ragged vectors": ([torch.ones(2), torch.ones(3)], None, "give them one shape"),
    "splits": ({"train": Table(text=["a"]), "test": Table(text=["b"])}, None, r"data\['train'\]"),
    "ragged inside": (Table(input_ids=[[[1, 2], [3]]]), None, "no row of numbers"),
    "words": (Table(input_ids=[["a", "b"]]), None, "none of numbers or text"),
    "empty texts": (["", " "], speaker(), "all empty"),
    "a mask of another length": (
        [{"input_ids": [1, 2, 3], "attention_mask": [1, 1]}] * 2,
        None,
        "A row of 3 input_ids came with an attention_mask of 2",
    ),
    "no windows": (IDS, None, "write at least one window"),
    "half a window": (IDS, None, "length=2.5 came; write a whole number"),
}
ASKED = {"no windows": {"count": 0}, "half a window": {"length": 2.5}}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_used_is_said_in_one_sentence(kind):
    data, tokenizer, says = REFUSED[kind]
    with pytest.raises(DataError, match=says) as error:
        unwrap(opened)(data, tokenizer, **ASKED.get(kind, {}))
    assert "\n" not in str(error.value)


def chain():
    return nn.Sequential(nn.Linear(24, 32), nn.GELU(), nn.Linear(32, 24))


@pytest.mark.parametrize(
    ("make", "data", "says"),
    [
        (chain, torch.randn(8, 23), r"layer 0 takes 24 numbers, and float32 \(1, 23\) came"),
        (chain, torch.ones(8, 24, dtype=torch.long), r"the data, int64 \(\d, 24\): layer 0 takes"),
        (tiny.llama, torch.randn(8, 12), "takes token ids; give whole numbers"),
        (tiny.llama, [{"input_ids": torch.rand(2, 5)}], "takes token ids; give whole numbers"),
        (tiny.llama, IDS + 100, "tokens or positions that the model lacks"),
        (tiny.llama, IDS - 50, "tokens or positions that the model lacks"),
        (tiny.gpt2, tiny.tokens(4, 80), "tokens or positions that the model lacks"),
        (tiny.bert, [{"pixel_values": torch.rand(2, 3, 4, 4)}], "BertModel cannot run on the data"),
        (chain, [torch.randn(4, 24), torch.randn(4, 23)], "layer 0 takes 24 numbers"),
    ],
)
@pytest.mark.parametrize("verb", ["tensorize", "heal"])
def test_what_a_model_cannot_run_is_said_before_anything_runs(make, data, says, verb):
    model = make()
    heals = lambda: bw.heal(make(), model, data, steps=1)  # noqa: E731
    call = heals if verb == "heal" else lambda: bw.tensorize(model, 0.6, data=data)
    with tiny.untouched(model), pytest.raises(DataError, match=says) as error:
        call()
    assert "\n" not in str(error.value)
    assert "BFloat16" not in str(error.value)


def test_a_plain_module_takes_tokens_whatever_it_calls_them(brief):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(128, 16), nn.Linear(16, 16), nn.Linear(16, 16))
    result = bw.tensorize(model, 0.6, data=[{"input_ids": row.tolist()} for row in IDS])
    assert result.table.kept <= 0.6


def test_padding_of_labels_is_the_decoders():
    config = hf.T5Config(d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2, vocab_size=128)
    model = hf.T5ForConditionalGeneration(config)
    model.config.decoder_start_token_id = 0
    labels = IDS[:2, :4].clone()
    labels[1, 2:] = -100
    (found,) = checked(model, [{"input_ids": IDS[:2], "labels": labels}])
    assert found["decoder_attention_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
