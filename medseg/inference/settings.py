"""How a prediction is to be made, apart from model and image."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from medseg.models.card import LabelCleaning

__all__ = ["PredictionSettings"]


class PredictionSettings(BaseModel):
    """Everything that can be chosen; the defaults are those of the command line.

    Attributes:
        precision: Arithmetic inside the networks; ``auto`` takes bfloat16 (float16 on older GPUs)
            where it is faster and gives the same labels.
        batch: Windows per forward call.
        overlap: Least share of the window that neighbours have in common; None takes the model's.
        blending: How much a voxel of a window counts: by a Gaussian round the centre, or all alike.
        mirror: Test-time augmentation: axes of the model's orientation to mirror along, in all
            combinations; ``model`` takes those that the model was trained with. Empty for none.
        skip: Windows that are not computed: ``constant`` leaves out those of one single value (air
            clipped to the window's lower end, zeros round a skull-stripped brain), ``body`` those
            outside the body too; ``none`` computes all. No label inside the body can change.
        coarser: Factor on the model's spacing; 1 for full quality, 1.5 or 2 for fast passes.
        find_region: Look over the whole image at twice the spacing first, then only where something
            was found.
        uncertainty: Whether the entropy of the probabilities is wanted.
        max_ram_bytes: Limit for the memory of the process; None for what the machine has free.
        max_vram_bytes: Limit for the memory on the GPU; None for what it has free.
        post_processing: Instead of the model's own; None for the model's own, () for none.
        responsive: Whether to leave a core to a viewer.
        threads: Threads for the network; None for all cores that the process has.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    batch: Annotated[int, Field(ge=1, le=64)] = 1
    overlap: Annotated[float, Field(ge=0, lt=1)] | None = None
    blending: Literal["gaussian", "constant"] = "gaussian"
    mirror: tuple[Literal["i", "j", "k"], ...] | Literal["model"] = ()
    skip: Literal["constant", "body", "none"] = "constant"
    coarser: Annotated[float, Field(ge=1, le=8)] = 1.0
    find_region: bool = False
    uncertainty: bool = False
    max_ram_bytes: Annotated[int, Field(ge=1)] | None = None
    max_vram_bytes: Annotated[int, Field(ge=1)] | None = None
    post_processing: tuple[LabelCleaning, ...] | None = None
    responsive: bool = False
    threads: Annotated[int, Field(ge=1)] | None = None

    @model_validator(mode="after")
    def _axes_once(self) -> Self:
        if len(set(self.mirror)) != len(self.mirror):
            raise ValueError("mirror names an axis twice")
        return self
