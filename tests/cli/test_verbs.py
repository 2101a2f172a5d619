"""The verbs on tiny models, end to end; a few as processes of their own, as a user starts them."""

import json

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForCausalLM

import tiny
from bondwise.bench.count import networks
from bondwise.checkpoint.loading import load_model
from bondwise.compress.effort import EFFORT
from bondwise.report.page import data as embedded
from verbs import bondwise, documented, files, process, weights

FEW = ("--windows", 8, "--length", 32)
WRITTEN = {"bondwise.json", "config.json", "model.safetensors", "recipe.yaml", "report.json"}
WRITTEN |= {"report.html", "tokenizer.json", "tokenizer_config.json"}
LOADS_PLAIN = """
import sys, torch
from safetensors.torch import save_file
from transformers import AutoModel, AutoModelForCausalLM
ids = torch.arange(24).view(2, 12)
for folder, kind in {folders!r}:
    model = getattr(sys.modules[__name__], kind).from_pretrained(folder, dtype="auto").eval()
    with torch.no_grad():
        out = model(ids)[0]
    save_file({{"out": out.float().contiguous()}}, folder + "/out.safetensors")
assert not any(name.partition(".")[0].startswith("bondwise") for name in sys.modules)
print("loaded")
"""
AUTO = dict.fromkeys(("llama", "gpt2", "tied"), AutoModelForCausalLM) | {"bert": AutoModel}


@pytest.fixture
def compressed(capsys, shelf):
    """What compress says of a model of the shelf at keep 0.6, shown the text."""

    def run(kind, out, *more):
        usual = ("--data", shelf / "text.txt", "--out", out, "--keep", 0.6, *FEW)
        said = bondwise(capsys, "compress", shelf / kind, *usual, *more)
        assert said.code == 0, said.err
        return said

    return run


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """A place for what several tests look at, and what was said as it was made."""
    return tmp_path_factory.mktemp("made") / "new", {}


@pytest.fixture
def small(made, compressed):
    """A tensorized llama, made once with all the work that is usual."""
    folder, said = made
    if "small" not in said:
        said["small"] = compressed("llama", folder / "llama")
    return folder / "llama"


@pytest.fixture
def both(capsys, made, compressed, monkeypatch):
    """A model made small and merged again with little work, once: folders and what was said."""

    def run(kind):
        out, merged = (made[0].parent / f"{kind}{end}" for end in ("-small", "-merged"))
        if kind not in made[1]:
            monkeypatch.setitem(EFFORT, "fast", tiny.BRIEF)
            said = compressed(kind, out, "--json", "-q")
            made[1][kind] = said, bondwise(capsys, "merge", out, "--out", merged, "--json", "-q")
        return out, merged, *made[1][kind]

    return run


def output(model):
    with torch.no_grad():
        return model(torch.arange(24).view(2, 12))[0].float()


def test_compress_writes_a_folder_that_holds_everything(small, made):
    said = made[1]["small"]
    assert set(files(small)) - {"generation_config.json"} == WRITTEN
    assert list(files(small.parent)) == ["llama", *(f"llama/{name}" for name in files(small))]
    lines = said.out.splitlines()
    changed = networks(load_model(small).model)
    assert lines[:2] == ["llama", f"{changed} of 21 weights as tensor networks"]
    assert changed > 7
    assert max(map(len, lines[:-2])) <= 80  # but for the lines that name folders
    for part in ("targeted numbers (asked to keep 0.6)", "on disk", "calibrate", "all steps"):
        assert part in said.out
    assert "perplexity" not in said.out
    assert f"Wrote {small}: checkpoint, recipe.yaml, report.json and report.html." in lines
    assert lines[-1].startswith(f"Measure what it cost: bondwise eval {small} --vs ")
    stages = [line.partition(":")[0] for line in said.err.splitlines()]
    assert stages == ["load", "draw", "calibrate", "survey", "fit"]


def test_json_is_the_report_and_all_that_is_on_standard_output(shelf, both):
    out, _, said, _ = both("llama")
    written = json.loads((out / "report.json").read_text())
    stages = ["load", "draw", "calibrate", "survey", "fit", "save"]
    assert [step["name"] for step in said.json["steps"]] == stages
    assert {**said.json, "steps": []} == {**written, "steps": []}
    assert set(said.json) == documented("compress")
    assert all(set(weight) == documented("Each of weights") for weight in said.json["weights"])
    assert said.err.splitlines()[0].startswith("Wrote ")
    assert said.json["source"] == str(shelf / "llama")
    assert said.json["bytes"]["after"] == (out / "model.safetensors").stat().st_size
    assert embedded(written) in (out / "report.html").read_text()
    stored = load_file(out / "model.safetensors")
    guards = {name for name, t in stored.items() if t.numel() == 1}
    numbers = sum(t.numel() for name, t in stored.items() if name not in guards)
    positions = sum(t.numel() for name, t in stored.items() if name.endswith("_extra_state"))
    assert numbers - positions == said.json["parameters"]["after"]


def test_a_recipe_repeats_the_weights_bit_for_bit_from_anywhere(
    capsys, shelf, brief, tmp_path, monkeypatch
):
    monkeypatch.chdir(shelf)  # relative paths: the recipe must not depend on where it is read
    usual = ("compress", "llama", "--data", "text.txt", *FEW, "--keep", 0.55, "-q")
    usual += ("--ignore", "o_proj", "--ignore", "*.0.*", "--targets", "re:attn", "--targets", "mlp")
    for seed, name in ((3, "one"), (4, "other")):
        assert bondwise(capsys, *usual, "--seed", seed, "--out", tmp_path / name).code == 0
    monkeypatch.chdir(tmp_path)
    recipe = yaml.safe_load((tmp_path / "one" / "recipe.yaml").read_text())
    assert recipe["model"] == str(shelf / "llama")
    assert recipe["ignore"] == ["o_proj", "*.0.*"]
    assert recipe["targets"] == ["re:attn", "mlp"]
    again = bondwise(capsys, "compress", "--recipe", "one/recipe.yaml", "--out", "again", "--json")
    budgeted = [w for w in again.json["weights"] if w["reason"] in ("", "dense at this budget")]
    assert [w["name"] for w in budgeted] == [
        *(f"model.layers.1.self_attn.{name}_proj" for name in "qkv"),
        *(f"model.layers.1.mlp.{name}_proj" for name in ("gate", "up", "down")),
    ]
    assert any(w["action"] == "tensorize" for w in budgeted)
    one, again, other = (tmp_path / name for name in ("one", "again", "other"))
    assert weights(again) == weights(one) != weights(other)
    assert (again / "recipe.yaml").read_text() == (one / "recipe.yaml").read_text()

    flags = ("--out", "changed", "--keep", 0.9, "--dtype", "float16", "--length", 256, "--json")
    said = bondwise(capsys, "compress", "--recipe", "one/recipe.yaml", *flags).json
    note = "windows of 64 tokens were shown: the model has no more positions"
    assert any(note in told for told in said["notes"])
    assert (said["keep"], said["recipe"]["dtype"]) == (0.9, "float16")
    stored = load_file("changed/model.safetensors")
    assert {t.dtype for name, t in stored.items() if "core" in name} == {torch.float16}
    assert load_model("changed").model.dtype == torch.float16


def thorough(*values):
    return [pytest.param(value, marks=pytest.mark.thorough) for value in values]


SWAPS = "o b a, a i -> (o) (b i)"


@pytest.mark.parametrize("name", [SWAPS, *thorough("mpo", "kron")])
def test_formats(compressed, brief, tmp_path, monkeypatch, name):
    monkeypatch.setitem(EFFORT, "best", tiny.BRIEF)
    flags = ("--format", name, "--effort", "best", "--prefer", "size", "--unit", "params")
    said = compressed("gpt2", tmp_path / "o", "-q", "--json", *flags)
    assert {w["format"] for w in said.json["weights"]} == {name, None}
    assert networks(load_model(tmp_path / "o").model) == 8


@pytest.mark.parametrize("kind", ["llama", "bert", *thorough("gpt2", "tied")])
def test_every_family_is_compressed_merged_and_measured(capsys, shelf, both, kind):
    compressed, merged, said, told = both(kind)
    assert 0.588 <= said.json["kept"] <= 0.6
    assert "eval" not in said.err if kind == "bert" else "bondwise eval" in said.err
    model = load_model(compressed).model
    changed = [w["name"] for w in said.json["weights"] if w["action"] == "tensorize"]
    assert networks(model) == len(changed) > 4
    auto = AUTO[kind].from_pretrained(compressed, dtype="auto").eval()
    assert torch.equal(output(model), output(auto))
    assert model.dtype == (torch.bfloat16 if kind == "tied" else torch.float32)
    if kind == "tied":
        assert model.lm_head.weight is model.model.embed_tokens.weight
        reasons = [w["reason"] for w in said.json["weights"] if "embed" in w["name"]]
        assert reasons == ["tied with lm_head"]
    assert set(told.json) == documented("merge")
    dense = load_model(shelf / kind).model
    assert told.json["parameters"] == sum(p.numel() for p in dense.parameters())
    assert not networks(load_model(merged).model)
    assert "quantization_config" not in json.loads((merged / "config.json").read_text())
    if kind == "bert":
        return
    args = ("--data", shelf / "text.txt", "--windows", 8, "--length", 48, "--json", "-q")
    report = bondwise(capsys, "eval", compressed, "--vs", merged, *args).json
    (entry,) = report["evaluation"]
    assert (set(report), set(entry)) == (documented("eval"), documented("The evaluation"))
    assert entry["after"]["kl"] == pytest.approx(0, abs=1e-3)
    assert entry["after"]["top1"] > 0.95
    (entry,) = bondwise(capsys, "eval", compressed, "--vs", shelf / kind, *args).json["evaluation"]
    (alone,) = bondwise(capsys, "eval", compressed, *args).json["evaluation"]
    (dense,) = bondwise(capsys, "eval", shelf / kind, *args).json["evaluation"]
    assert alone["after"]["perplexity"] == pytest.approx(entry["after"]["perplexity"])
    assert dense["after"]["perplexity"] == pytest.approx(entry["before"]["perplexity"])
    assert (alone["windows"], alone["length"], alone["before"]) == (8, 48, {})


def test_plain_transformers_loads_merged_models_and_gives_the_same(shelf, both):
    found = {kind: both(kind)[:2] for kind in ("llama", "gpt2", "bert")}
    folders = [(str(merged), AUTO[kind].__name__) for kind, (_, merged) in found.items()]
    done = process("-c", LOADS_PLAIN.format(folders=folders), TORCH_DEVICE_BACKEND_AUTOLOAD="0")
    assert done.stdout == "loaded\n", done.stderr
    for kind, (compressed, merged) in found.items():
        plain = load_file(merged / "out.safetensors")["out"]
        own, dense = (output(load_model(at).model) for at in (compressed, shelf / kind))
        torch.testing.assert_close(plain, own, atol=2e-5, rtol=1e-4)
        assert not torch.allclose(plain, dense, atol=1e-3)  # it is the compressed one


def test_force_replaces_ours_and_without_text_the_summary_says_so(
    capsys, small, shelf, brief, tmp_path
):
    out = tmp_path / "out"
    repeat = ("compress", shelf / "llama", "--out", out, "-q")
    said = bondwise(capsys, *repeat)
    assert (said.code, said.err) == (0, "")
    assert said.out.startswith("llama\n")
    assert "Note: no text came (--data), so the fit knows the weights alone" in said.out
    assert "calibrate" not in said.out
    assert bondwise(capsys, *repeat).code == 1
    (out / "stale.txt").write_text("of the last run")
    assert bondwise(capsys, *repeat, "--keep", 0.9, "--force").code == 0
    assert not (out / "stale.txt").exists()
    assert yaml.safe_load((out / "recipe.yaml").read_text())["keep"] == 0.9
    assert bondwise(capsys, "merge", small, "--out", out, "-q", "--force").code == 0
    assert not networks(load_model(out).model)
    assert list(tmp_path.iterdir()) == [out]


def test_plan_shows_every_weight_and_changes_nothing(capsys, shelf, small):
    before = files(shelf)
    said = bondwise(capsys, "plan", shelf / "llama", "--keep", 0.6, "--ignore", "nosuch")
    assert said.code == 0
    assert max(map(len, said.out.splitlines())) <= 80
    assert "model.layers.*.self_attn.q_proj x2" in said.out
    assert "the head is ignored by default" in said.out
    assert "Note: ignore pattern 'nosuch' matches nothing\n" in said.out
    assert "Note: cut alike; with --data" in said.out
    full = bondwise(capsys, "plan", shelf / "llama", "--keep", 0.6, "--full", "-q").out
    assert full.count("lowrank") == 14
    plan = bondwise(capsys, "plan", shelf / "llama", "--keep", 0.6, "--json").json
    assert len(plan["weights"]) == 21
    assert set(plan) == documented("plan")
    assert plan["targeted"]["after"] / plan["targeted"]["before"] == pytest.approx(plan["kept"])
    assert files(shelf) == before
    # the weights and the size of what compress does
    report = json.loads((small / "report.json").read_text())
    same = ("name", "kind", "shape", "before", "block")
    wanted, had = ([[w[k] for k in same] for w in r["weights"]] for r in (plan, report))
    assert had == wanted
    assert all(0.588 <= each["kept"] <= 0.6 for each in (plan, report))


def test_eval_names_both_models(capsys, shelf, small):
    args = ("--data", shelf / "text.txt", "--windows", 8)
    said = bondwise(capsys, "eval", small, "--vs", shelf / "gpt2", *args)
    assert said.code == 0
    lines = said.out.splitlines()
    assert lines[0] == "llama beside gpt2"
    assert lines[2].split() == ["gpt2", "llama", "ratio"]
    assert "perplexity (8 windows of 64 tokens)" in said.out  # as many as the model has positions
    for part in ("95 % interval", "KL divergence", "top-1 agreement"):
        assert part in said.out
    alone = bondwise(capsys, "eval", small, *args, "-q")
    assert (alone.code, alone.err) == (0, "")
    assert "ratio" not in alone.out
    assert max(map(len, alone.out.splitlines())) <= 80


@pytest.mark.thorough  # two processes take the peaks; the table is shown with the verb's own tests
def test_bench_names_both_models_in_80_columns(capsys, shelf, small):
    few = ("--prompt", 16, "--tokens", 4, "--repeats", 2, "--threads", 1)
    said = bondwise(capsys, "bench", small, "--vs", shelf / "llama", *few)
    assert said.code == 0
    lines = said.out.splitlines()
    assert lines[0] == "llama beside llama"
    assert lines[2].split() == ["llama", "llama", "ratio"]
    assert max(map(len, lines)) <= 80
    for part in ("decode of 4", "prefill of 16", "time to first", "peak memory", "in memory"):
        assert any(line.startswith(f" {part}") or f" {part} " in line for line in lines)
    assert "Medians of 2 runs in turns, lowest and highest; cpu, 1 thread, float32." in said.out
    assert "Note" not in said.out
    stages = [line.partition(":")[0] for line in said.err.splitlines()]
    assert stages == ["load", "warm up", "measure", "peak memory"]


def test_as_a_process_it_gives_the_same_bytes_and_clean_output(shelf, small, tmp_path):
    command = ("-m", "bondwise.cli", "compress", "--recipe", small / "recipe.yaml")
    done = process(*command, "--out", tmp_path / "again", "--json", "-q")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["kept"] <= 0.6
    assert done.stdout.count("\n") == 1
    assert done.stderr.startswith("Wrote ")
    assert done.stderr.count("\n") == 2
    assert weights(tmp_path / "again") == weights(small)
