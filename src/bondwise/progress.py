"""How far a long call has come: bars with the time left, and how long each step took.

Bars are on standard error; where there is no terminal they are plain lines.
"""

import resource
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, Task, TaskID, TextColumn
from rich.progress import Progress as RichProgress
from rich.text import Text

Progress = Callable[[str, int, int], None]  # a stage, how much of it is done, and of how much
_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def silent(stage: str, done: int, total: int) -> None:
    """A progress that says nothing."""


class _Time(ProgressColumn):
    """What is left of a stage, or what it took."""

    def render(self, task: Task) -> Text:
        if task.finished:
            return Text(f"{_clock(task.finished_time)} taken", "dim")
        left = task.time_remaining
        return Text("" if left is None else f"{_clock(left)} left", "cyan")


class _Count(ProgressColumn):
    """Done and total; nothing for a stage of one step."""

    def render(self, task: Task) -> Text:
        alone = task.total is None or task.total == 1
        return Text("" if alone else f"{task.completed:.0f}/{task.total:.0f}", justify="right")


class Bars:
    """A bar per stage; calling it moves the bar of that stage.

    >>> with Bars(quiet=True) as bars:
    ...     bars("fit", 1, 2)
    """

    def __init__(self, quiet: bool = False) -> None:
        # This very stream: while libraries are kept quiet, sys.stderr is another one.
        self._console = Console(file=sys.stderr, quiet=quiet)
        self._bars = RichProgress(
            TextColumn("{task.description:<26}"),
            BarColumn(bar_width=24),
            _Count(),
            _Time(),
            TextColumn("{task.fields[said]}", style="dim"),
            console=self._console,
            disable=quiet or not self._console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Move the bar of a stage to ``done`` of ``total``; one of a single step only pulses.

        A stage that goes back begins anew, and so does its time.
        """
        whole = None if total == 1 and not done else total
        if stage not in self._tasks:
            self._tasks[stage] = self._bars.add_task(stage, total=whole, said="")
        task = self._bars.tasks[self._tasks[stage]]
        if done < task.completed:
            self._bars.reset(task.id, total=whole, said="")
        self._bars.update(task.id, completed=done, total=whole)
        if done == total and not self._console.is_terminal:
            steps = "" if total == 1 else f"{total} steps, "
            self._console.print(f"{stage}: {steps}{task.elapsed:.1f} s", highlight=False)

    def say(self, stage: str, text: str, *, line: bool = False) -> None:
        """Put a few words beside the bar of a stage; without a terminal only where asked."""
        if stage in self._tasks:
            self._bars.update(self._tasks[stage], said=text)
        if line and not self._console.is_terminal:
            self._console.print(f"{stage}: {text}", highlight=False)

    def __enter__(self) -> "Bars":
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bars.stop()


def _clock(seconds: float | int | None) -> str:
    """Minutes and seconds.

    >>> _clock(7.2), _clock(191.0), _clock(4000.0)
    ('0:07', '3:11', '1:06:40')
    """
    minutes, rest = divmod(round(seconds or 0), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


@dataclass
class Steps:
    """A list of named steps with seconds and peak bytes, filled as they run: the clock of reports.

    >>> steps = Steps()
    >>> with steps("fit"):
    ...     pass
    >>> steps.done[0]["name"]
    'fit'
    """

    done: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])

    @contextmanager
    def __call__(self, name: str, progress: Progress = silent) -> Generator[None]:
        """Time what happens inside; nothing is noted of a step that fails.

        A ``progress`` is told of it as of a stage of one step; leave it out where the stages inside
        tell of themselves.
        """
        _forget_peak()
        start = time.perf_counter()
        progress(name, 0, 1)
        yield
        progress(name, 1, 1)
        seconds = time.perf_counter() - start
        self.done.append({"name": name, "seconds": seconds, "peak_bytes": peak_bytes()})


def peak_bytes() -> int:
    """Most resident memory so far (on Linux: since the last step began)."""
    with suppress(OSError, StopIteration):
        lines = _STATUS.read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _forget_peak() -> None:
    with suppress(OSError):
        _RESET.write_text("5")
