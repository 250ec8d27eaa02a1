"""What every HTML page shares: its head, its style, its pictures, numbers as text.

Pages load nothing: pictures are inside them, and a content security policy forbids the rest.
"""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import TypeGuard

__all__ = [
    "SCRIPT",
    "PictureBudget",
    "escaped",
    "heading",
    "in_words",
    "is_empty",
    "is_list",
    "is_number",
    "page_head",
    "sort_key",
]

_UNITS = {"ml": "ml", "mm": "mm", "mm2": "mm²", "mm3": "mm³", "percent": "%"}
_STYLE = """
:root{color-scheme:light dark;--ink:#1c1e21;--quiet:#5b6168;--line:#d5d9de;--back:#fff;
--soft:#f4f5f7;--warn:#fff4d6}
@media (prefers-color-scheme:dark){:root{--ink:#e6e8ea;--quiet:#a3abb3;--line:#3a4047;
--back:#17191c;--soft:#20242a;--warn:#3a3115}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:64rem;padding:1.5rem 1.25rem 3rem;background:var(--back);
color:var(--ink);font:15px/1.5 system-ui,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
h1{font-size:1.5rem;line-height:1.25;margin:0 0 .25rem;overflow-wrap:anywhere}
h2{font-size:1.15rem;margin:2.25rem 0 .6rem;padding-bottom:.25rem;
border-bottom:1px solid var(--line)}
h3{font-size:1rem;margin:1.4rem 0 .4rem}
p{margin:.4rem 0 .7rem;max-width:46rem}
.quiet,caption,figcaption{color:var(--quiet)}
.notice{background:var(--warn);padding:.5rem .75rem;border-radius:4px;font-weight:600;
max-width:none}
.wide{overflow-x:auto;margin:.4rem 0 1rem}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.9rem}
caption{text-align:left;padding:0 0 .3rem}
th,td{padding:.25rem .8rem .25rem 0;text-align:left;vertical-align:top;
border-bottom:1px solid var(--line)}
thead th{vertical-align:bottom;font-weight:600}
th[scope=row]{font-weight:400}
td.number,th.number{text-align:right}
td.text{overflow-wrap:anywhere}
td.bar{width:11rem;padding-right:0;vertical-align:middle}
.bar span{display:block;height:.75rem;min-width:1px;border-radius:2px;
outline:1px solid rgba(128,128,128,.45);print-color-adjust:exact;-webkit-print-color-adjust:exact}
.chip{display:inline-block;width:.75rem;height:.75rem;margin-right:.5rem;border-radius:2px;
outline:1px solid rgba(128,128,128,.45);print-color-adjust:exact;-webkit-print-color-adjust:exact}
img{max-width:100%;height:auto;border-radius:3px;background:#121214}
figure{margin:.4rem 0 .8rem}
.cards figure{display:inline-block;vertical-align:top;margin:0 1rem .75rem 0;max-width:100%;
break-inside:avoid}
figcaption{font-size:.9rem;overflow-wrap:anywhere}
.cards figcaption{max-width:29rem;margin-bottom:.2rem;color:var(--ink)}
.heat{display:inline-block;width:9rem;height:.7rem;border-radius:2px;vertical-align:middle;
print-color-adjust:exact;-webkit-print-color-adjust:exact}
button.sort{all:unset;cursor:pointer;font:inherit}
button.sort:focus-visible{outline:2px solid currentColor;outline-offset:2px}
th[aria-sort=ascending] button::after{content:" \\2191"}
th[aria-sort=descending] button::after{content:" \\2193"}
@page{size:A4;margin:14mm}
@media print{:root{color-scheme:light;--ink:#000;--quiet:#444;--line:#bbb;--back:#fff;
--warn:#fff4d6}body{max-width:none;padding:0;font-size:10pt}.wide{overflow:visible}
h2,h3{break-after:avoid}tr{break-inside:avoid}thead{display:table-header-group}
.cards{orphans:1;widows:1}.cards figure{width:47%;margin-right:2%}
table{font-size:8pt}th,td{padding-right:.5rem}td.bar{width:6rem}}
"""


# without it the tables are simply not sortable
SCRIPT = """
document.querySelectorAll("table.sortable").forEach(function(table){
var heads=table.tHead.rows[0].cells;
Array.prototype.forEach.call(heads,function(head,column){
if(!head.textContent.trim())return;
var button=document.createElement("button");button.className="sort";button.type="button";
button.textContent=head.textContent;head.textContent="";head.appendChild(button);
button.addEventListener("click",function(){
var down=head.getAttribute("aria-sort")==="ascending";
Array.prototype.forEach.call(heads,function(h){h.removeAttribute("aria-sort")});
head.setAttribute("aria-sort",down?"descending":"ascending");
var body=table.tBodies[0];
Array.prototype.slice.call(body.rows).sort(function(a,b){
var x=a.cells[column].dataset.key,y=b.cells[column].dataset.key;
if(x===""||y==="")return (x==="")-(y==="");
var m=Number(x),n=Number(y),order=isNaN(m)||isNaN(n)?x.localeCompare(y):m-n;
return down?-order:order}).forEach(function(row){body.appendChild(row)})})})});
"""


class PictureBudget:
    """What pictures may still take."""

    def __init__(self, size: int) -> None:
        self.left = size

    def picture(self, content: bytes, kind: str, alt: str) -> str | None:
        """An ``img`` element, or None if the picture is too large for what is left."""
        if len(content) > self.left:
            return None
        self.left -= len(content)
        data = base64.b64encode(content).decode("ascii")
        return f'<img src="data:image/{kind};base64,{data}" alt="{escaped(alt)}">'


def page_head(name: str) -> str:
    """Everything up to where the content begins; ``name`` is the title of the page."""
    policy = (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escaped(name)}</title><style>{_STYLE}</style></head><body><main>"
    )


def heading(key: str) -> str:
    """Key as words: ``surface_mm2`` is ``surface (mm²)``."""
    stem, _, unit = key.rpartition("_")
    if stem and unit in _UNITS:
        return f"{stem.replace('_', ' ')} ({_UNITS[unit]})"
    if stem and unit == "bytes":
        return stem.replace("_", " ")
    return key.replace("_", " ")


def in_words(value: object, *, whole: bool = False) -> str:
    """A value as text; ``whole`` keeps a number's last zeros, so that columns line up."""
    if is_empty(value):
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{heading(str(key))} {in_words(entry)}" for key, entry in value.items())
    if is_list(value):
        return ", ".join(in_words(entry) for entry in value)
    if isinstance(value, Real) and not isinstance(value, Integral):
        text = _rounded(float(value))
        return (
            text.rstrip("0").rstrip(".") if "." in text and "e" not in text and not whole else text
        )
    return str(value)


def _rounded(value: float) -> str:
    """Four figures, without an exponent where digits do as well."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    if 1e-4 <= abs(value) < 1e9:
        return f"{value:.{max(0, 3 - math.floor(math.log10(abs(value))))}f}"
    return f"{value:.3e}"


def sort_key(value: object) -> str:
    """What a cell is sorted by: a number, else its text; empty for nothing."""
    if is_empty(value):
        return ""
    return repr(float(value)) if isinstance(value, Real) else in_words(value)


def is_number(value: object) -> bool:
    """Whether it is a number, or None in the place of one."""
    return value is None or (isinstance(value, Real) and not isinstance(value, bool))


def is_list(value: object) -> TypeGuard[Sequence[object]]:
    """Whether it is a sequence of values, not a text."""
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def is_empty(value: object) -> bool:
    """Whether there is nothing to show."""
    return value is None or (isinstance(value, str | Sequence | Mapping) and not value)


def escaped(text: str) -> str:
    """Text as HTML."""
    return html.escape(text, quote=True)
