"""A training run, or its folds, judged on the cases that it held out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from medseg.core import LabelScheme
from medseg.events import Listener
from pipelines.evaluate import EvaluationOrder, evaluate
from pipelines.evaluation_files import Evaluation
from pipelines.pairing import Pairing
from pipelines.run_cases import RunCases, segment_part

__all__ = ["JudgedRun", "evaluate_run"]


@dataclass(frozen=True, slots=True)
class JudgedRun:
    """What an evaluation of a run found.

    Args:
        cases: What was segmented, and where it lies.
        evaluation: The figures.
        pairing: Which file belongs to which.
        scheme: What both are read with.
    """

    cases: RunCases
    evaluation: Evaluation
    pairing: Pairing
    scheme: LabelScheme


def evaluate_run(
    order: EvaluationOrder,
    out: Path,
    listener: Listener,
    *,
    part: str | None = None,
    data: Path | None = None,
    device: str = "auto",
    overwrite: bool = False,
) -> JudgedRun:
    """Segment the cases that a run held out and score them.

    Args:
        order: The rules; ``predictions`` is the folder of the run or of folds, and labels and
            references are those of the run.
        out: Gets ``predictions`` and ``references``.
        listener: Told of every case; may ask to stop.
        part: As :func:`~pipelines.run_cases.segment_part`, like the rest.
        data: Folder of the dataset.
        device: Where the model runs.
        overwrite: Whether results of an earlier call may be replaced.

    Returns:
        The figures; cases that could not be segmented are among the failed ones, not among those
        that miss a prediction.

    Raises:
        MedsegError: As :func:`~pipelines.run_cases.segment_part` and
            :func:`~pipelines.evaluate.evaluate`.
        Cancelled: If the listener asks to stop.
    """
    made = segment_part(
        order.predictions,
        out,
        listener,
        part=part,
        data=data,
        device=device,
        only=order.only,
        overwrite=overwrite,
    )
    ignored = None if made.ignored is None else str(made.ignored)
    evaluation, pairing, scheme = evaluate(
        replace(
            order,
            predictions=made.predictions,
            references=made.references,
            model=str(made.model),
            ignore_label=order.ignore_label or ignored,
            only=made.cases,
        ),
        listener,
    )
    unmade = {each.case for each in made.failed}  # known as failed, not only as missing
    evaluation = replace(
        evaluation,
        failed=(*made.failed, *(one for one in evaluation.failed if one.case not in unmade)),
        missing=tuple(case for case in evaluation.missing if case not in unmade),
    )
    return JudgedRun(made, evaluation, pairing, scheme)
