"""What a whole study came to: a CSV file for tables, an HTML page for people."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from medseg.atomic import write_text
from medseg.studies.doubt import Doubt
from medseg.studies.index_page import CaseLine, index_page_html
from medseg.studies.ledger import Ledger
from medseg.studies.reviews import latest_reviews, result_sums

__all__ = ["write_cohort"]

CASES_PER_PAGE = 1000


def write_cohort(ledger: Ledger, out: Path, shard: tuple[int, int] | None = None) -> None:
    """Write ``cohort.csv`` and ``index.html``, with further pages if there are many cases.

    Args:
        ledger: What is told.
        out: Folder of the results.
        shard: Part and parts, where every part has a ledger, and so files, of its own.

    Raises:
        ResourceError: If a file cannot be written.
    """
    ending = "" if shard is None else f"-{shard[0]}-of-{shard[1]}"
    structures = ledger.structures()
    reviews, sums = latest_reviews(ledger), result_sums(ledger)

    def review_of(number: int) -> str:
        review = reviews.get(number)
        return "" if review is None else review.in_words(sums.get(number, ""))

    lines = [
        CaseLine(
            row.name,
            row.state,
            row.code or "",
            row.message or "",
            row.seconds,
            row.attempts,
            ledger.volumes_ml(row.number),
            row.number,
            doubt=Doubt.of_details(row.details),
            review=review_of(row.number),
        )
        for row in ledger.rows()
    ]
    write_text(out / f"cohort{ending}.csv", _csv(lines, structures))
    pages = [
        lines[start : start + CASES_PER_PAGE]
        for start in range(0, max(1, len(lines)), CASES_PER_PAGE)
    ]
    names = [f"index{ending}{'' if n == 0 else f'-page{n + 1}'}.html" for n in range(len(pages))]
    codes = ledger.codes()
    for number, page in enumerate(pages):
        html = index_page_html(
            page,
            structures,
            counts={str(state): count for state, count in ledger.counts().items()},
            codes=codes,
            thumbnail=ledger.thumbnail,
            report=lambda name: f"{name}_report.html",
            exists=lambda name: (out / name).is_file(),
            pages=names,
            page=number,
        )
        write_text(out / names[number], html)


def _csv(lines: list[CaseLine], structures: list[str]) -> str:
    stream = io.StringIO()
    table = csv.writer(stream, lineterminator="\n")
    columns = ["case", "state", "code", "message", "attempts", "seconds", "doubt", "review"]
    table.writerow([*columns, *(f"{name}_ml" for name in structures)])
    for line in lines:
        volumes = [line.volumes_ml.get(name) for name in structures]
        table.writerow(
            [
                *(line.name, line.state, line.code, line.message, line.attempts),
                "" if line.seconds is None else f"{line.seconds:.3f}",
                "" if line.doubt is None else f"{line.doubt.entropy:.4f}",
                line.review,
                *("" if ml is None else f"{ml:.4f}" for ml in volumes),
            ]
        )
    return stream.getvalue()
