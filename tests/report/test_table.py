"""Tables fit 80 columns and say what the report says."""

import re

from bondwise.report.lists import changes
from bondwise.report.table import evaluation, render, samples, summary


def text_of(renderable):
    """The text, which no terminal of 80 columns cuts or wraps."""
    text = render(renderable)
    assert text == render(renderable, width=200)
    assert max(map(len, text.splitlines()), default=0) <= 80
    assert "\x1b" not in text  # readable without colour
    return text


def test_no_line_is_wider_than_80_columns_and_none_wraps(written):
    for name, (report, _) in written.items():
        text_of(summary(report))
        text_of(samples(report))
        text_of(changes(report))
        if name in ("language_model", "odd_networks", "untouched"):
            text_of(changes(report, full=True))


def test_summary_holds_every_measured_number(demo):
    text = text_of(summary(demo))
    assert max(map(len, text.splitlines())) == 80 - 1  # its rule; the edge is blank
    for number in ("29.91", "44.52", "1.488", "1.451 to 1.527", "0.412", "68.7 %"):
        assert number in text
    for number in ("24.10", "40.77", "0.521", "64.1 %", "134.5 M", "269.0 MB", "6 min 22 s"):
        assert number in text
    for step in demo["steps"]:
        assert re.search(rf"^ +{step['name']} ", text, re.MULTILINE)
    times = demo["bytes"]["after"] / demo["bytes"]["source_file"]
    assert times > 2
    assert f"{times:.2f} times the size of the file it came from" in text
    assert "smaller" not in text


def test_an_encoder_shows_its_ratings_and_no_perplexity(written):
    text = text_of(summary(written["sentence_encoder"][0]))
    assert re.search(r"Lee 2005 ratings \(Pearson\) +0\.656 +0\.641", text)
    assert "perplexity" not in text


def test_what_was_not_measured_is_not_shown(written):
    text = text_of(summary(written["bare"][0]))
    assert "perplexity" not in text
    assert "all steps" not in text
    assert "targeted numbers" in text


def test_the_same_weight_of_all_blocks_is_one_line_and_what_is_left_alone_says_why(demo):
    text = text_of(changes(demo))
    ranks = [w["ranks"]["a"] for w in demo["weights"] if w["name"].endswith("v_proj")]
    (line,) = [line for line in text.splitlines() if "v_proj" in line]
    assert "x30" in line
    assert f"lowrank {min(ranks)}..{max(ranks)}" in line
    worst = max(w["error"] for w in demo["weights"] if w["name"].endswith("v_proj"))
    assert f"{worst:.3f}" in line
    left = r"^lm_head +Linear +49152x576 +tied to model.embed_tokens$"
    assert re.search(left, text, re.MULTILINE)


def test_weights_that_differ_in_format_or_shape_keep_lines_of_their_own(demo):
    first = next(w for w in demo["weights"] if w["name"].endswith("0.self_attn.v_proj"))
    first |= {"format": "mpo", "ranks": {"a": 16}}
    lines = [line for line in text_of(changes(demo)).splitlines() if "v_proj" in line]
    assert ["mpo 16" in line for line in lines] == [True, False]
    assert "x29" in lines[1]


def test_full_gives_every_weight_its_line(demo):
    text = text_of(changes(demo, full=True))
    names = [line.split()[0] for line in text.splitlines() if "lowrank" in line]
    assert (len(names), "".join(names).count("*")) == (210, 0)


def test_a_dry_run_needs_no_bytes_and_shows_no_error_column(demo):
    keys = ("source", "keep", "kept", "seed", "targeted")
    weights = [weight | {"error": None} for weight in demo["weights"]]
    dry = {key: demo[key] for key in keys} | {"weights": weights}
    text = text_of(changes(dry))
    assert "error" not in text
    assert "q_proj" in text


def test_markup_in_names_is_text(demo):
    demo["source"] = "[bold]model[/bold]"
    demo["steps"][0]["name"] = "[red]fetch"
    demo["evaluation"][0]["text"] = "[/]"
    demo["weights"][1]["name"] = "[link=x]q[/link]"
    text = text_of(summary(demo))
    assert all(part in text for part in ("[bold]model[/bold]", "[red]fetch", "[/]"))
    assert "[link=x]q[/link]" in text_of(changes(demo))


def test_one_model_alone_has_no_ratio():
    entry = {"text": "held.txt", "windows": 64, "length": 512, "before": {}}
    entry |= {"after": {"perplexity": 31.25}}
    text = text_of(evaluation({"source": "dir", "evaluation": [entry]}))
    assert re.search(r"perplexity \(64 windows of 512 tokens\) +31\.25$", text, re.MULTILINE)
    assert "KL" not in text
