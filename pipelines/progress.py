"""Progress on a terminal's stderr: one bar per stage, with the latest figures and the time left."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

__all__ = ["ConsoleListener", "console_listener"]

_LINE_EVERY_S = 15.0
_STABLE_STEPS = 3


class ConsoleListener:
    """Draws what it hears; never cancels.

    Args:
        progress: Where the bars are.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}
        self._figures: dict[str, float] = {}
        self._totals: dict[str, int] = {}
        self._first: dict[str, tuple[int, float]] = {}
        self._told_s = time.monotonic()

    def started(self, stage: str, total: int) -> None:
        """Add the stage's bar, or set it back to nothing."""
        self._totals[stage] = total
        self._first.pop(stage, None)
        self._told_s = time.monotonic()
        if stage in self._tasks:
            self._progress.reset(self._tasks[stage], total=total)
        else:
            self._tasks[stage] = self._progress.add_task(escape(stage), total=total, figures="")

    def advanced(self, stage: str, done: int) -> None:
        """Move the stage's bar; where there are no bars, write a line now and then."""
        now = time.monotonic()
        total = self._totals.get(stage, done)
        # the first step also compiles kernels and fills caches: it tells nothing of the others
        first, first_s = self._first.setdefault(stage, (done, now))
        if self._progress.disable and done < total and now - self._told_s > _LINE_EVERY_S:
            self._told_s = now
            left = "measuring how long it takes"
            if done - first >= _STABLE_STEPS:
                left_s = (now - first_s) / (done - first) * (total - done)
                left = f"about {left_s:.0f} s left"
            self.noted(f"{stage}: {done} of {total}, {left}")
        if stage in self._tasks:
            self._progress.update(self._tasks[stage], completed=done)

    def measured(self, name: str, value: float) -> None:
        """Show the figure beside the first unfinished bar."""
        self._figures[name] = value
        text = "  ".join(f"{key} {figure:.3f}" for key, figure in self._figures.items())
        for task in self._progress.tasks:
            if not task.finished:
                self._progress.update(task.id, figures=text)
                return

    def noted(self, message: str) -> None:
        """Print a line above the bars."""
        self._progress.console.print(message, markup=False, highlight=False, soft_wrap=True)

    def cancelled(self) -> bool:
        """Go on."""
        return False


@contextmanager
def console_listener() -> Iterator[ConsoleListener]:
    """Bars on stderr for as long as the block runs; plain lines where stderr is no terminal."""
    console = Console(stderr=True)
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[figures]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    with progress:
        yield ConsoleListener(progress)
