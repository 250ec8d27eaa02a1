"""The index of a study: every case once, escaped, sortable, on as many pages as it takes."""

import re

from medseg.studies.index_page import CaseLine, index_page_html
from medseg.studies.ledger import Ledger
from medseg.studies.ledger_rows import Entry
from pipelines import cohort


def line(number, state="done", **changes):
    values = {
        "code": "",
        "message": "",
        "seconds": 1.5,
        "attempts": 1,
        "volumes_ml": {"liver": 2.0},
    }
    return CaseLine(f"case{number}", state, number=number, **{**values, **changes})


def page(lines, **changes):
    options = {
        "counts": {"done": 1, "failed": 1, "waiting": 0},
        "codes": {"file-empty": 1},
        "thumbnail": lambda number: b"jpeg" if number == 1 else None,
        "report": lambda name: f"{name}_report.html",
        "exists": lambda name: name == "case1_report.html",
        "pages": ["index.html"],
        "page": 0,
    }
    return index_page_html(lines, ["liver", "<spleen>"], **{**options, **changes})


def test_a_page_has_a_row_per_case_with_state_picture_and_volumes():
    failed = line(2, "failed", code="file-empty", message="<b>no", volumes_ml={}, seconds=None)
    html = page([line(1), failed])
    assert re.findall(r'<tr data-state="(\w+)">', html) == ["done", "failed"]
    assert html.count("data:image/jpeg;base64,") == 1
    assert '<a href="case1_report.html">case1</a>' in html
    assert "case2_report.html" not in html
    assert 'data-key="2.0">2.000<' in html
    assert "&lt;spleen&gt; (ml)" in html
    assert "&lt;b&gt;no" in html
    assert "<b>no" not in html
    assert re.findall(r'class=state value="(\w+)"', html) == ["done", "failed"]
    assert "default-src 'none'" in html


def test_many_cases_make_several_pages_that_lead_to_each_other(tmp_path, monkeypatch):
    monkeypatch.setattr(cohort, "CASES_PER_PAGE", 2)
    with Ledger.open(tmp_path / "ledger.sqlite", create=True) as ledger:
        ledger.register([Entry(str(n), (f"case{n}",), {"": f"/{n}"}) for n in range(5)])
        cohort.write_cohort(ledger, tmp_path)
        cohort.write_cohort(ledger, tmp_path, (2, 3))
    pages = [(tmp_path / f"index{end}.html").read_text() for end in ("", "-page2", "-page3")]
    assert [page.count("<tr data-state") for page in pages] == [2, 2, 1]
    assert all("5 cases</h1>" in page for page in pages)
    assert '<a href="index-page3.html">3</a>' in pages[0]
    assert (tmp_path / "index-2-of-3-page2.html").is_file()
    assert (tmp_path / "cohort-2-of-3.csv").read_text().count("waiting") == 5


def test_a_study_without_cases_has_a_page(tmp_path):
    with Ledger.open(tmp_path / "ledger.sqlite", create=True) as ledger:
        cohort.write_cohort(ledger, tmp_path)
    assert "0 cases</h1>" in (tmp_path / "index.html").read_text()
