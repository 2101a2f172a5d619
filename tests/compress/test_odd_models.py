"""Padding changes nothing, blocks in a chain are the model, a resumed model is the whole one."""

import pytest
import torch

import bondwise as bw
from bondwise.choose.survey import Reference, resumed
from bondwise.flow.blocks import capture, chains
from bondwise.progress import silent
from tiny import bert, gpt2, llama, tokens


def test_padding_changes_nothing(brief):
    ids, mask = tokens(16, 12), torch.ones(16, 20, dtype=torch.long)
    mask[:, 12:] = 0
    padded = torch.cat([ids, torch.zeros(16, 8, dtype=torch.long)], 1)
    plain = bw.tensorize(bert(), keep=0.6, data=[{"input_ids": ids}])
    other = bw.tensorize(bert(), keep=0.6, data=[{"input_ids": padded, "attention_mask": mask}])
    for one, two in zip(plain.table, other.table, strict=True):
        assert (one.format, one.after) == (two.format, two.after)
        assert one.error == pytest.approx(two.error, rel=1e-3) if one.error else not two.error


@pytest.mark.parametrize("make", [llama, gpt2, bert])
def test_a_chain_of_blocks_is_the_model(make):
    model, ids = make(), tokens(4)
    names = [n for n, m in model.named_modules() if type(m).__name__ in ("Linear", "Conv1D")]
    (blocks,) = chains(model, [n for n in names if "head" not in n and "pooler" not in n])
    stream = capture(model, blocks, [ids[:2], ids[2:]], silent)
    assert stream is not None
    with torch.no_grad():
        states = [model(part, output_hidden_states=True).hidden_states for part in ids.split(2)]
    for at, name in enumerate(blocks[:-1]):  # the last one transformers gives after its norm
        assert torch.allclose(stream.hidden[1], states[1][at], atol=1e-2)
        stream = stream.after(model.get_submodule(name))


@pytest.mark.parametrize("make", [llama, gpt2])
def test_a_resumed_model_gives_exactly_what_the_whole_one_gives(make):
    model, ids = make(), tokens(4)
    path = "model.layers" if make is llama else "transformer.h"
    blocks = [f"{path}.0", f"{path}.1"]
    judge, stream = Reference.of(model, ids), capture(model, blocks, [ids], silent)
    assert judge is not None
    assert stream is not None
    stream = stream.after(model.get_submodule(blocks[0]))
    with resumed(model, blocks, 1, stream):
        assert judge.distance() == pytest.approx(0, abs=1e-9)
        kept = {n: p.detach().clone() for n, p in model.named_parameters() if f"{path}.1." in n}
        with torch.no_grad():
            for parameter in model.get_submodule(blocks[1]).parameters():
                parameter.mul_(0.9)
        short = judge.distance()
    whole = judge.distance()
    assert short == whole > 0
    assert len(kept) > 4
