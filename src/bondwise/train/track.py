"""The history of a healing, sent to the trackers of accelerate: TensorBoard and others."""

from collections.abc import Generator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bondwise.errors import MissingExtraError
from bondwise.train.loop import Callback, Entry
from bondwise.train.recipe import Healing

PACKAGES = {"tensorboard": ("tensorboard", "tensorboardX")}  # any of them


@contextmanager
def tracking(
    kind: Any, folder: Path, recipe: Healing, accelerator: Any = None
) -> Generator[Callback]:
    """What a tracker is told the history by, as the ``tell`` of `bondwise.heal.heal.heal`.

    Args:
        kind: a tracker of accelerate by name, such as "tensorboard", or one of one's own.
        folder: where it writes to.
        recipe: kept beside the history.
        accelerator: the one that is there; None makes one.

    Raises:
        MissingExtraError: accelerate or the tracker is not installed.
    """
    _need("accelerate", ("accelerate",))
    if isinstance(kind, str):
        _need(kind, PACKAGES.get(kind, (kind,)))
    from accelerate import Accelerator  # only where a tracker is asked for

    own = accelerator or Accelerator(log_with=kind, project_dir=str(folder))
    plain = {k: ",".join(v) if isinstance(v, list) else v for k, v in recipe.to_json().items()}
    begun = list[str]()

    def tell(entry: Entry) -> None:
        if not begun:  # nothing is left of a run that was refused
            begun.append("heal")
            own.init_trackers("heal", config={k: v for k, v in plain.items() if v is not None})
        own.log({k: v for k, v in entry.items() if k != "step"}, step=entry["step"])

    try:
        yield tell
    finally:
        if begun:
            own.end_training()


def _need(what: str, packages: tuple[str, ...]) -> None:
    if not any(find_spec(package) for package in packages):
        raise MissingExtraError(f"{what} is not installed; run: pip install 'bondwise[heal]'.")
