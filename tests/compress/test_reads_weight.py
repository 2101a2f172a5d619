"""Architectures whose code reads ``layer.weight``: they run, train, save, load and merge."""

import pytest
import torch
import transformers as hf

import bondwise as bw
from bondwise.bench.count import networks
from bondwise.layers.module import TensorLayer

WORDS = 96
DRAWN = {"initializer_range": 0.2}
BERT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": WORDS}
BERT |= {"intermediate_size": 64, "max_position_embeddings": 64} | DRAWN
BOTH = ["linear", "embedding"]


def ids(count=4, rows=4, length=12):
    draw = torch.Generator().manual_seed(1)
    return [torch.randint(3, WORDS, (rows, length), generator=draw) for _ in range(count)]


def named(**more):
    return [{"input_ids": x} | {name: of(x) for name, of in more.items()} for x in ids()]


def drawn(name, *shape, count=4):
    draw = torch.Generator().manual_seed(1)
    return [{name: torch.randn(*shape, generator=draw)} for _ in range(count)]


def mamba():
    sizes = {"hidden_size": 32, "state_size": 8, "num_hidden_layers": 2, "vocab_size": WORDS}
    return hf.MambaForCausalLM(hf.MambaConfig(**sizes, time_step_rank=4, **DRAWN))


def mobilebert():
    sizes = {"embedding_size": 16, "intra_bottleneck_size": 16, "true_hidden_size": 16}
    config = hf.MobileBertConfig(**BERT, **sizes, tie_word_embeddings=False)
    return hf.MobileBertForMaskedLM(config)


def wavlm():
    sizes = {"conv_dim": (16, 16), "conv_stride": (4, 2), "conv_kernel": (8, 4)}
    more = {"num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2}
    more |= {"num_feat_extract_layers": 2, "apply_spec_augment": False}
    own = {name: size for name, size in BERT.items() if "position" not in name}
    return hf.WavLMModel(hf.WavLMConfig(**own, **sizes, **more))


def deberta(kind):
    def make():
        sizes = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "legacy": False}
        sizes |= {"max_relative_positions": 16, "position_biased_input": False}
        config = getattr(hf, f"{kind}Config")(**BERT, **sizes)
        return getattr(hf, f"{kind}Model")(config)

    return make


def bloom(slices):
    def make():
        sizes = {"hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": WORDS}
        exact = {"pretraining_tp": slices, "slow_but_exact": slices > 1}
        return hf.BloomForCausalLM(hf.BloomConfig(**sizes, **exact, **DRAWN))

    return make


def t5():
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    config = hf.T5Config(vocab_size=WORDS, decoder_start_token_id=0, **sizes)
    return hf.T5ForConditionalGeneration(config)


def clip():
    sizes = {name: size for name, size in BERT.items() if "vocab" not in name and "max" not in name}
    config = hf.CLIPVisionConfig(**sizes, image_size=16, patch_size=4, projection_dim=16)
    return hf.CLIPVisionModel(config)


def altclip():
    sizes = {name: size for name, size in BERT.items() if "vocab" not in name and "max" not in name}
    return hf.AltCLIPVisionModel(hf.AltCLIPVisionConfig(**sizes, image_size=16, patch_size=4))


def layoutlmv3():
    more = {"max_2d_position_embeddings": 64, "coordinate_size": 6, "shape_size": 4}
    more |= {"visual_embed": False, "rel_pos_bins": 8, "rel_2d_pos_bins": 8}
    return hf.LayoutLMv3Model(hf.LayoutLMv3Config(**BERT, **more))


def boxes(x):
    return torch.tensor([1, 2, 5, 9]).repeat(*x.shape, 1)


DATA = {"decoder_input_ids": lambda x: x[:, :6]}
KINDS = {  # what makes it, its data, what is cut; a module that must become a network
    "mamba": (mamba, ids(), ["linear"], "dt_proj"),
    "mobilebert": (mobilebert, ids(), ["predictions.dense"], "predictions.dense"),
    "mobilebert with its head": (mobilebert, ids(), ["cls.predictions.decoder"], "decoder"),
    "wavlm": (wavlm, drawn("input_values", 2, 400), ["linear"], "q_proj"),
    "deberta": (deberta("Deberta"), ids(), ["linear"], "in_proj"),
    "deberta with its table": (deberta("Deberta"), ids(), BOTH, "rel_embeddings"),
    "deberta 2": (deberta("DebertaV2"), ids(), BOTH, "rel_embeddings"),
    "bloom": (bloom(1), ids(), ["linear"], "dense_4h_to_h"),
    "bloom in slices": (bloom(2), ids(), ["linear"], "dense_4h_to_h"),
    "t5": (t5, named(**DATA), ["linear"], "wo"),
    "t5 with its table": (t5, named(**DATA), BOTH, "relative_attention_bias"),
    "clip": (clip, drawn("pixel_values", 2, 3, 16, 16), BOTH, "position_embedding"),
    "altclip": (altclip, drawn("pixel_values", 2, 3, 16, 16), BOTH, "position_embedding"),
    "layoutlm": (layoutlmv3, named(bbox=boxes), BOTH, "rel_pos_bias"),
}


def output(model, batch):
    found = model(**batch) if isinstance(batch, dict) else model(batch)
    return found[0]


def near(one, two):
    return torch.allclose(one, two, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("brief")
def test_it_runs_trains_saves_loads_and_merges(kind, tmp_path):
    make, data, targets, place = KINDS[kind]
    torch.manual_seed(0)
    model = make().eval()
    small = bw.tensorize(model, keep=0.8, data=data, targets=targets, format="lowrank").model
    cut = {path for path, module in small.named_modules() if isinstance(module, TensorLayer)}
    assert any(path.endswith(place) for path in cut), sorted(cut)
    twin = bw.merge(small)
    assert networks(twin) == 0
    with torch.no_grad():
        wanted = output(twin, data[0])
        assert near(output(small, data[0]), wanted)
        again = bw.load(bw.save(small, tmp_path / "saved"), model)
        assert near(output(again, data[0]), wanted)
    for trained in (small, twin):
        trained.train(False).requires_grad_(True)
        output(trained, data[0]).square().mean().backward()
    for (path, one), (_, two) in zip(small.named_modules(), twin.named_modules(), strict=True):
        if path in cut and (grad := two.weight.grad) is not None and grad.any():
            own = {name: p for name, p in one.named_parameters() if name != "bias"}
            assert all(p.grad is not None and p.grad.any() for p in own.values()), path
    for path in cut:
        layer = small.get_submodule(path)
        assert layer.weight.shape == twin.get_submodule(path).weight.shape
        penalty = layer.weight.abs().sum()
        assert near(penalty, twin.get_submodule(path).weight.abs().sum())
        penalty.backward()
