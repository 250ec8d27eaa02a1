"""One training with all that was checked before it began."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import monai
import torch

import medseg
from medseg.data.datalist import DataList
from medseg.errors import ConfigError
from medseg.events import Cancelled, Listener
from medseg.models.card import ModelDescription, StartModel, Training, load_card
from medseg.models.folder import save_model
from medseg.models.network import SegmentationNetwork
from medseg.training.checkpoint import BestWeights, Checkpoint, load_best
from medseg.training.engine import Outcome, TrainingRun
from medseg.training.logs import RunLog
from medseg.training.losses import LossOptions, build_loss
from medseg.training.precision import Numerics, choose_numerics
from medseg.training.ranks import Ranks
from medseg.training.schedule import BudgetPace, Pace, StepPace
from medseg.training.settings import RunSettings
from medseg.training.step import Stepper, build_optimizer
from medseg.training.validation import Scores, Validator
from pipelines.run_folder import Earlier, RunFolder, hardware, versions
from pipelines.train_result import TrainResult
from pipelines.training_cases import read_cases

__all__ = ["TrainingSession"]

_PROBE_SHARE = 0.05
_PROBE_LIMIT_S = 60.0


@dataclass(slots=True)
class TrainingSession:
    """A run from reading the cases to the written record.

    Args:
        settings: Complete.
        data: The cases.
        folder: The run folder.
        device: Where the network trains.
        network: New, or with a pretrained encoder.
        listener: Progress and the wish to stop.
        ranks: The processes that train together.
        earlier: The run to go on with; None for a new one.
        started: The model whose weights it began with; None for none.
    """

    settings: RunSettings
    data: DataList
    folder: RunFolder
    device: torch.device
    network: SegmentationNetwork
    listener: Listener
    ranks: Ranks
    earlier: Earlier | None
    started: StartModel | None = None

    def run(self, budget_s: float | None, *, overwrite: bool) -> TrainResult:
        """Read, train, validate, write.

        Args:
            budget_s: Wall-clock seconds in place of epochs or steps.
            overwrite: Whether an earlier run in the folder is removed.
        """
        training = self.settings.training
        checkpoint = None if self.earlier is None else self.earlier.checkpoint
        budget_s = self._budget(budget_s)
        began = time.monotonic()
        batches, held_out = read_cases(
            self.settings, self.data, self.folder.path, self.device, self.listener, self.ranks
        )
        reading_s = time.monotonic() - began
        self.ranks.by_first(
            (lambda: self.folder.begin(self.data, overwrite=overwrite))
            if self.earlier is None
            else (lambda: self.folder.go_on(self.data))
        )
        self.network.to(self.device)
        if training.sync_batch_norm:
            self.ranks.with_common_statistics(self.network, self.device)
        loss = build_loss(
            self.network.head_strides, self.network.deep_supervision_weights, self._loss_options()
        )
        pace: Pace = (
            StepPace(training.steps or (training.epochs or 1) * len(batches))
            if budget_s is None
            else BudgetPace(budget_s, _spent_s(checkpoint))
        )
        chosen_began = time.monotonic()
        numerics = self.ranks.told(self._numerics(loss, budget_s) if self.ranks.first else None)
        assert numerics is not None  # noqa: S101 - the first rank chose
        numerics.arrange_network(self.network)
        probe_s = time.monotonic() - chosen_began
        names = self.settings.target_names
        validator = (
            None
            if held_out is None
            else Validator(
                held_out,
                self.settings.inputs,
                names,
                self.device,
                numerics,
                self.settings.region_classes,
            )
        )
        stepper = Stepper(
            network=self.network,
            loss=loss,
            optimizer=build_optimizer(self.network, training),
            settings=training,
            numerics=numerics,
            device=self.device,
            ranks=self.ranks,
            every_weight_used=min(self.network.deep_supervision_weights, default=1.0) > 0,
        )
        torch.manual_seed(training.seed + self.ranks.rank)
        log = self._log(names, None if checkpoint is None else checkpoint.step)
        try:
            outcome = TrainingRun(
                stepper=stepper,
                batches=batches,
                validator=validator,
                pace=pace,
                log=log,
                folder=self.folder.path,
                listener=self.listener,
                keep_model=lambda steps, epochs, seconds: self._keep_unfinished(
                    stepper, steps, epochs, seconds
                ),
                config_sha256=self.folder.course_sha256,
                budget_s=budget_s,
                resume=checkpoint,
            ).run()
            best = self._take_best(stepper, outcome)
            scores = self._final_scores(stepper, validator, outcome)
            if log is not None and outcome.steps:
                if scores is not None and (outcome.losses or not log.validations):
                    log.validated(
                        step=outcome.steps,
                        epoch=outcome.epochs,
                        seconds=outcome.seconds,
                        dice=scores.dice,
                        mean=scores.mean,
                    )
                log.epoch_ended(last=True)
        except ConfigError as error:
            if error.code == "loss-not-finite" and self.ranks.first:
                self.folder.write_record(
                    {
                        "notice": medseg.NOTICE,
                        "finished": False,
                        "stopped": error.code,
                        "reason": str(error),
                        "versions": versions(),
                        "config_sha256": self.folder.config_sha256,
                        "seed": training.seed,
                        "hardware": hardware(self.device),
                        "steps_left_out": stepper.skipped,
                    }
                )
            raise
        finally:
            if log is not None:
                log.close()
        # a continued run counts the seconds of its earlier parts, choosing the precision among them
        training_s = outcome.seconds + (probe_s if checkpoint is None else 0.0)
        if self.ranks.first:
            self._keep_model(
                stepper, outcome.steps, outcome.epochs, training_s, scores, outcome.finished, best
            )
            self._write_record(outcome, numerics, scores, reading_s, probe_s, budget_s, best)
        scores = self.ranks.told(scores)
        return TrainResult(
            run_folder=self.folder.path,
            card=load_card(self.folder.path),
            losses=outcome.losses,
            steps=outcome.steps,
            epochs=outcome.epochs,
            reading_s=reading_s,
            training_s=training_s,
            validation_s=0.0 if scores is None else scores.seconds,
            numerics=numerics,
            dice={} if scores is None else scores.dice,
            mean_dice=math.nan if scores is None else scores.mean,
            per_case={} if scores is None else scores.per_case,
            weights=_count_weights(self.network),
            skipped=outcome.skipped,
            finished=outcome.finished,
        )

    def _budget(self, given_s: float | None) -> float | None:
        """The wall-clock time of the whole run; a continued one keeps its own or gets more."""
        checkpoint = None if self.earlier is None else self.earlier.checkpoint
        if checkpoint is None:
            return given_s
        kept = checkpoint.budget_s
        if given_s is not None and (kept is None or given_s < kept):
            raise ConfigError(
                "budget",
                expected="no budget, since steps end the run"
                if kept is None
                else f"at least {kept:g} s, as the run was begun with",
                found=f"{given_s:g} s",
                remedy="leave --budget out, or name larger training.steps or training.epochs"
                if kept is None
                else "leave --budget out: what is left of the run's own is used",
                code="resume-settings",
            )
        return kept if given_s is None else given_s

    def _loss_options(self) -> LossOptions:
        training = self.settings.training
        return LossOptions(
            dice_weight=training.dice_weight,
            cross_entropy_weight=training.cross_entropy_weight,
            batch_dice=training.batch_dice,
            background=training.dice_background,
            smooth=training.dice_smooth,
            regions=self.settings.region_classes,
            ignoring=self.settings.ignore_value is not None,
        )

    def _log(self, names: Sequence[str], resume_step: int | None) -> RunLog | None:
        if not self.ranks.first:
            return None
        mlflow = self.settings.name if self.settings.training.mlflow else None
        return RunLog(self.folder.path, names, resume_step=resume_step, mlflow=mlflow)

    def _numerics(self, loss: torch.nn.Module, budget_s: float | None) -> Numerics:
        if self.earlier is not None and self.earlier.numerics is not None:
            return self.earlier.numerics
        training = self.settings.training
        limit_s = _PROBE_LIMIT_S if budget_s is None else _PROBE_SHARE * budget_s
        numerics, measured = choose_numerics(
            self.network,
            loss,
            input_shape=(
                training.batch_size // self.ranks.count * training.samples_per_case,
                self.network.in_channels,
                *self.settings.patch_ijk,
            ),
            device=self.device,
            precision=training.precision,
            channels_last=training.channels_last,
            limit_s=limit_s,
        )
        self.folder.write_probe(numerics, measured)
        for one in measured:
            self.listener.noted(
                f"{Numerics(one.precision, one.channels_last).in_words()}: "
                f"{1000 * one.seconds_per_step:.0f} ms per step"
            )
        self.listener.noted(f"training in {numerics.in_words()}")
        return numerics

    def _take_best(self, stepper: Stepper, outcome: Outcome) -> BestWeights | None:
        """Put the weights that validated best in the place of the last, if those are wanted."""
        if not (outcome.finished and self.ranks.first):
            return None
        if self.settings.training.export != "best":
            return None
        best = load_best(self.folder.path / "checkpoints")
        if best is None:
            self.listener.noted("no validation took place in between: the last weights are taken")
            return None
        stepper.judged.load_state_dict(best.network)
        self.listener.noted(f"the weights after step {best.step}, which validated best, are taken")
        return best

    def _final_scores(
        self, stepper: Stepper, validator: Validator | None, outcome: Outcome
    ) -> Scores | None:
        if not outcome.finished or validator is None:
            return None
        try:
            scores = validator.score(stepper.judged, self.listener)
        except Cancelled:
            return None
        self.listener.measured("dice", scores.mean)
        return scores

    def _keep_unfinished(self, stepper: Stepper, steps: int, epochs: int, seconds: float) -> None:
        self._keep_model(stepper, steps, epochs, seconds, None, finished=False, best=None)

    def _keep_model(
        self,
        stepper: Stepper,
        steps: int,
        epochs: int,
        seconds: float,
        scores: Scores | None,
        finished: bool,
        best: BestWeights | None,
    ) -> None:
        settings = self.settings
        dice = {} if scores is None else scores.dice
        description = ModelDescription(
            name=settings.name,
            version=settings.version,
            description=settings.description,
            network=settings.network,
            inputs=settings.inputs,
            labels=settings.labels,
            regions=settings.regions,
            training=Training(
                dataset=self.data.name,
                dataset_licence=self.data.licence,
                training_cases=len(self.data.train),
                validation_cases=len(self.data.validation),
                steps=steps,
                epochs=epochs,
                seconds=round(seconds, 1),
                seed=settings.training.seed,
                # a structure that no validation case holds has no Dice
                validation_dice={
                    name: round(value, 4) for name, value in dice.items() if math.isfinite(value)
                },
                config_sha256=self.folder.config_sha256,
                medseg_version=medseg.__version__,
                torch_version=str(torch.__version__),
                monai_version=str(monai.__version__),
                finished=finished,
                weights="last" if best is None else "best",
                weights_step=steps if best is None else best.step,
                averaged=stepper.averaged is not None,
                started_from=self.started,
            ),
            licence=settings.licence,
            intended_use=settings.intended_use,
        )
        save_model(self.folder.path / "model", stepper.judged, description)

    def _write_record(
        self,
        outcome: Outcome,
        numerics: Numerics,
        scores: Scores | None,
        reading_s: float,
        probe_s: float,
        budget_s: float | None,
        best: BestWeights | None,
    ) -> None:
        self.folder.write_record(
            {
                "notice": medseg.NOTICE,
                "finished": outcome.finished,
                "ended_early": outcome.early,
                "versions": versions(),
                "config_sha256": self.folder.config_sha256,
                "dataset": {
                    "name": self.data.name,
                    "licence": self.data.licence,
                    "sha256": self.data.sha256,
                    "training_cases": len(self.data.train),
                    "validation_cases": len(self.data.validation),
                    "split": self.data.split_source,
                },
                **({} if self.started is None else {"started_from": self.started.model_dump()}),
                "seed": self.settings.training.seed,
                "hardware": hardware(self.device),
                "processes": self.ranks.count,
                "numerics": {
                    "precision": numerics.precision,
                    "channels_last": numerics.channels_last,
                },
                "weights": _count_weights(self.network),
                "exported": {
                    "weights": "last" if best is None else "best",
                    "step": outcome.steps if best is None else best.step,
                },
                "steps": outcome.steps,
                "steps_left_out": outcome.skipped,
                "epochs": outcome.epochs,
                "seconds": {
                    "budget": budget_s,
                    "reading": round(reading_s, 2),
                    "choosing_precision": round(probe_s, 2),
                    "training": round(outcome.seconds, 2),
                    "validation_in_between": round(outcome.validation_s, 2),
                    "final_validation": None if scores is None else round(scores.seconds, 2),
                },
                "validation_dice": None
                if scores is None
                else _plain({**scores.dice, "mean": scores.mean}),
                "validation_dice_per_case": None
                if scores is None
                else {case: _plain(dice) for case, dice in scores.per_case.items()},
            }
        )


def _plain(dice: dict[str, float]) -> dict[str, float | None]:
    """JSON has no NaN: what could not be measured is null."""
    return {name: round(value, 4) if math.isfinite(value) else None for name, value in dice.items()}


def _spent_s(checkpoint: Checkpoint | None) -> float:
    """Seconds of its budget that the earlier part of a run has used."""
    if checkpoint is None or checkpoint.budget_s is None:
        return 0.0
    return checkpoint.progress * checkpoint.budget_s


def _count_weights(network: torch.nn.Module) -> int:
    return sum(weight.numel() for weight in network.parameters())
