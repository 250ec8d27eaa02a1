"""An evaluation on one page: figures with intervals, pictures of the worst, every case."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from medseg import NOTICE, __version__
from medseg.core import Label, LabelMap, LabelScheme, Volume
from medseg.studies.page import (
    SCRIPT,
    PictureBudget,
    escaped,
    in_words,
    is_empty,
    is_number,
    page_head,
    sort_key,
)
from medseg.studies.preview import Scene

__all__ = ["WorstCase", "difference_jpeg", "evaluation_page_html"]

_PICTURE_BYTES = 6 * 2**20
_BOTH, _MISSED, _FALSE = 1, 2, 3
_COLOURS = LabelScheme(
    "comparison",
    (
        Label(_BOTH, "in both", (120, 200, 120)),
        Label(_MISSED, "missed", (86, 180, 233)),
        Label(_FALSE, "false", (230, 90, 20)),
    ),
)


@dataclass(frozen=True, slots=True)
class WorstCase:
    """One picture of the page.

    Args:
        title: Case and structure; names no patient.
        figures: A line under it.
        jpeg: The picture; None where there is nothing to draw.
    """

    title: str
    figures: str
    jpeg: bytes | None


def difference_jpeg(
    prediction: LabelMap | None,
    reference: LabelMap,
    members: Sequence[int],
    image: Volume | None = None,
) -> bytes | None:
    """Three planes through the largest difference between two segmentations of one structure.

    Args:
        prediction: On the reference's grid; None draws everything as missed.
        reference: The truth.
        members: Label values of the structure.
        image: Drawn behind; None leaves that black.

    Returns:
        A JPEG file; None where neither has the structure.
    """
    theirs = np.isin(reference.data_ijk, members)
    ours = np.zeros_like(theirs) if prediction is None else np.isin(prediction.data_ijk, members)
    if not (ours.any() or theirs.any()):
        return None
    kinds = np.zeros(theirs.shape, dtype=np.uint8)
    kinds[ours & theirs] = _BOTH
    kinds[~ours & theirs] = _MISSED
    kinds[ours & ~theirs] = _FALSE
    grid = reference.grid
    behind = image or Volume(np.zeros((1, *grid.shape_ijk), dtype=np.uint8), grid)
    scene = Scene.of(behind, LabelMap(kinds, grid, _COLOURS))
    return scene.planes_round((_BOTH, _MISSED, _FALSE), fullest=(_MISSED, _FALSE), panel_px=180)


def evaluation_page_html(
    *,
    name: str,
    facts: Mapping[str, object],
    problems: Sequence[str],
    summary: Sequence[Mapping[str, object]],
    worst: Sequence[WorstCase],
    cases: Sequence[Mapping[str, object]],
    undrawn: Sequence[str] = (),
) -> str:
    """The page as self-contained HTML; every text is escaped, nothing is loaded.

    Args:
        name: Title of the page.
        facts: Rules and numbers of the evaluation.
        problems: Missing, failed and foreign cases, a sentence each.
        summary: Rows of the first table; keys are its columns.
        worst: Pictures in their order; together they take 6 MiB at most.
        cases: Rows of the last table.
        undrawn: Cases of which there is nothing to draw, a sentence each; they stand before the
            pictures, being worse.

    Returns:
        The text of the file, to be written as UTF-8.
    """
    budget = PictureBudget(_PICTURE_BYTES)
    listed = "".join(f"<li>{escaped(problem)}</li>" for problem in problems)
    rules = "".join(
        f"<tr><th scope=row>{escaped(key)}</th><td class=text>{escaped(in_words(value))}</td></tr>"
        for key, value in facts.items()
    )
    return "\n".join(
        (
            page_head(name),
            f"<h1>{escaped(name)}</h1><p class=notice>{escaped(NOTICE)}</p>",
            f"<ul>{listed}</ul>" if listed else "",
            "<h2>Means over cases</h2>",
            _table(summary),
            _pictures(worst, undrawn, budget),
            "<h2>Every case</h2><p class=quiet>Click a heading to sort.</p>",
            _table(cases),
            f"<h2>Rules</h2><div class=wide><table><tbody>{rules}</tbody></table></div>",
            f"<footer><p class=quiet>medseg {escaped(__version__)}. {escaped(NOTICE)}</p></footer>",
            f"</main><script>{SCRIPT}</script></body></html>\n",
        )
    )


def _pictures(worst: Sequence[WorstCase], undrawn: Sequence[str], budget: PictureBudget) -> str:
    if not (worst or undrawn):
        return ""
    listed = "".join(f"<li>{escaped(sentence)}</li>" for sentence in undrawn)
    heading = "<h2>Worst cases</h2>" + (f"<ul>{listed}</ul>" if listed else "")
    if not worst:
        return heading
    legend = ", ".join(
        f'<span class=chip style="background:#{bytes(label.rgb).hex()}"></span>{label.name}'
        for label in _COLOURS.labels
    )
    figures = []
    for each in worst:
        alt = f"Axial, coronal and sagittal plane where {each.title} differs most."
        picture = None if each.jpeg is None else budget.picture(each.jpeg, "jpeg", alt)
        figures.append(
            f"<figure><figcaption><strong>{escaped(each.title)}</strong><br>"
            f"{escaped(each.figures)}</figcaption>{picture or '<p class=quiet>No picture.</p>'}"
            "</figure>"
        )
    return (
        f"{heading}<p class=quiet>Axial, coronal and sagittal plane with the largest "
        f"difference from the reference. {legend}.</p><div class=cards>{''.join(figures)}</div>"
    )


def _table(rows: Sequence[Mapping[str, object]]) -> str:
    if not rows:
        return "<p>None.</p>"
    columns = list(rows[0])
    numeric = {column for column in columns if all(is_number(row[column]) for row in rows)}
    heads = "".join(
        f"<th scope=col{' class=number' if column in numeric else ''}>{escaped(column)}</th>"
        for column in columns
    )
    body = "".join(
        "<tr>" + "".join(_cell(row[column], column in numeric) for column in columns) + "</tr>"
        for row in rows
    )
    return (
        f"<div class=wide><table class=sortable><thead><tr>{heads}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )


def _cell(value: object, numeric: bool) -> str:
    text = "-" if is_empty(value) else in_words(value, whole=numeric)
    kind = "number" if numeric else "text"
    return f'<td class={kind} data-key="{escaped(sort_key(value))}">{escaped(text)}</td>'
