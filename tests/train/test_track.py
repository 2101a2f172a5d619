"""Trackers of accelerate hear each entry of a history."""

import pytest

from bondwise.errors import MissingExtraError
from bondwise.train import track
from bondwise.train.recipe import Healing
from bondwise.train.track import tracking

tracker = pytest.importorskip("accelerate.tracking")


class Notebook(tracker.GeneralTracker):
    name, requires_logging_directory = "notebook", False

    def __init__(self):
        super().__init__()
        self.lines, self.config, self.ended = [], {}, False

    @property
    def tracker(self):
        return self.lines

    def store_init_configuration(self, values):
        self.config = values

    def log(self, values, step=None, **_named):
        self.lines.append((step, values))

    def finish(self):
        self.ended = True


def test_a_tracker_hears_the_recipe_and_every_step(tmp_path):
    notebook = Notebook()
    with tracking(notebook, tmp_path, Healing(steps=3)) as tell:
        tell({"step": 0, "perplexity": 9.0})
        tell({"step": 1, "loss": 0.5})
    assert notebook.lines == [(0, {"perplexity": 9.0}), (1, {"loss": 0.5})]
    assert notebook.config["train"] == "all"
    assert notebook.config["steps"] == 3
    assert notebook.ended


@pytest.mark.parametrize("kind", ["tensorboard", "nosuchtracker"])
def test_a_tracker_that_is_not_there_names_the_extra(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(track, "find_spec", lambda name: None if name != "accelerate" else object())
    with (
        pytest.raises(MissingExtraError, match=rf"{kind} is not installed.*bondwise\[heal\]"),
        tracking(kind, tmp_path, Healing(steps=1)),
    ):
        pass
