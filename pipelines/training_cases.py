"""The cases of a run, read and prepared: batches to learn from and cases to judge by."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from medseg.cores import usable_cores
from medseg.data.datalist import Case, DataList
from medseg.data.preparation import check_fills
from medseg.data.preparing import CachePlan
from medseg.errors import ConfigError
from medseg.events import Listener
from medseg.training.batches import StepBatches
from medseg.training.cases import PreparedCases, cache_cases, training_loader
from medseg.training.ranks import Ranks
from medseg.training.settings import RunSettings
from medseg.training.transforms import ReadCase, training_transforms, validation_transforms
from pipelines.training_checks import check_foreground

__all__ = ["read_cases", "steps_ahead"]

_AHEAD = 2


def read_cases(
    settings: RunSettings,
    data: DataList,
    run_folder: Path,
    device: torch.device,
    listener: Listener,
    ranks: Ranks,
) -> tuple[StepBatches, PreparedCases | None]:
    """Read and prepare the cases of a run.

    Args:
        settings: Complete.
        data: The cases.
        run_folder: Prepared cases lie in the folder ``prepared`` beside it, unless the settings
            name another place.
        device: Where the network trains.
        listener: Progress and the wish to stop.
        ranks: The processes that train together; only the first judges.

    Returns:
        The batches of every step, and the cases held out; None on all ranks but the first.

    Raises:
        ConfigError: If the processes cannot share a batch, or no case shows a structure.
        MedsegError: What is wrong with a case.
        Cancelled: If the listener asks to stop.
    """
    training = settings.training
    ranks.share_of(training.batch_size)  # refuses what cannot be shared evenly
    if not ranks.alone and len(data.train) < training.batch_size:
        raise ConfigError(
            "training.batch_size",
            expected=f"at most {len(data.train)}, the number of training cases, where "
            "processes share a batch",
            found=str(training.batch_size),
            remedy="lower it, or train in one process",
            code="batch-processes",
        )
    read = ReadCase(
        settings.inputs,
        settings.scheme(),
        settings.ignore_value,
        settings.region_classes or (),
    )
    plan = CachePlan(
        training.cache,
        Path(training.cache_folder or run_folder.absolute().parent / "prepared"),
        training.preparation_processes,
    )
    transforms = training_transforms(
        read,
        settings.patch_ijk,
        samples_per_case=training.samples_per_case,
        foreground_share=training.foreground_share,
        augmentation=training.augmentation,
    )

    def cached(cases: Sequence[Case], pipeline: object, stage: str) -> PreparedCases:
        return cache_cases(cases, read, pipeline, listener, stage=stage, plan=plan)

    training_cases = cached(data.train, transforms, "reading training cases")
    check_foreground(training_cases.cases, settings.target_names, data.name, listener)
    held_out = (
        cached(data.validation, validation_transforms(read), "reading validation cases")
        if ranks.first and data.validation
        else None
    )
    for case in held_out.cases if held_out is not None else ():
        # prediction would refuse it once everything is learned
        check_fills(
            case.shape_ijk,
            settings.inputs,
            where=f"validation case {case.id}",
            remedy="choose a smaller inputs.window_ijk, or leave the case out of the split",
        )
    loader = training_loader(
        training_cases,
        batch_size=training.batch_size,
        seed=training.seed,
        workers=_workers(training.workers, listener),
        device=device,
        part=ranks.rank,
        parts=ranks.count,
    )
    ahead = training.prefetch
    if ahead == "auto":
        ahead = steps_ahead(device, ranks)
    return StepBatches(loader, accumulate=training.accumulate, ahead=ahead), held_out


def steps_ahead(device: torch.device, ranks: Ranks | None = None) -> int:
    """How many steps a thread keeps ready, unless the settings say.

    None where the threads of the network have all cores: each of its operations waits for the
    slowest of them, so that what takes a core from one takes it from all.

    Args:
        device: Of the network.
        ranks: The processes that train, all on this machine or not; None for this one alone.
    """
    processes = 1 if ranks is None else ranks.count
    free = device.type != "cpu" or usable_cores() > processes * torch.get_num_threads()
    return _AHEAD if free else 0


def _workers(wanted: int, listener: Listener) -> int:
    """No more processes than cores: further ones would only wait for each other."""
    cores = usable_cores()
    if wanted <= cores:
        return wanted
    listener.noted(f"{cores} instead of {wanted} training.workers, as many as there are cores")
    return cores
