"""In which precision and memory layout a network predicts, and with how many threads.

Lower precision and channels-last are not faster on every processor, and a network trained in
float32 may overflow in fewer bits. So the network itself is asked: a short probe times the
combinations that the device offers and compares their answers with float32. The choice is kept in a
small file, so that the next start need not measure.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from medseg.atomic import write_text
from medseg.errors import ConfigError, MedsegError, one_of
from medseg.models.network import arrange_weights
from medseg.ops.precision import LOWER_PRECISIONS, Precision, autocast_to, has_bf16

__all__ = [
    "InferenceNumerics",
    "choose_inference_numerics",
    "inference_threads",
    "using_threads",
]

LEAST_AGREEMENT = 0.99
"""Share of the probe's voxels that must get float32's label."""

_KEPT_CHOICES = 256
_LARGEST_FILE = 1 << 20
_SMALL_VOXELS = 1 << 14  # less, and the weights alone cost more than the maps
_PASSES = 2  # of each combination on each window: the first one warms up


@dataclass(frozen=True, slots=True)
class InferenceNumerics:
    """Precision of the network's operations and layout of its maps; weights stay float32.

    Args:
        precision: What autocast computes in.
        channels_last: Whether maps and weights are ``channels_last_3d``.
        seconds: Time of one window of the probe for each combination measured, by name; empty
            where nothing had to be measured.
        notes: Sentences for the reader, such as why a lower precision was not taken.
    """

    precision: Precision
    channels_last: bool
    seconds: dict[str, float]
    notes: tuple[str, ...]

    @property
    def autocast_dtype(self) -> torch.dtype | None:
        """The lower precision, or None for float32."""
        return LOWER_PRECISIONS.get(self.precision)

    def autocast(self, device: torch.device) -> AbstractContextManager[Any]:
        """The context to run the network in."""
        return autocast_to(self.precision, device)

    def arrange(self, x_bcijk: Tensor) -> Tensor:
        """A five-dimensional tensor in the chosen layout; the same one if it has it already."""
        layout = torch.channels_last_3d if self.channels_last else torch.contiguous_format
        return x_bcijk.to(memory_format=layout)

    def arrange_network(self, network: nn.Module) -> nn.Module:
        """The network with its weights in the chosen layout; the same object."""
        arrange_weights(network, channels_last=self.channels_last)
        return network

    def in_words(self) -> str:
        """Such as ``bf16, channels last``."""
        return _in_words((self.precision, self.channels_last))


def choose_inference_numerics(
    network: nn.Module,
    shape_bcijk: Sequence[int],
    device: torch.device,
    precision: Literal["auto"] | Precision = "auto",
    *,
    store: Path | None,
    key: str,
    limit_s: float = 1.0,
    regions: bool = False,
) -> InferenceNumerics:
    """The fastest combination of precision and layout whose answers can be trusted.

    - On a CPU, auto compares float32 channels-last, bfloat16 channels-last where the processor
      multiplies it, and float32 contiguous.
    - On a CUDA device auto is bfloat16 where the hardware has it, else float16; only the layouts
      compete.
    - On Apple's GPU auto is float32 contiguous: torch has no transposed 3D convolution in fewer
      bits there, nor the channels-last layout for volumes.

    Each is run on a small window first, then on ever larger ones, up to the full window, for as
    long as the time of the last one foretells that the next one fits. The input is smooth made
    noise of mean 0 and deviation 1, one image at a time. It takes the memory of one full window in
    float32, at most, and of a second set of weights; where that is not there, smaller windows
    decide.

    A lower precision whose answer is not finite where float32's is never taken. One that gives less
    than 99 % of the voxels float32's label is not taken by auto; if it was asked for by name it
    stays, with a note, since made noise is no image.

    The caller's network and random numbers stay as they are. Torch's number of threads should be
    the one that the prediction will use.

    Args:
        network: On ``device``, in any mode; it is run in eval mode.
        shape_bcijk: ``(b, c, i, j, k)`` of one batch of windows, legal for the network.
        device: Where the network is.
        precision: One precision, or auto.
        store: JSON file that keeps choices; None keeps nothing. A damaged or foreign one is
            replaced, one that cannot be read or written is done without. Its folder is made.
        key: What else the choice depends on: hash of the weights, window, form of the network. Must
            not hold patient data.
        limit_s: Seconds for the probe. A pass that has begun is finished, and float32 and one pass
            of the lower precision are always run, so that slow networks take longer.
        regions: Whether the channels are regions, each there or not, instead of classes of which
            the largest logit wins.

    Raises:
        ConfigError: If float16 is wanted on a CPU, or the precision is unknown.
        ShapeError: If the network refuses the window and every smaller one.
    """
    _check_precision(precision, device)
    candidates = _candidates(device, precision)
    if candidates == (("fp32", False),):
        return InferenceNumerics("fp32", False, {}, ())
    full_key = _full_key(device, precision, regions, key)
    if store is not None:
        known = _read_store(store).get(full_key)
        if known is not None:
            return known.to_numerics()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        probe = _Probe(network, shape_bcijk, device, regions=regions, limit_s=limit_s)
        chosen = _choose(probe, candidates, asked=precision != "auto")
    if store is not None and probe.complete:
        _write_store(store, full_key, chosen)
    return chosen


def inference_threads(total: int, responsive: bool) -> int:
    """Threads for the network.

    Args:
        total: Cores that the process may use.
        responsive: Whether to leave one core to a viewer and the system.

    Returns:
        At least 1: on a machine of one core, viewer and network share it.

    Raises:
        ConfigError: If ``total`` is below 1.

    >>> inference_threads(8, responsive=True), inference_threads(8, responsive=False)
    (7, 8)
    """
    if total < 1:
        raise ConfigError(
            "threads",
            expected="at least 1",
            found=str(total),
            remedy="leave it out to use the cores there are",
            code="config-value",
        )
    return max(1, total - 1) if responsive else total


@contextmanager
def using_threads(number: int) -> Iterator[None]:
    """Let torch compute with so many threads, and with as many as before afterwards.

    Torch keeps the number for each thread that calls it: enter this in the thread that runs the
    network.

    Args:
        number: At least 1, such as from :func:`inference_threads`.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


_Candidate = tuple[Precision, bool]


def _in_words(candidate: _Candidate) -> str:
    precision, channels_last = candidate
    return f"{precision}, {'channels last' if channels_last else 'contiguous'}"


def _check_precision(precision: str, device: torch.device) -> None:
    choices = ["auto", "bf16", "fp32"] if device.type == "cpu" else ["auto", "bf16", "fp16", "fp32"]
    if precision not in choices:
        place = " on a CPU" if device.type == "cpu" else ""
        raise ConfigError(
            "precision",
            expected=one_of(precision, choices) + place,
            found=repr(precision),
            remedy="auto picks what is fastest here",
            code="config-value",
        )


def _candidates(
    device: torch.device, precision: Literal["auto"] | Precision
) -> tuple[_Candidate, ...]:
    """What competes; the last ones are what time may leave out."""
    if device.type == "mps":
        return (("fp32" if precision == "auto" else precision, False),)
    if precision != "auto":
        return ((precision, True), (precision, False))
    if device.type == "cuda":
        lower: Precision = "bf16" if has_bf16(device) else "fp16"
        return ((lower, True), (lower, False))
    if has_bf16(device):
        return (("bf16", True), ("fp32", True), ("fp32", False))
    return (("fp32", True), ("fp32", False))


@dataclass(frozen=True, slots=True)
class _Comparison:
    """A lower precision beside float32 on the same input."""

    finite: bool
    agreement: float


class _Probe:
    """Runs a copy of a network on made windows, and watches the clock."""

    def __init__(
        self,
        network: nn.Module,
        shape_bcijk: Sequence[int],
        device: torch.device,
        *,
        regions: bool,
        limit_s: float,
    ) -> None:
        self._trial = copy.deepcopy(network).eval()
        self._channels = shape_bcijk[1]
        self.device = device
        self._regions = regions
        self._ends = time.monotonic() + limit_s
        self._layout = device.type != "mps"
        self._windows = _reduced_windows(network, tuple(shape_bcijk[2:]))
        self._warm: set[tuple[_Candidate, tuple[int, ...]]] = set()
        self._expected_bnijk = self._plain_answer()
        self.complete = True

    @property
    def plain_candidates(self) -> tuple[_Candidate, ...]:
        """What is left where no lower precision can be taken."""
        return (("fp32", True), ("fp32", False)) if self._layout else (("fp32", False),)

    def compare(self, precision: Precision) -> _Comparison:
        """Compare it with float32 on the small window.

        Raises:
            RuntimeError: If the device does not run the network in that precision.
        """
        expected = self._expected_bnijk
        found = self._answer((precision, self._layout), self._input(self._windows[-1]))
        if not bool(expected.isfinite().all()):
            # a network without a sound answer in float32 is for the engine to refuse
            return _Comparison(finite=True, agreement=1.0)
        equal = self._labels(found) == self._labels(expected)
        return _Comparison(
            finite=bool(found.isfinite().all()), agreement=float(equal.float().mean())
        )

    def time(self, candidates: Sequence[_Candidate]) -> dict[_Candidate, float]:
        """Seconds per window of each candidate that time allowed, all on windows of one size."""
        window = self._windows[-1]
        seconds = self._time_all(candidates, window)
        self.complete = len(seconds) == len(candidates)
        while self.complete:
            # small windows foretell too much for large ones, so that each step shows new room
            rate_s = _PASSES * sum(seconds.values()) / math.prod(window)
            room = (self._ends - time.monotonic()) / rate_s
            larger = next((one for one in self._windows if math.prod(one) <= room), window)
            if math.prod(larger) <= math.prod(window):
                break
            again = self._time_all(candidates, larger)
            if len(again) < len(candidates):
                break
            window, seconds = larger, again
        return seconds

    def _plain_answer(self) -> Tensor:
        """Answer in float32 on the smallest window; windows that the network refuses are dropped.

        A foreign network does not tell its legal extents, and a norm needs more than one voxel on
        the coarsest map.
        """
        while True:
            try:
                return self._answer(("fp32", self._layout), self._input(self._windows[-1]))
            except (RuntimeError, ValueError):
                if len(self._windows) == 1:
                    raise
                self._windows.pop()

    def _time_all(
        self, candidates: Sequence[_Candidate], window: tuple[int, ...]
    ) -> dict[_Candidate, float]:
        seconds: dict[_Candidate, float] = {}
        x_bcijk = self._input(window)
        for candidate in candidates:
            if seconds and time.monotonic() > self._ends:
                break
            for _ in range(1 if (candidate, window) in self._warm else _PASSES):
                began = time.perf_counter()
                try:
                    self._answer(candidate, x_bcijk)
                except (RuntimeError, MemoryError) as error:
                    if not _lacks_memory(error):
                        raise
                    return {}
                seconds[candidate] = time.perf_counter() - began
        return seconds

    def _answer(self, candidate: _Candidate, x_bcijk: Tensor) -> Tensor:
        precision, channels_last = candidate
        arrange_weights(self._trial, channels_last=channels_last)
        layout = torch.channels_last_3d if channels_last else torch.contiguous_format
        x_bcijk = x_bcijk.to(memory_format=layout)
        with torch.inference_mode(), autocast_to(precision, self.device):
            logits_bnijk = self._trial(x_bcijk)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self._warm.add((candidate, tuple(x_bcijk.shape[2:])))
        assert isinstance(logits_bnijk, Tensor)  # noqa: S101 - what eval mode promises
        return logits_bnijk

    def _labels(self, logits_bnijk: Tensor) -> Tensor:
        if self._regions or logits_bnijk.shape[1] == 1:
            return logits_bnijk > 0
        return logits_bnijk.argmax(1)

    def _input(self, window: tuple[int, ...]) -> Tensor:
        """Noise that is smooth over four voxels, as images are; ``(1, c, *window)``."""
        draw = torch.Generator().manual_seed(0)
        coarse = [max(1, -(-extent // 4)) for extent in window]
        x_bcijk = torch.randn((1, self._channels, *coarse), generator=draw)
        x_bcijk = F.interpolate(x_bcijk, size=window, mode="trilinear", align_corners=False)
        x_bcijk = x_bcijk + 0.1 * torch.randn(x_bcijk.shape, generator=draw)
        return ((x_bcijk - x_bcijk.mean()) / x_bcijk.std()).to(self.device)


def _reduced_windows(network: nn.Module, window: tuple[int, ...]) -> list[tuple[int, ...]]:
    """The window, then ever smaller ones of the same form, each half the one before or less.

    Every extent is a multiple of the network's ``size_multiple``, or of 8 where it does not tell.
    """
    multiple: tuple[int, ...] = getattr(network, "size_multiple", None) or (8, 8, 8)
    if len(multiple) != len(window):
        # a 2D network that slices a volume by itself tells of two axes only
        multiple = (max(multiple),) * len(window)
    windows = [window]
    while math.prod(windows[-1]) > _SMALL_VOXELS:
        share = (math.prod(windows[-1]) / 2 / math.prod(window)) ** (1 / len(window))
        smaller = tuple(
            min(extent, max(step, int(extent * share) // step * step))
            for extent, step in zip(window, multiple, strict=True)
        )
        if smaller == windows[-1]:
            break
        windows.append(smaller)
    return windows


def _choose(probe: _Probe, candidates: tuple[_Candidate, ...], *, asked: bool) -> InferenceNumerics:
    notes: list[str] = []
    if asked and candidates[0][0] == "bf16" and not has_bf16(probe.device):
        notes.append("this processor does not multiply bf16: torch imitates it, which is slow")
    lower = next((kind for kind, _ in candidates if kind != "fp32"), None)
    if lower is not None:
        refusal, remark = _judge(probe, lower, asked=asked)
        notes += [sentence for sentence in (refusal, remark) if sentence]
        if refusal:
            candidates = tuple(one for one in candidates if one[0] == "fp32")
            candidates = candidates or probe.plain_candidates
    seconds = probe.time(candidates) if len(candidates) > 1 else {}
    best = min(seconds, key=lambda one: seconds[one], default=candidates[0])
    return InferenceNumerics(
        best[0],
        best[1],
        {_in_words(one): round(taken, 6) for one, taken in seconds.items()},
        tuple(notes),
    )


def _judge(probe: _Probe, precision: Precision, *, asked: bool) -> tuple[str | None, str | None]:
    """Why the precision cannot be taken, if so; and what to know if it is."""
    try:
        compared = probe.compare(precision)
    except RuntimeError as error:
        if _lacks_memory(error):
            raise
        return f"{precision} does not run on this device with this network; fp32 is used", None
    if not compared.finite:
        return f"{precision} makes this network answer NaN or infinity; fp32 is used", None
    if compared.agreement >= LEAST_AGREEMENT:
        return None, None
    share = f"{100 * compared.agreement:.1f} %"
    if asked:
        return None, f"on made noise, {precision} gives {share} of the voxels the label of fp32"
    return f"{precision} gives only {share} of the voxels the label of fp32; fp32 is used", None


def _lacks_memory(error: BaseException) -> bool:
    # torch's allocator on the CPU has no exception of its own
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        "allocate memory" in str(error)
    )


class _Kept(BaseModel):
    """One choice in the store."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    precision: Precision
    channels_last: bool
    seconds: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]]
    notes: list[str]

    def to_numerics(self) -> InferenceNumerics:
        return InferenceNumerics(
            self.precision, self.channels_last, dict(self.seconds), tuple(self.notes)
        )


class _Store(BaseModel):
    """The whole file."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    format: Literal["medseg-inference-numerics-1"] = "medseg-inference-numerics-1"
    choices: dict[str, _Kept]


def _full_key(device: torch.device, precision: str, regions: bool, key: str) -> str:
    if device.type == "cuda":
        hardware = torch.cuda.get_device_name(device)
    else:
        # the model's name alone does not tell what a virtual machine lets through
        abilities = torch.cpu.get_capabilities()
        listed = json.dumps(abilities, sort_keys=True, default=str)
        digest = hashlib.sha256(listed.encode()).hexdigest()[:12]
        hardware = f"{abilities.get('cpu_name', 'CPU')} {digest}"
    parts = (
        device.type,
        hardware,
        f"torch {torch.__version__}",
        f"{torch.get_num_threads()} threads",
        precision,
        "regions" if regions else "classes",
        key,
    )
    return " | ".join(parts)


def _read_store(store: Path) -> dict[str, _Kept]:
    """What the file keeps; nothing if it is missing, damaged, foreign or absurdly large."""
    try:
        if store.stat().st_size > _LARGEST_FILE:
            return {}
        # one read of a file that is only ever replaced whole
        return _Store.model_validate_json(store.read_bytes()).choices
    except (OSError, ValidationError):
        return {}


def _write_store(store: Path, key: str, chosen: InferenceNumerics) -> None:
    """Add the choice; of two processes that write at once one is lost, and measures again."""
    choices = _read_store(store)
    choices.pop(key, None)
    choices[key] = _Kept(
        precision=chosen.precision,
        channels_last=chosen.channels_last,
        seconds=chosen.seconds,
        notes=list(chosen.notes),
    )
    newest = dict(list(choices.items())[-_KEPT_CHOICES:])
    # a cache that cannot be written costs a second at the next start, and is no failure
    with suppress(MedsegError, OSError):
        store.parent.mkdir(parents=True, exist_ok=True)
        write_text(store, _Store(choices=newest).model_dump_json(indent=1))
