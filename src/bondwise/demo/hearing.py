"""The first demo: CREPE cut to a tenth and healed, beside itself and beside its smallest kin."""

import io
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bondwise.checkpoint.checkpoint import check_folder
from bondwise.checkpoint.loading import Loaded
from bondwise.compress.compress import Report, check_recipe, describe, run, threads, write
from bondwise.compress.recipe import Recipe
from bondwise.compress.swap import footprint
from bondwise.demo import crepe, pitch
from bondwise.demo.tones import RATE, Tones, lessons, melody, others, tones
from bondwise.demo.wav import framed, read_wav, resampled
from bondwise.heal.heal import heal
from bondwise.heal.verb import told
from bondwise.progress import Progress, Steps, silent
from bondwise.train.loop import Callback, no_callback

NAME = "CREPE, the pitch tracker"
CODE = "bondwise.demo.crepe:full"
TARGETS = ("convolution", "classifier")
CALIBRATION = "calibration.npy"
CALIBRATED, LESSONS = 256, 1536  # frames that are fitted on, and healed on
MINUTES, BATCH = 0.7, 32  # of healing, and frames of a step
LARGEST = 1e-4  # step of a dense weight
NOISE = 1 / 16  # of what is fitted on is noise alone: what is no tone must stay none
TESTED = 400  # sounds of a test
LONGEST = 10  # seconds of a wav that are heard
UNHEARD = 1_000_000  # a seed: nothing is calibrated or healed on what it draws


@dataclass(frozen=True)
class Sound:
    """What the two models' pitch is drawn of, and what it is called."""

    name: str
    samples: Tensor
    note: str = ""


def pitch_demo(
    out: Path,
    keep: float = 0.1,
    *,
    wav: Path | None = None,
    minutes: float | None = None,
    seed: int = 0,
    device: str = "cpu",
    dtype_name: str = "auto",
    overwrite: bool = False,
    progress: Progress = silent,
    tell: Callback = no_callback,
) -> Report:
    """CREPE at a tenth of its numbers: cut, healed, judged on tones that it never met.

    Args:
        out: the folder to write.
        keep: fraction of the numbers of its convolutions and its last layer that stays.
        wav: a sound whose pitch is drawn, as both hear it; None for a melody that is made here.
        minutes: of healing; None for `MINUTES`.
        seed: of what is calibrated and healed on.
        device: where to compute.
        dtype_name: what is stored.
        overwrite: replace a folder of ours.
        progress: is told a stage, what is done and what there is.
        tell: is told each step of the healing.

    Raises:
        BondwiseError: the folder is in the way, the sound cannot be read, or CREPE not be fetched.
    """
    count = torch.get_num_threads()
    data = str(out.absolute() / CALIBRATION)
    recipe = Recipe(
        CODE, keep, TARGETS, data=data, seed=seed, device=device, dtype=dtype_name, threads=count
    )
    check_recipe(recipe)
    check_folder(out, overwrite)
    sound = Sound("a melody made here", melody()) if wav is None else opened(wav)
    steps = Steps()
    with steps("fetch", progress):
        dense, tiny = crepe.full().to(device), crepe.tiny().to(device)
    minutes = MINUTES if minutes is None else minutes
    trial = _Trial(recipe, dense, tiny, sound, minutes, steps, progress, tell)
    return _demo(trial, out, overwrite)


def opened(path: Path) -> Sound:
    """The beginning of a wav, at 16 kHz.

    Raises:
        DataError: it is none.
    """
    samples, rate = read_wav(path)
    whole = len(samples) / rate
    note = f"only the first {LONGEST} of the {whole:.0f} s of {path.name} were heard"
    return Sound(
        path.name, resampled(samples[: LONGEST * rate], rate), note if whole > LONGEST else ""
    )


@dataclass(frozen=True)
class _Trial:
    """All that a run of the demo is about."""

    recipe: Recipe
    dense: nn.Module
    tiny: nn.Module
    sound: Sound
    minutes: float
    steps: Steps
    progress: Progress
    tell: Callback


def _demo(trial: _Trial, out: Path, overwrite: bool) -> Report:
    """Compress, heal, judge, write."""
    recipe, steps, progress = trial.recipe, trial.steps, trial.progress
    frames = lessons(CALIBRATED, recipe.seed, NOISE)
    result = run(recipe, trial.dense, frames, None, progress)
    steps.done.extend(dict(step) for step in result.steps)
    with steps("heal"), threads(recipe.threads):
        healed = heal(
            result.model, trial.dense, lessons(LESSONS, recipe.seed + 2), inplace=True,
            minutes=trial.minutes, rate=LARGEST, batch=BATCH, micro=BATCH, seed=recipe.seed,
            progress=progress, tell=trial.tell,
        )  # fmt: skip
    ours = healed.model.eval()
    report: Report = describe(replace(result, model=ours), recipe, None)
    report["name"] = NAME
    report["healing"] = told(healed, str(out), CODE, "tones of random harmonics in noise")
    models = {"CREPE": trial.dense, "ours": ours, "CREPE tiny": trial.tiny}
    report["pitch"] = judged(models, trial.sound, steps, progress)
    if trial.sound.note:
        report["notes"].append(trial.sound.note)
    kept = io.BytesIO()
    np.save(kept, frames.numpy())
    loaded = Loaded(trial.dense, None, code=CODE)
    return write(
        out, ours, loaded, report, recipe, steps,
        overwrite=overwrite, extra={CALIBRATION: kept.getvalue()},
    )  # fmt: skip


def suite(count: int) -> dict[str, tuple[str, Tones]]:
    """What is judged on, by a short name: in words, and the sounds."""
    return {
        "clean": ("tones of 8 harmonics", tones(count, UNHEARD)),
        "0 dB": ("the same in as much noise", tones(count, UNHEARD + 10, noise=0.0)),
        "others": ("sawtooth, square, plucked; half at 0 dB", others(count, UNHEARD + 20)),
    }


def judged(
    models: Mapping[str, nn.Module],
    sound: Sound,
    steps: Steps,
    progress: Progress,
) -> dict[str, Any]:
    """What the models are worth, as plain data: the first is dense, the second ours.

    Args:
        models: by name.
        sound: what the pitch of the first two is drawn of.
        steps: are told what it took.
        progress: is told what is done.
    """
    given = suite(TESTED)
    dense, ours, *_ = models
    with steps("listen"):
        sounds = {name: test for name, (_, test) in given.items()}
        errors = pitch.judged(models, sounds, partial(progress, "listen"))
        track = tracked({name: models[name] for name in (dense, ours)}, sound)
    with steps("measure the pace", progress):
        pace = pitch.pace([crepe.as_published(models[dense]), *models.values()])
    published, swift, *rest = pace.seconds
    return {
        "tests": [
            {"short": name, "what": what, "count": len(test.hertz)}
            for name, (what, test) in given.items()
        ],
        "models": [
            _entry(name, model, seconds, errors[name], errors[dense])
            for (name, model), seconds in zip(models.items(), [published, *rest], strict=True)
        ],
        "batch": pace.batch,
        "threads": pace.threads,
        "swift": swift,
        "track": track,
    }


def _entry(
    name: str,
    model: nn.Module,
    seconds: float,
    errors: Mapping[str, Tensor],
    dense: Mapping[str, Tensor],
) -> dict[str, Any]:
    held = footprint(model)
    return {
        "name": name,
        "numbers": held["numbers"],
        "bytes": held["bytes"],
        "shares": {test: pitch.share(error) for test, error in errors.items()},
        "differences": {
            test: list(pitch.paired(error, dense[test])) for test, error in errors.items()
        },
        "cents": float(next(iter(errors.values())).median()),
        "seconds": seconds,
    }


def tracked(models: Mapping[str, nn.Module], sound: Sound) -> dict[str, Any]:
    """The pitch of a sound over time, and how sure each model is of it."""
    frames = framed(sound.samples)
    lines: list[dict[str, Any]] = []
    for name, model in models.items():
        given = pitch.activations(model, frames)
        sure = given.amax(-1)
        heard = pitch.pitch(given).nan_to_num()
        lines.append({"name": name, "cents": heard.tolist(), "sure": sure.tolist()})
    return {"file": sound.name, "hop": pitch.HOP / RATE, "models": lines}
