"""What a run is made of: the same for the same, another one for whatever differs."""

from copy import deepcopy

import torch
from torch import nn

import tiny
from bondwise import tensorize
from bondwise.flow.identity import MARK, difference, digest, identity


def all_differ(*things):
    return len({digest(thing) for thing in things}) == len(things)


def test_a_digest_sees_names_shapes_dtypes_and_every_value():
    x = torch.arange(1000.0)
    one = x.clone()
    one[577] += 1
    assert digest({"a": x.clone()}) == digest({"a": x})
    assert digest(x[::2]) == digest(x[::2].clone())
    assert digest(x).startswith(MARK)
    assert all_differ(
        {"a": x}, {"b": x}, {"a": x.view(10, 100)}, {"a": one}, {"a": x.double()},
        {"a": x[:0]}, {"a": [x]}, {}, x, x.bfloat16(), torch.tensor(True), None,
    )  # fmt: skip


def test_models_are_told_apart_by_all_that_they_store():
    one = tiny.llama()
    assert digest(one) == digest(tiny.llama())
    other = deepcopy(one)
    with torch.no_grad():
        other.lm_head.weight[3, 7] += 1e-6
    small = tensorize(one, keep=0.5).model
    assert digest(small) == digest(deepcopy(small))
    assert all_differ(one, other, deepcopy(one).bfloat16(), tiny.gpt2(), small)
    norms = nn.BatchNorm1d(4)
    before = digest(norms)
    norms(torch.randn(3, 4))  # no parameter changes
    assert digest(norms) != before


def test_batches_and_values_are_told_apart_by_their_order_and_kind():
    ids, mask = tiny.tokens(2, 8), torch.ones(2, 8)
    batch = {"input_ids": ids, "attention_mask": mask}
    assert digest([batch, batch]) == digest([dict(batch), deepcopy(batch)])
    assert all_differ(
        [batch], [batch, batch], [{"input_ids": ids}], [batch | {"labels": None}], [ids, mask],
        [mask, ids], [ids], ids, [["a", "b"], "c"], ["a", ["b", "c"]], "abc", ["abc"], 1, 1.5, True,
    )  # fmt: skip


def test_files_are_told_apart_by_their_names_and_contents(tmp_path):
    def folder(name, files):
        for path, text in files.items():
            file = tmp_path / name / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        return tmp_path / name

    same = folder("a", {"x": "1", "in/y": "2"}), folder("b", {"in/y": "2", "x": "1"})
    assert digest(same[0]) == digest(same[1])
    others = {"x": "1", "in/y": "3"}, {"x": "12", "in/y": ""}, {"x": "1"}, {"z": "1", "in/y": "2"}
    found = [folder(f"o{k}", each) for k, each in enumerate(others)]
    assert all_differ(same[0], *found, same[0] / "x", str(same[0]))


def test_what_differs_is_said_in_words():
    one = identity({"rate": 0.1, "seed": 0}, student=[1], data=[2])
    assert difference(one, identity({"rate": 0.1, "seed": 0}, student=[1], data=[2])) == ""
    two = identity({"rate": 0.2, "seed": 0, "new": None}, student=[3], data=[4])
    assert difference(one, two) == "another student; other data; rate 0.1, not 0.2"
    assert difference({"old": 1}, {}) == "old 1, not null"
