"""One case on one page: a self-contained HTML file, made without a display.

The page loads nothing: pictures are inside it, and a content security policy forbids the rest. It
holds what is handed in and nothing else; every text is escaped.
"""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from numbers import Integral, Real

from medseg import NOTICE, __version__
from medseg.core import Label, LabelMap, Volume
from medseg.core.uncertainty import DoubtfulSlice, UncertaintySummary
from medseg.studies.preview import HEAT_STOPS, Scene

__all__ = ["case_report_html"]

_STRUCTURE_PICTURES = 60
_DOUBTFUL_PICTURES = 12
_PICTURE_BYTES = 6 * 2**20
_COLUMNS = 7

_FIRST = ("name", "value", "voxels", "volume_ml")
_UNITS = {"ml": "ml", "mm": "mm", "mm2": "mm²", "mm3": "mm³", "percent": "%"}
_MODEL = ("name", "version", "licence", "weights_sha256", "labels")
# what the manifest calls its parts, and what the page calls them
_PARTS = {
    "settings": "Settings",
    "seconds": "Seconds per stage",
    "memory": "Memory",
    "warnings": "Warnings",
    "notes": "Notes",
    "step_downs": "Step-downs",
}
_SHOWN_ELSEWHERE = ("case", "model", "notice", "statistics", "uncertainty", "volumes_ml")
_NO_PICTURE = "<p class=quiet>Smaller structures left out to keep the page small: {}.</p>"

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
_SCRIPT = """
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


def case_report_html(
    volume: Volume,
    labels: LabelMap,
    *,
    case: str,
    statistics: Sequence[Mapping[str, object]],
    manifest: Mapping[str, object],
    uncertainty: UncertaintySummary | None = None,
) -> str:
    """Pictures, figures, doubts and the run of one case as a self-contained HTML page.

    Pictures: three planes through the fullest part of the segmentation; three planes through every
    structure (the 60 largest at most); one of each doubtful slice (the first 12). Together they
    stay below 6 MiB (8 MiB as text); the smallest structures are left out, and the page says so.

    Args:
        volume: The image; its first channel is drawn.
        labels: The segmentation on the image's grid.
        case: The page's title. Whoever calls sees to it that it names no patient.
        statistics: One mapping per structure. ``name``, ``value``, ``voxels`` and ``volume_ml``
            come first in the table, all other keys after them in order of appearance; a mapping as
            value gives one column per key. Ends such as ``_ml`` or ``_mm2`` are shown as units.
            None is shown as a dash.
        manifest: The run. ``model`` (a mapping with ``name``, ``version``, ``licence``,
            ``weights_sha256``, ``labels``) has its own section; ``settings``, ``seconds``,
            ``memory``, ``warnings``, ``notes`` and ``step_downs`` have headings of their own, and
            everything else is listed by its key, but for ``case``, ``notice``, ``statistics``,
            ``uncertainty`` and ``volumes_ml``, which the page shows already. Keys that end in
            ``_bytes`` are shown as MiB.
        uncertainty: How much the segmentation is in doubt; None if it was not measured.

    Returns:
        The text of the file, to be written as UTF-8.

    Raises:
        GeometryError: If image and labels have different extents.
        ShapeError: If the entropy has other extents than the image.
    """
    scene = Scene.of(volume, labels)
    budget = _Budget(_PICTURE_BYTES)
    sections = [
        _head(case),
        _overview(scene, case, labels, budget),
        _model(manifest.get("model"), labels),
        _statistics(scene, labels, statistics),
        "" if uncertainty is None else _uncertainty(scene, labels, uncertainty, budget),
        _structures(scene, budget),
        _run(manifest),
        f"<footer><p class=quiet>medseg {_text(__version__)}. {_text(NOTICE)}</p></footer>",
        f"</main><script>{_SCRIPT}</script></body></html>\n",
    ]
    return "\n".join(section for section in sections if section)


class _Budget:
    """What pictures may still take."""

    def __init__(self, size: int) -> None:
        self.left = size

    def picture(self, content: bytes, kind: str, alt: str) -> str | None:
        """An ``img`` element, or None if the picture is too large for what is left."""
        if len(content) > self.left:
            return None
        self.left -= len(content)
        data = base64.b64encode(content).decode("ascii")
        return f'<img src="data:image/{kind};base64,{data}" alt="{_text(alt)}">'


def _head(case: str) -> str:
    policy = (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{_text(case)}: segmentation</title><style>{_STYLE}</style></head><body><main>"
    )


def _overview(scene: Scene, case: str, labels: LabelMap, budget: _Budget) -> str:
    grid = labels.grid
    shape = " x ".join(map(str, grid.shape_ijk))
    spacing = " x ".join(f"{step:.4g}" for step in grid.spacing_mm)
    picture = budget.picture(
        scene.three_planes(f"medseg {__version__}. {NOTICE}"),
        "png",
        "Axial, coronal and sagittal plane of the image where most is segmented, each structure "
        "outlined in its colour. The patient's right is on the left.",
    )
    return (
        f"<h1>{_text(case)}</h1><p class=quiet>Segmentation report. {shape} voxels of {spacing} mm,"
        f" axes towards {_text(grid.orientation)}.</p><p class=notice>{_text(NOTICE)}</p>"
        f"<figure>{picture or ''}<figcaption>The planes that show most of the segmentation. The "
        "patient's right is on the left.</figcaption></figure>"
    )


def _model(model: object, labels: LabelMap) -> str:
    known = dict(model) if isinstance(model, Mapping) else {}
    if isinstance(model, str):
        known["name"] = model
    known.setdefault("labels", [label.name for label in labels.scheme.labels])
    order = [key for key in _MODEL if key in known] + [key for key in known if key not in _MODEL]
    return "<h2>Model</h2>" + _pairs({key: known[key] for key in order}, "Model")


def _statistics(scene: Scene, labels: LabelMap, statistics: Sequence[Mapping[str, object]]) -> str:
    rows = [dict(_flat(row)) for row in statistics]
    keys = list(dict.fromkeys(key for row in rows for key in row))
    first = [key for key in _FIRST if key in keys]
    rest = [key for key in keys if key not in _FIRST]
    absent = [str(row.get("name")) for row in rows if row.get("voxels") == 0]
    rows = [row for row in rows if row.get("voxels") != 0]
    colours = {label.name: _hex(label) for label in labels.scheme.labels}
    largest = max((scene.volume_ml(value) for value in labels.scheme.values), default=0.0)
    shares = {
        label.name: scene.volume_ml(label.value) / largest if largest else 0.0
        for label in labels.scheme.labels
    }
    parts = ["<h2>Structures</h2>"]
    if rows:
        parts.append(_table("Size of every structure", first, rows, colours, shares))
    if absent:
        parts.append(f"<p>Not a voxel of: {_text(', '.join(absent))}.</p>")
    if not rows:
        return "".join(parts) if absent else ""
    for start in range(0, len(rest), _COLUMNS):
        columns = ["name", *rest[start : start + _COLUMNS]]
        parts.append(_table("Further figures", columns, rows, colours, None))
    return "".join(parts)


def _table(
    caption: str,
    columns: Sequence[str],
    rows: Sequence[Mapping[str, object]],
    colours: Mapping[str, str],
    shares: Mapping[str, float] | None,
) -> str:
    """A table of structures, with volume bars if their lengths are given."""
    numeric = {key for key in columns if all(_is_number(row.get(key)) for row in rows)}
    heads = "".join(
        f"<th scope=col{' class=number' if key in numeric else ''}>{_text(_title(key))}</th>"
        for key in columns
    )
    body = []
    for row in rows:
        name = str(row.get("name", ""))
        cells = []
        for key in columns:
            value = row.get(key)
            sort = f' data-key="{_text(_sort_key(value))}"'
            if key == "name":
                colour = colours.get(name)
                chip = f'<span class=chip style="background:{colour}"></span>' if colour else ""
                cells.append(f"<th scope=row{sort}>{chip}{_text(name)}</th>")
            else:
                kind = "number" if key in numeric else "text"
                shown = _shown(value, whole=key in numeric)
                cells.append(f"<td class={kind}{sort}>{_text(shown)}</td>")
        if shares is not None:
            length = f"width:{100 * shares.get(name, 0.0):.1f}%;background:{colours.get(name, '')}"
            bar = f'<span style="{length}"></span>' if shares.get(name) else ""
            cells.append(f"<td class=bar aria-hidden=true>{bar}</td>")
        body.append(f"<tr>{''.join(cells)}</tr>")
    if shares is not None:
        heads += "<td class=bar></td>"
    return (
        f"<div class=wide><table class=sortable><caption>{_text(caption)}</caption>"
        f"<thead><tr>{heads}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def _structures(scene: Scene, budget: _Budget) -> str:
    present = [label for label in scene.labels if scene.counts[label.value][0].any()]
    if not present:
        return "<h2>Planes through every structure</h2><p>Nothing was segmented.</p>"
    present.sort(key=lambda label: -scene.volume_ml(label.value))
    figures: list[str] = []
    for label in present[:_STRUCTURE_PICTURES]:
        alt = f"Axial, coronal and sagittal plane through {label.name}, outlined."
        picture = budget.picture(scene.structure(label.value), "jpeg", alt)
        if picture is None:
            break
        chip = f'<span class=chip style="background:{_hex(label)}"></span>'
        volume = f"{scene.volume_ml(label.value):.4g} ml"
        figures.append(
            f"<figure><figcaption>{chip}{_text(label.name)}, {volume}</figcaption>"
            f"{picture}</figure>"
        )
    left_out = len(present) - len(figures)
    return (
        "<h2>Planes through every structure</h2><p class=quiet>Axial, coronal and sagittal plane "
        "through the centroid, cut out round the structure. The largest come first.</p>"
        f"<div class=cards>{''.join(figures)}</div>"
        + (_NO_PICTURE.format(left_out) if left_out else "")
    )


def _uncertainty(
    scene: Scene, labels: LabelMap, uncertainty: UncertaintySummary, budget: _Budget
) -> str:
    colours = {label.name: _hex(label) for label in labels.scheme.labels}
    rows = [
        {"name": name, "mean_entropy": float(mean)} for name, mean in uncertainty.per_label.items()
    ]
    shares = {name: min(1.0, max(0.0, float(m))) for name, m in uncertainty.per_label.items()}
    parts = [
        "<h2>Uncertainty</h2><p>Entropy of the predicted probabilities, as a share of the largest "
        "possible one: 0 where the model is sure, 1 where it finds every class equally likely. A "
        "low figure does not prove that the segmentation is right.</p>"
    ]
    if rows:
        columns = ("name", "mean_entropy")
        parts.append(_table("Mean entropy of every structure", columns, rows, colours, shares))
    parts.append("<h3>Slices to look at first</h3>")
    if not uncertainty.slices:
        parts.append("<p>No slice is in doubt.</p>")
        return "".join(parts)
    stops = ",".join(f"rgb{rgb} {100 * at / 255:.0f}%" for at, rgb in HEAT_STOPS)
    if uncertainty.entropy_ijk is not None:
        parts.append(
            f'<p>Entropy 0 <span class=heat style="background:linear-gradient(to right,{stops})">'
            "</span> 1, drawn over the image; the white outlines are the segmentation.</p>"
        )
    parts.append(
        "<p class=quiet>Ranked by the entropy summed over the segmented region and its rim. "
        "Indices count from 0 on the image's own voxel axes.</p>"
    )
    figures: list[str] = []
    for rank, doubt in enumerate(uncertainty.slices, start=1):
        where = _where(scene, labels, doubt)
        picture = None
        if rank <= _DOUBTFUL_PICTURES:
            axis = "ijk".index(doubt.axis_name)
            content = scene.heat_slice(uncertainty.entropy_ijk, axis, doubt.index)
            alt = f"Slice {where}, with outlines and entropy."
            picture = budget.picture(content, "jpeg", alt)
        figures.append(
            f"<figure><figcaption><strong>{rank}.</strong> {_text(where)}<br>{_text(doubt.label)}, "
            f"mean entropy {doubt.mean_entropy:.3f}</figcaption>{picture or ''}</figure>"
        )
    return "".join([*parts, f"<div class=cards>{''.join(figures)}</div>"])


def _where(scene: Scene, labels: LabelMap, doubt: DoubtfulSlice) -> str:
    axis = "ijk".index(doubt.axis_name)
    view = scene.view_name(axis)
    letter = {"axial": "S", "coronal": "A", "sagittal": "R"}[view]
    return (
        f"{view}, {doubt.axis_name} = {doubt.index} of {labels.grid.shape_ijk[axis]} "
        f"({letter} {doubt.position_mm:+.1f} mm)"
    )


def _run(manifest: Mapping[str, object]) -> str:
    plain: dict[str, object] = {}
    parts: list[str] = []
    for key, value in manifest.items():
        if key not in _SHOWN_ELSEWHERE and key not in _PARTS:
            plain[key] = value
    for key, title in _PARTS.items():
        if key not in manifest:
            continue
        value = manifest[key]
        parts.append(f"<h3>{title}</h3>")
        if isinstance(value, Mapping) and value:
            parts.append(_pairs(_with_total(value) if key == "seconds" else value, title))
        elif _is_list(value) and value:
            entries = "".join(f"<li>{_text(_shown(entry))}</li>" for entry in _entries(value))
            parts.append(f"<ul>{entries}</ul>")
        else:
            shown = "None." if _is_empty(value) else _shown(value)
            parts.append(f"<p>{_text(shown)}</p>")
    if plain:
        parts.insert(0, _pairs(plain, "Run"))
    return "".join(["<h2>Run</h2>", *parts]) if parts else ""


def _pairs(values: Mapping[str, object], caption: str) -> str:
    rows = "".join(
        f"<tr><th scope=row>{_text(_title(key))}</th>"
        f"<td class=text>{_text(_in_unit(key, value))}</td></tr>"
        for key, value in _flat(values)
    )
    label = f'aria-label="{_text(caption)}"'
    return f"<div class=wide><table {label}><tbody>{rows}</tbody></table></div>"


def _with_total(seconds: Mapping[str, object]) -> Mapping[str, object]:
    numbers = [float(value) for value in seconds.values() if isinstance(value, Real)]
    if "total" in seconds or len(numbers) < len(seconds):
        return seconds
    return {**seconds, "total": sum(numbers)}


def _flat(values: Mapping[str, object], before: str = "") -> Iterator[tuple[str, object]]:
    """Nested mappings as one, inner keys behind outer ones."""
    for key, value in values.items():
        name = f"{before}{key}"
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{name} ")
        else:
            yield name, value


def _title(key: str) -> str:
    """Key as words: ``surface_mm2`` is ``surface (mm²)``."""
    stem, _, unit = key.rpartition("_")
    if stem and unit in _UNITS:
        return f"{stem.replace('_', ' ')} ({_UNITS[unit]})"
    if stem and unit == "bytes":
        return stem.replace("_", " ")
    return key.replace("_", " ")


def _in_unit(key: str, value: object) -> str:
    if key.endswith("bytes") and isinstance(value, Real) and not isinstance(value, bool):
        return f"{float(value) / 2**20:.1f} MiB"
    return _shown(value)


def _shown(value: object, *, whole: bool = False) -> str:
    """A value as text; ``whole`` keeps a number's last zeros, so that columns line up."""
    if _is_empty(value):
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{_title(str(key))} {_shown(entry)}" for key, entry in value.items())
    if _is_list(value):
        return ", ".join(_shown(entry) for entry in _entries(value))
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


def _sort_key(value: object) -> str:
    if _is_empty(value):
        return ""
    return repr(float(value)) if isinstance(value, Real) else _shown(value)


def _is_number(value: object) -> bool:
    return value is None or (isinstance(value, Real) and not isinstance(value, bool))


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _is_empty(value: object) -> bool:
    return value is None or (isinstance(value, str | Sequence | Mapping) and not value)


def _entries(value: object) -> Iterable[object]:
    return value if isinstance(value, Sequence) else ()


def _hex(label: Label) -> str:
    return f"#{bytes(label.rgb).hex()}"


def _text(text: str) -> str:
    return html.escape(text, quote=True)
