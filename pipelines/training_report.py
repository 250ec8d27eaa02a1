"""A training on one page: curves, Dice of every structure, the worst and the best cases drawn.

The page is self-contained: it loads nothing and holds no script. It shows slices of validation
images; who may not see them should not get the page.
"""

from __future__ import annotations

import base64
import html
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from medseg import NOTICE, __version__
from medseg.atomic import write_text
from medseg.core import LabelMap, Volume
from medseg.data.case import read_labelled
from medseg.data.datalist import Case, DataList
from medseg.events import Cancelled, Listener, Silent
from medseg.inference.predictor import Predictor
from medseg.studies.preview import three_plane_png
from medseg.training.logs import PICTURE_NAME
from medseg.training.settings import RunSettings
from pipelines.train_result import TrainResult

__all__ = ["REPORT_NAME", "write_training_report"]

REPORT_NAME = "report.html"
_WORST, _BEST, _ROWS = 2, 1, 20

_STYLE = """
:root{color-scheme:light dark;--ink:#1c1e21;--quiet:#5b6168;--line:#d5d9de;--back:#fff;
--warn:#fff4d6}
@media (prefers-color-scheme:dark){:root{--ink:#e6e8ea;--quiet:#a3abb3;--line:#3a4047;
--back:#17191c;--warn:#3a3115}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:66rem;padding:1.5rem 1.25rem 3rem;background:var(--back);
color:var(--ink);font:15px/1.5 system-ui,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
h1{font-size:1.5rem;margin:0 0 .25rem;overflow-wrap:anywhere}
h2{font-size:1.15rem;margin:2rem 0 .6rem;padding-bottom:.25rem;border-bottom:1px solid var(--line)}
.quiet,figcaption{color:var(--quiet)}
.notice{background:var(--warn);padding:.5rem .75rem;border-radius:4px;font-weight:600}
.wide{overflow-x:auto}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.9rem}
th,td{padding:.25rem 1rem .25rem 0;text-align:left;border-bottom:1px solid var(--line)}
th[scope=row]{font-weight:400}
td.number,th.number{text-align:right}
img{max-width:100%;height:auto;border-radius:3px}
figure{margin:.4rem 0 1rem}
@media print{body{max-width:none;font-size:10pt}figure,tr{break-inside:avoid}}
"""


def write_training_report(
    result: TrainResult,
    settings: RunSettings,
    data: DataList,
    listener: Listener | None = None,
) -> Path:
    """Write ``report.html`` into a run folder.

    The worst two validation cases and the best, by mean Dice over their structures, are predicted
    on the grids of their images and drawn beside the truth.

    Args:
        result: A run that finished, or that was interrupted: then the page says so, and that its
            cases were not judged.
        settings: Of the run.
        data: Its cases.
        listener: Progress and the wish to stop.

    Returns:
        The file.

    Raises:
        MedsegError: If a case cannot be read or predicted, or the folder cannot be written.
        Cancelled: If the listener asked to stop.
    """
    means = _case_means(result.per_case)
    order = sorted(means, key=means.__getitem__)
    chosen = list(dict.fromkeys([*order[:_WORST], *order[len(order) - _BEST :]]))
    cases = {case.id: case for case in data.validation}
    sections = [
        _head(result, settings),
        _curves(result.run_folder / PICTURE_NAME),
        _structures(result.per_case) if result.per_case else "",
        _cases(result.per_case, means, order) if result.per_case else "",
        _overlays(
            [(name, means[name], cases[name]) for name in chosen],
            result.run_folder,
            settings,
            listener or Silent(),
        ),
        f"<footer><p class=quiet>medseg {_text(__version__)}. {_text(NOTICE)}</p></footer>",
        "</main></body></html>\n",
    ]
    path = result.run_folder / REPORT_NAME
    write_text(path, "\n".join(section for section in sections if section))
    return path


def _case_means(per_case: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    means = {}
    for case, dice in per_case.items():
        finite = [value for value in dice.values() if math.isfinite(value)]
        if finite:
            means[case] = statistics.fmean(finite)
    return means


def _head(result: TrainResult, settings: RunSettings) -> str:
    training = result.card.training
    title = f"{settings.name} {settings.version}"
    facts = {
        "network": f"{settings.network.name}, {result.weights / 1e6:.2f} M weights",
        "dataset": f"{training.dataset} ({training.dataset_licence})",
        "cases": f"{training.training_cases} to learn from, {training.validation_cases} held out",
        "steps": f"{result.steps} in {result.training_s:.0f} s, {result.epochs} epochs"
        + (f"; {result.skipped} left out as not finite" if result.skipped else ""),
        "numerics": result.numerics.in_words(),
        "seed": str(training.seed),
        "exported weights": f"the {training.weights}, after step {training.weights_step}"
        + (", a running mean" if training.averaged else ""),
        "mean validation Dice": _number(result.mean_dice),
        "configuration sha256": training.config_sha256,
        "weights sha256": result.card.weights_sha256,
    }
    rows = "".join(
        f"<tr><th scope=row>{_text(key)}</th><td>{_text(value)}</td></tr>"
        for key, value in facts.items()
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "img-src data:; style-src 'unsafe-inline'\">"
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{_text(title)}: training</title><style>{_STYLE}</style></head><body><main>"
        f"<h1>{_text(title)}: training</h1><p>{_text(settings.description)}</p>"
        f"<p class=notice>{_text(NOTICE)}</p>"
        f"{_interrupted(result)}"
        f'<div class=wide><table aria-label="Run"><tbody>{rows}</tbody></table></div>'
    )


def _interrupted(result: TrainResult) -> str:
    if result.finished and result.per_case:
        return ""
    where = "while its cases were judged" if result.finished else f"after step {result.steps}"
    return (
        f"<p class=notice>This run was interrupted {where}: its validation cases were not judged "
        "by the exported weights. --resume goes on with it.</p>"
    )


def _curves(picture: Path) -> str:
    if not picture.is_file():
        return ""
    return f"<h2>Course</h2>{_image(picture.read_bytes(), 'loss, validation Dice and rate')}"


def _structures(per_case: Mapping[str, Mapping[str, float]]) -> str:
    names = list(next(iter(per_case.values()), {}))
    rows = []
    for name in names:
        finite = sorted(dice[name] for dice in per_case.values() if math.isfinite(dice[name]))
        figures = (
            [statistics.fmean(finite), statistics.median(finite), finite[0], finite[-1]]
            if finite
            else [math.nan] * 4
        )
        cells = "".join(f"<td class=number>{_number(value)}</td>" for value in figures)
        rows.append(
            f"<tr><th scope=row>{_text(name)}</th>{cells}<td class=number>{len(finite)}</td></tr>"
        )
    heads = "".join(
        f"<th class=number>{head}</th>" for head in ("mean", "median", "least", "most", "cases")
    )
    return (
        "<h2>Validation Dice by structure</h2><p class=quiet>On the model's grid, by the exported "
        "weights, over the validation cases in which the structure is present or was found.</p>"
        f"<div class=wide><table><thead><tr><th>structure</th>{heads}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _cases(
    per_case: Mapping[str, Mapping[str, float]], means: Mapping[str, float], order: Sequence[str]
) -> str:
    names = list(next(iter(per_case.values()), {}))
    heads = "".join(f"<th class=number>{_text(name)}</th>" for name in (*names, "mean"))
    rows = "".join(
        f"<tr><th scope=row>{_text(case)}</th>"
        + "".join(f"<td class=number>{_number(per_case[case][name])}</td>" for name in names)
        + f"<td class=number>{_number(means[case])}</td></tr>"
        for case in order[:_ROWS]
    )
    shown = f"the worst {_ROWS} of {len(order)}" if len(order) > _ROWS else "worst first"
    return (
        f"<h2>Validation Dice by case</h2><p class=quiet>{shown}</p><div class=wide><table>"
        f"<thead><tr><th>case</th>{heads}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _overlays(
    chosen: Sequence[tuple[str, float, Case]], run: Path, settings: RunSettings, listener: Listener
) -> str:
    if not chosen:
        return ""
    predictor = Predictor.load(run, device=settings.training.device)
    listener.started("drawing cases", len(chosen))
    figures = []
    for done, (name, dice, case) in enumerate(chosen, start=1):
        if listener.cancelled():
            raise Cancelled
        names = [channel.name for channel in predictor.card.inputs.channels]
        volume, truth = read_labelled(case, names, settings.scheme(), settings.ignore_value)
        found = predictor.predict(volume).labels
        figures.append(
            f"<h3>{_text(name)}, mean Dice {_number(dice)}</h3>"
            f"{_figure(volume, found, 'found')}{_figure(volume, truth, 'truth')}"
        )
        listener.advanced("drawing cases", done)
    return (
        "<h2>Worst and best cases</h2><p class=quiet>Each picture shows the planes that show most "
        f"of its own segmentation.</p>{''.join(figures)}"
    )


def _figure(volume: Volume, labels: LabelMap, caption: str) -> str:
    picture = three_plane_png(volume, labels, caption=caption)
    return f"<figure>{_image(picture, caption)}</figure>"


def _image(content: bytes, alt: str) -> str:
    data = base64.b64encode(content).decode("ascii")
    return f'<img alt="{_text(alt)}" src="data:image/png;base64,{data}">'


def _number(value: float) -> str:
    return f"{value:.4f}" if math.isfinite(value) else "-"


def _text(text: str) -> str:
    return html.escape(text, quote=True)
