"""One small protocol for progress, cancelling and log lines.

Library code tells a :class:`Listener` what happens; the command line draws bars from it, a viewer
fills its activity dock, tests record it. Nothing in the library prints.
"""

from __future__ import annotations

from typing import Protocol

__all__ = ["Cancelled", "Listener", "Silent"]


class Cancelled(Exception):  # noqa: N818 - a decision of the user, not an error
    """The listener asked to stop; what was finished before is kept."""


class Listener(Protocol):
    """What a long operation reports to."""

    def started(self, stage: str, total: int) -> None:
        """A stage of ``total`` steps begins."""

    def advanced(self, stage: str, done: int) -> None:
        """``done`` steps of the stage are finished."""

    def measured(self, name: str, value: float) -> None:
        """A figure worth showing now, such as the loss."""

    def noted(self, message: str) -> None:
        """A line for the log; never patient data."""

    def cancelled(self) -> bool:
        """Whether the user wants to stop; asked between steps."""
        ...


class Silent:
    """The listener that hears nothing and never cancels."""

    def started(self, stage: str, total: int) -> None:
        """Ignore it."""

    def advanced(self, stage: str, done: int) -> None:
        """Ignore it."""

    def measured(self, name: str, value: float) -> None:
        """Ignore it."""

    def noted(self, message: str) -> None:
        """Ignore it."""

    def cancelled(self) -> bool:
        """Go on."""
        return False
