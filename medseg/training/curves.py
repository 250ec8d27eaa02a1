"""The course of a run as a picture: loss, validation Dice of every structure, learning rate."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from PIL import Image, ImageDraw, ImageFont

__all__ = ["Curves", "progress_png"]

_WIDTH_PX, _PANEL_PX, _LEFT_PX, _RIGHT_PX, _TOP_PX, _BOTTOM_PX = 1000, 250, 70, 190, 30, 26
_SCALE = 2  # drawn twice as large and brought down, so that lines are smooth
_POINTS = 1500
_INK, _GRID, _PAPER, _PALE = (35, 35, 40), (225, 227, 231), (255, 255, 255), (176, 200, 230)
# Okabe and Ito's colours, told apart by everyone
_COLOURS = (
    (0, 114, 178),
    (230, 159, 0),
    (0, 158, 115),
    (204, 121, 167),
    (213, 94, 0),
    (86, 180, 233),
    (150, 140, 20),
    (110, 110, 110),
)
Point = tuple[float, float]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(slots=True)
class Curves:
    """The figures of a run, step by step.

    Args:
        labels: Names of the structures or regions.
    """

    labels: tuple[str, ...]
    losses: list[Point] = field(default_factory=list)
    rates: list[Point] = field(default_factory=list)
    validations: list[dict[str, float | int]] = field(default_factory=list)

    def add_rows(self, rows: Iterable[Mapping[str, str | float | int]]) -> None:
        """Take in rows of the log, as numbers or as text."""
        for row in rows:
            step = int(row["step"])
            if row.get("loss", "") != "":
                self.losses.append((step, float(row["loss"])))
                self.rates.append((step, float(row["learning_rate"])))
            else:
                figures: dict[str, float | int] = {
                    "step": step,
                    "epoch": int(row["epoch"]),
                    "seconds": float(row["seconds"]),
                }
                for name in ("dice_mean", *(f"dice_{label}" for label in self.labels)):
                    text = row.get(name, "")
                    figures[name] = math.nan if text == "" else float(text)
                self.validations.append(figures)

    def dice(self, name: str) -> list[Point]:
        """Steps and Dice of a structure, or of ``mean``."""
        return [(row["step"], row[f"dice_{name}"]) for row in self.validations]


def progress_png(curves: Curves) -> bytes:
    """Draw three panels, one under another: loss, validation Dice, learning rate.

    The loss is shown as it is, pale, and as a running mean over a fiftieth of the steps. Values
    that are not finite are left out.

    Returns:
        A PNG file.
    """
    last = max([1.0, *(step for step, _ in curves.losses)])
    names = [*curves.labels][: len(_COLOURS) * 2]
    dice = [
        (name, _COLOURS[number % len(_COLOURS)], curves.dice(name), 2)
        for number, name in enumerate(names)
    ]
    if len(curves.labels) > 1:
        dice.append(("mean", _INK, curves.dice("mean"), 4))
    smooth = _running_mean(curves.losses)
    panels: list[tuple[str, list[tuple[str, tuple[int, int, int], list[Point], int]], bool]] = [
        (
            "training loss",
            [("step", _PALE, curves.losses, 1), ("running mean", _COLOURS[0], smooth, 4)],
            False,
        ),
        ("validation Dice", dice, True),
        ("learning rate", [("rate", _COLOURS[4], curves.rates, 3)], False),
    ]
    canvas = Image.new("RGB", (_WIDTH_PX * _SCALE, len(panels) * _PANEL_PX * _SCALE), _PAPER)
    draw = ImageDraw.Draw(canvas)
    for number, (title, lines, unit) in enumerate(panels):
        _Panel(draw, number * _PANEL_PX, last, lines, unit).paint(title)
    picture = canvas.resize((_WIDTH_PX, len(panels) * _PANEL_PX), Image.Resampling.BOX)
    stream = io.BytesIO()
    picture.save(stream, format="PNG")
    return stream.getvalue()


@dataclass(slots=True)
class _Panel:
    draw: ImageDraw.ImageDraw
    top_px: int
    last_step: float
    lines: Sequence[tuple[str, tuple[int, int, int], list[Point], int]]
    unit: bool

    def paint(self, title: str) -> None:
        font = ImageFont.load_default(12 * _SCALE)
        low, high = self._range()
        left, right = _LEFT_PX, _WIDTH_PX - _RIGHT_PX
        top, bottom = self.top_px + _TOP_PX, self.top_px + _PANEL_PX - _BOTTOM_PX
        self._text((left, self.top_px + 8), title, font)
        for value in _ticks(low, high):
            y = bottom - (value - low) / (high - low) * (bottom - top)
            self._line([(left, y), (right, y)], _GRID, 1)
            self._text((left - 8, y), f"{value:.4g}", font, anchor="rm")
        for value in _ticks(0, self.last_step):
            x = left + value / self.last_step * (right - left)
            self._text((x, bottom + 12), f"{value:g}", font, anchor="mm")
        for row, (name, colour, points, width) in enumerate(self.lines):
            placed = [
                (
                    left + step / self.last_step * (right - left),
                    bottom - (min(max(value, low), high) - low) / (high - low) * (bottom - top),
                )
                for step, value in _thinned(points)
                if math.isfinite(value)
            ]
            if len(placed) > 1:
                self._line(placed, colour, width)
            for x, y in placed if len(placed) < 30 else placed[-1:]:
                self._dot(x, y, colour, 2 if width > 1 else 1)
            y = top + 16 * row
            if y < bottom:
                finite = [value for _, value in points if math.isfinite(value)]
                tail = f"  {finite[-1]:.4g}" if finite else ""
                self._line([(right + 12, y), (right + 28, y)], colour, max(width, 3))
                self._text((right + 34, y), _short(name) + tail, font, anchor="lm")

    def _range(self) -> tuple[float, float]:
        if self.unit:
            return 0.0, 1.0
        finite = sorted(v for *_, points, _ in self.lines for _, v in points if math.isfinite(v))
        if not finite:
            return 0.0, 1.0
        # a few outliers at the start of a long run would flatten the rest
        low, high = finite[0], finite[min(len(finite) - 1, math.ceil(0.999 * len(finite)))]
        low = min(low, 0.0)
        return (low, high) if high > low else (low, low + 1.0)

    def _line(self, points: Sequence[Point], colour: tuple[int, int, int], width: int) -> None:
        scaled = [(x * _SCALE, y * _SCALE) for x, y in points]
        self.draw.line(scaled, fill=colour, width=width, joint="curve")

    def _dot(self, x: float, y: float, colour: tuple[int, int, int], radius: int) -> None:
        x, y, radius = x * _SCALE, y * _SCALE, radius * _SCALE
        self.draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)

    def _text(self, at: Point, text: str, font: Font, anchor: str = "la") -> None:
        self.draw.text((at[0] * _SCALE, at[1] * _SCALE), text, _INK, font, anchor=anchor)


def _running_mean(points: Sequence[Point]) -> list[Point]:
    finite = [(step, value) for step, value in points if math.isfinite(value)]
    width = max(1, len(finite) // 50)
    means, total = [], 0.0
    for number, (step, value) in enumerate(finite):
        total += value
        if number >= width:
            total -= finite[number - width][1]
        means.append((step, total / min(width, number + 1)))
    return means


def _thinned(points: Sequence[Point]) -> Sequence[Point]:
    step = max(1, len(points) // _POINTS)
    return points if step == 1 else [*points[::step], points[-1]]


def _ticks(low: float, high: float) -> list[float]:
    """Four to ten round values within a range.

    >>> _ticks(0, 1)
    [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    rough = (high - low) / 7
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def _short(name: str) -> str:
    return name if len(name) <= 17 else f"{name[:16]}…"
