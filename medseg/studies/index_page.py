"""All cases of a study on one page: pictures, volumes, states; sortable and filtered by state."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import quote

from medseg import NOTICE, __version__
from medseg.studies.doubt import Doubt
from medseg.studies.page import SCRIPT, escaped, in_words, page_head, sort_key

__all__ = ["CaseLine", "index_page_html"]

_FILTER = """
document.querySelectorAll("input.state").forEach(function(box){box.addEventListener("change",
function(){var shown={};document.querySelectorAll("input.state").forEach(function(b){
shown[b.value]=b.checked});document.querySelectorAll("tbody tr[data-state]").forEach(
function(row){row.hidden=!shown[row.dataset.state]})})});
"""
_STYLE = (
    "<style>body{max-width:none}td img{display:block;max-width:none}"
    ".filter label{margin-right:1rem}td.state{font-weight:600}</style>"
)


@dataclass(frozen=True, slots=True)
class CaseLine:
    """One case.

    Args:
        name: Its name.
        state: How far it is.
        code: Why it failed, or empty.
        message: The same as a sentence.
        seconds: How long it took; None if it never ended.
        attempts: Times that work on it began.
        volumes_ml: Volume of every structure that was measured.
        number: What its picture is asked for by.
        doubt: How doubtful it is, where that was asked for.
        review: What was said of it in review, or empty.
    """

    name: str
    state: str
    code: str
    message: str
    seconds: float | None
    attempts: int
    volumes_ml: Mapping[str, float]
    number: int
    doubt: Doubt | None = None
    review: str = ""


def index_page_html(
    lines: Sequence[CaseLine],
    structures: Sequence[str],
    *,
    counts: Mapping[str, int],
    codes: Mapping[str, int],
    thumbnail: Callable[[int], bytes | None],
    report: Callable[[str], str],
    exists: Callable[[str], bool],
    pages: Sequence[str],
    page: int,
) -> str:
    """A page of cases that loads nothing but itself.

    Args:
        lines: The cases of this page.
        structures: Columns of volumes.
        counts: State to number of cases, of the whole study.
        codes: Reason of failure to number of cases, likewise.
        thumbnail: Number of a case to a JPEG picture, or None.
        report: Name of a case to the name of its own page.
        exists: Whether a file of that name lies beside the page.
        pages: Names of all pages.
        page: Which of them this is.

    Returns:
        The text of the file, to be written as UTF-8.
    """
    total = sum(counts.values())
    boxes = "".join(
        f'<label><input type=checkbox class=state value="{escaped(state)}" checked> '
        f"{escaped(state)} ({count})</label>"
        for state, count in counts.items()
        if count
    )
    reasons = ", ".join(f"{escaped(code)} {count}" for code, count in codes.items())
    return "\n".join(
        part
        for part in (
            page_head("Segmented cases"),
            _STYLE,
            f"<h1>{total} case{'' if total == 1 else 's'}</h1>"
            f"<p class=notice>{escaped(NOTICE)}</p>",
            f"<p class=filter>Show: {boxes}</p>" if boxes else "",
            f"<p>Reasons: {reasons}</p>" if reasons else "",
            _links(pages, page),
            _table(lines, structures, thumbnail, report, exists),
            _links(pages, page),
            f"<footer><p class=quiet>medseg {escaped(__version__)}. {escaped(NOTICE)}</p></footer>",
            f"</main><script>{SCRIPT}{_FILTER}</script></body></html>\n",
        )
        if part
    )


def _links(pages: Sequence[str], page: int) -> str:
    if len(pages) < 2:
        return ""
    links = (
        f"<strong>{number + 1}</strong>"
        if number == page
        else f'<a href="{escaped(quote(name))}">{number + 1}</a>'
        for number, name in enumerate(pages)
    )
    return f"<p>Pages: {' '.join(links)}. Sorting and filter are for this page.</p>"


def _table(
    lines: Sequence[CaseLine],
    structures: Sequence[str],
    thumbnail: Callable[[int], bytes | None],
    report: Callable[[str], str],
    exists: Callable[[str], bool],
) -> str:
    review = ["review"] if any(line.review for line in lines) else []
    doubt = ["doubt"] if any(line.doubt is not None for line in lines) else []
    words = ["case", "state", "reason", *review]
    heads = [*words, *doubt, *(f"{name} (ml)" for name in structures), "attempts", "s"]
    numeric = range(len(words), len(heads))
    head = "<th></th>" + "".join(
        f"<th scope=col{' class=number' if at in numeric else ''}>{escaped(text)}</th>"
        for at, text in enumerate(heads)
    )
    body = []
    for line in lines:
        picture = thumbnail(line.number)
        image = ""
        if picture is not None:
            data = base64.b64encode(picture).decode("ascii")
            image = (
                f'<img src="data:image/jpeg;base64,{data}" alt="Planes of {escaped(line.name)}">'
            )
        name = escaped(line.name)
        page = report(line.name)
        if exists(page):
            name = f'<a href="{escaped(quote(page))}">{name}</a>'
        reason = escaped(line.code)
        if line.message:
            reason += f"<br><span class=quiet>{escaped(line.message)}</span>"
        cells = [
            f"<td>{image}</td>",
            f"<th scope=row{_key(line.name)}>{name}</th>",
            f"<td class=state{_key(line.state)}>{escaped(line.state)}</td>",
            f"<td class=text{_key(line.code)}>{reason}</td>",
            *(f"<td{_key(line.review)}>{escaped(line.review)}</td>" for _ in review),
            *(_number(None if line.doubt is None else line.doubt.entropy) for _ in doubt),
            *(_number(line.volumes_ml.get(structure)) for structure in structures),
            _number(line.attempts),
            _seconds(line.seconds),
        ]
        body.append(f'<tr data-state="{escaped(line.state)}">{"".join(cells)}</tr>')
    return (
        f"<div class=wide><table class=sortable><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def _number(value: float | None) -> str:
    return f"<td class=number{_key(value)}>{escaped(in_words(value, whole=True))}</td>"


def _seconds(value: float | None) -> str:
    words = "-" if value is None else f"{value:.1f}"
    return f"<td class=number{_key(value)}>{words}</td>"


def _key(value: object) -> str:
    return f' data-key="{escaped(sort_key(value))}"'
