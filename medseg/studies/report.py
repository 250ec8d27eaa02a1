"""One case on one page: a self-contained HTML file, made without a display.

The page loads nothing: pictures are inside it, and a content security policy forbids the rest. It
holds what is handed in and nothing else; every text is escaped.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from numbers import Real

from medseg import NOTICE, __version__
from medseg.core import Label, LabelMap, Volume
from medseg.core.uncertainty import DoubtfulSlice, UncertaintySummary
from medseg.studies.page import (
    SCRIPT,
    PictureBudget,
    escaped,
    heading,
    in_words,
    is_empty,
    is_list,
    is_number,
    page_head,
    sort_key,
)
from medseg.studies.preview import HEAT_STOPS, Scene

__all__ = ["case_report_html"]

_STRUCTURE_PICTURES = 60
_DOUBTFUL_PICTURES = 12
_PICTURE_BYTES = 6 * 2**20
_COLUMNS = 7

_FIRST = ("name", "value", "voxels", "volume_ml")
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
    budget = PictureBudget(_PICTURE_BYTES)
    sections = [
        page_head(f"{case}: segmentation"),
        _overview(scene, case, labels, budget),
        _model(manifest.get("model"), labels),
        _statistics(scene, labels, statistics),
        "" if uncertainty is None else _uncertainty(scene, labels, uncertainty, budget),
        _structures(scene, budget),
        _run(manifest),
        f"<footer><p class=quiet>medseg {escaped(__version__)}. {escaped(NOTICE)}</p></footer>",
        f"</main><script>{SCRIPT}</script></body></html>\n",
    ]
    return "\n".join(section for section in sections if section)


def _overview(scene: Scene, case: str, labels: LabelMap, budget: PictureBudget) -> str:
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
        f"<h1>{escaped(case)}</h1><p class=quiet>Segmentation report. {shape} voxels of {spacing} "
        f"mm, axes towards {escaped(grid.orientation)}.</p><p class=notice>{escaped(NOTICE)}</p>"
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
        parts.append(f"<p>Not a voxel of: {escaped(', '.join(absent))}.</p>")
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
    numeric = {key for key in columns if all(is_number(row.get(key)) for row in rows)}
    heads = "".join(
        f"<th scope=col{' class=number' if key in numeric else ''}>{escaped(heading(key))}</th>"
        for key in columns
    )
    body = []
    for row in rows:
        name = str(row.get("name", ""))
        cells = []
        for key in columns:
            value = row.get(key)
            sort = f' data-key="{escaped(sort_key(value))}"'
            if key == "name":
                colour = colours.get(name)
                chip = f'<span class=chip style="background:{colour}"></span>' if colour else ""
                cells.append(f"<th scope=row{sort}>{chip}{escaped(name)}</th>")
            else:
                kind = "number" if key in numeric else "text"
                shown = in_words(value, whole=key in numeric)
                cells.append(f"<td class={kind}{sort}>{escaped(shown)}</td>")
        if shares is not None:
            length = f"width:{100 * shares.get(name, 0.0):.1f}%;background:{colours.get(name, '')}"
            bar = f'<span style="{length}"></span>' if shares.get(name) else ""
            cells.append(f"<td class=bar aria-hidden=true>{bar}</td>")
        body.append(f"<tr>{''.join(cells)}</tr>")
    if shares is not None:
        heads += "<td class=bar></td>"
    return (
        f"<div class=wide><table class=sortable><caption>{escaped(caption)}</caption>"
        f"<thead><tr>{heads}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def _structures(scene: Scene, budget: PictureBudget) -> str:
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
            f"<figure><figcaption>{chip}{escaped(label.name)}, {volume}</figcaption>"
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
    scene: Scene, labels: LabelMap, uncertainty: UncertaintySummary, budget: PictureBudget
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
            f"<figure><figcaption><strong>{rank}.</strong> {escaped(where)}<br>"
            f"{escaped(doubt.label)}, mean entropy {doubt.mean_entropy:.3f}</figcaption>"
            f"{picture or ''}</figure>"
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
        elif is_list(value) and value:
            entries = "".join(f"<li>{escaped(in_words(entry))}</li>" for entry in value)
            parts.append(f"<ul>{entries}</ul>")
        else:
            shown = "None." if is_empty(value) else in_words(value)
            parts.append(f"<p>{escaped(shown)}</p>")
    if plain:
        parts.insert(0, _pairs(plain, "Run"))
    return "".join(["<h2>Run</h2>", *parts]) if parts else ""


def _pairs(values: Mapping[str, object], caption: str) -> str:
    rows = "".join(
        f"<tr><th scope=row>{escaped(heading(key))}</th>"
        f"<td class=text>{escaped(_in_unit(key, value))}</td></tr>"
        for key, value in _flat(values)
    )
    label = f'aria-label="{escaped(caption)}"'
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


def _in_unit(key: str, value: object) -> str:
    if key.endswith("bytes") and isinstance(value, Real) and not isinstance(value, bool):
        return f"{float(value) / 2**20:.1f} MiB"
    return in_words(value)


def _hex(label: Label) -> str:
    return f"#{bytes(label.rgb).hex()}"
