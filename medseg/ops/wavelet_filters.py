"""Filters of the discrete wavelets and what happens at the ends of a signal.

One level of the transform of a signal ``x`` of ``n`` samples with filters of ``L`` taps is

    a[i] = sum_j low[j] x[2 i + s - j],    d[i] = sum_j high[j] x[2 i + s - j],    0 <= j < L,

where ``x`` is continued beyond its ends by the mode. ``s`` is 1 and there are ``(n + L - 1) // 2``
coefficients, except in mode ``periodization``: ``s`` is ``L / 2`` and there are ``ceil(n / 2)``.
These are the conventions of PyWavelets (its C source ``convolution.template.c`` states them), whose
filter tables are used.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from medseg.errors import ConfigError, one_of

__all__ = [
    "MODES",
    "FilterBank",
    "Mode",
    "Split",
    "Taps",
    "coefficient_length",
    "continuation",
    "filter_bank",
    "matrix",
    "max_level",
    "mode_named",
    "overhang",
    "split",
]

Mode: TypeAlias = Literal[
    "zero",
    "constant",
    "symmetric",
    "periodic",
    "smooth",
    "periodization",
    "reflect",
    "antisymmetric",
    "antireflect",
]
"""How a signal goes on beyond its ends; the names are those of PyWavelets."""

MODES: tuple[Mode, ...] = get_args(Mode)

Taps: TypeAlias = tuple[float, ...]


@dataclass(frozen=True, slots=True)
class FilterBank:
    """The four filters of a wavelet, of one even length, in the order of PyWavelets.

    Attributes:
        name: For messages.
        dec_lo: Analysis, gives the approximation ``a``.
        dec_hi: Analysis, gives the detail ``d``.
        rec_lo: Synthesis from ``a``.
        rec_hi: Synthesis from ``d``.

    Raises:
        ConfigError: If the lengths differ, or are odd or 0.
    """

    name: str
    dec_lo: Taps
    dec_hi: Taps
    rec_lo: Taps
    rec_hi: Taps

    def __post_init__(self) -> None:
        lengths = [len(taps) for taps in (self.dec_lo, self.dec_hi, self.rec_lo, self.rec_hi)]
        if len(set(lengths)) != 1 or lengths[0] % 2 or not lengths[0]:
            raise ConfigError(
                f"filter bank {self.name}",
                expected="four filters of one even length",
                found=f"lengths {', '.join(map(str, lengths))}",
                remedy="fill the shorter ones with zeros on both sides",
                code="wavelet-filters",
            )


def filter_bank(wavelet: str) -> FilterBank:
    """Filters of a wavelet by PyWavelets' name for it.

    Args:
        wavelet: A discrete wavelet: ``haar``, ``db1`` to ``db38``, ``sym2`` to ``sym20``, ``coif1``
            to ``coif17``, ``bior1.1`` to ``bior6.8``, ``rbio1.1`` to ``rbio6.8`` or ``dmey``.

    Raises:
        ConfigError: If there is none of that name, or it is no name.

    >>> len(filter_bank("db2").dec_lo)
    4
    """
    if not isinstance(wavelet, str):
        raise ConfigError(
            "wavelet",
            expected="a name such as db4, or a FilterBank",
            found=f"an object of type {type(wavelet).__name__}",
            remedy="give the name, or a FilterBank of filters of your own",
            code="wavelet-unknown",
        )
    return _looked_up(wavelet)


# torch.compile cannot look into PyWavelets. This is torch.compiler.assume_constant_result, which
# would import the compiler: a second that everyone pays who never compiles.
filter_bank._dynamo_marked_constant = True  # type: ignore[attr-defined]


@lru_cache(maxsize=256)
def _looked_up(wavelet: str) -> FilterBank:
    import pywt  # noqa: PLC0415 - only who uses wavelets pays for it

    names: list[str] = pywt.wavelist(kind="discrete")
    if wavelet not in names:
        near = difflib.get_close_matches(str(wavelet).lower(), names, n=1, cutoff=0.4)
        hint = f" (nearest: {near[0]})" if near else ""
        raise ConfigError(
            "wavelet",
            expected=f"a discrete wavelet: haar, dbN, symN, coifN, biorN.N, rbioN.N, dmey{hint}",
            found=repr(wavelet),
            remedy="pywt.wavelist(kind='discrete') lists them",
            code="wavelet-unknown",
        )
    bank = pywt.Wavelet(wavelet).filter_bank
    return FilterBank(wavelet, *(tuple(float(tap) for tap in taps) for taps in bank))


def mode_named(mode: str) -> Mode:
    """The mode of that name.

    Raises:
        ConfigError: If there is none.
    """
    for known in MODES:
        if mode == known:
            return known
    raise ConfigError(
        "mode",
        expected=one_of(str(mode), MODES),
        found=repr(mode),
        remedy="symmetric suits images; periodization gives the fewest coefficients",
        code="wavelet-mode",
    )


def coefficient_length(extent: int, taps: int, mode: str) -> int:
    """Coefficients per band of one level, PyWavelets' ``dwt_coeff_len``.

    Args:
        extent: Samples of the signal.
        taps: Filter length.
        mode: One of :data:`MODES`.

    >>> coefficient_length(9, 4, "symmetric"), coefficient_length(9, 4, "periodization")
    (6, 5)
    """
    return (extent + 1) // 2 if mode == "periodization" else (extent + taps - 1) // 2


def max_level(extents: Sequence[int], taps: int) -> int:
    """Deepest level at which some coefficient is free of the ends, ``pywt.dwtn_max_level``.

    Args:
        extents: Samples along each axis that is transformed.
        taps: Filter length.

    Returns:
        ``floor(log2(n / (taps - 1)))`` of the shortest extent ``n``; 0 if it is below ``taps - 1``.

    >>> max_level([64, 40], 8)
    2
    """
    level, shortest = 0, min(extents)
    while (taps - 1) * 2 ** (level + 1) <= shortest:
        level += 1
    return level


def continuation(position: int, extent: int, mode: str) -> dict[int, float]:
    """The sample at a position inside or outside a signal, as weights of the samples inside.

    Args:
        position: Index; outside is below 0 or from ``extent`` on.
        extent: Samples of the signal; ``reflect`` and ``antireflect`` need two.
        mode: One of :data:`MODES`.

    Returns:
        Weight by index.

    >>> continuation(-2, 5, "symmetric"), continuation(-2, 5, "antireflect")
    ({1: 1.0}, {0: 2.0, 2: -1.0})
    """
    weights: dict[int, float] = {}
    _continue(position, extent, mode, 1.0, weights)
    return weights


def _continue(m: int, n: int, mode: str, weight: float, weights: dict[int, float]) -> None:
    if 0 <= m < n:
        weights[m] = weights.get(m, 0.0) + weight
        return
    edge, inner = (0, 1) if m < 0 else (n - 1, n - 2)
    beyond = abs(m - edge)
    if mode == "constant" or (mode == "smooth" and n == 1):
        weights[edge] = weight
    elif mode == "smooth":
        weights[edge], weights[inner] = weight * (1 + beyond), -weight * beyond
    elif mode == "antireflect":
        weights[edge] = weights.get(edge, 0.0) + 2 * weight
        _continue(2 * edge - m, n, mode, -weight, weights)
    elif mode in {"symmetric", "antisymmetric"}:
        turn, place = divmod(m, n)
        sign = -1.0 if mode == "antisymmetric" and turn % 2 else 1.0
        weights[n - 1 - place if turn % 2 else place] = sign * weight
    elif mode == "reflect":
        place = m % (2 * n - 2)
        weights[min(place, 2 * n - 2 - place)] = weight
    elif mode == "periodic":
        weights[m % n] = weight
    elif mode == "periodization":
        # an odd signal counts as one sample longer, its last one twice
        weights[min(m % (n + n % 2), n - 1)] = weight


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """One level along one axis, split into what the ends touch and the plain rest.

    Attributes:
        first: First coefficient whose window lies inside the signal.
        stop: One beyond the last.
        start: Where the window of ``first`` begins.
        head: Samples from the front that the other coefficients use.
        tail: Samples from the back that they use.
        ends: ``(2 * (count - stop + first), head + tail)``: the other coefficients, low band first,
            front before back, as weights of these samples.
    """

    first: int
    stop: int
    start: int
    head: int
    tail: int
    ends: npt.NDArray[np.float64]


@lru_cache(maxsize=512)
def split(low: Taps, high: Taps, mode: str, extent: int) -> Split:
    """Find what the ends touch.

    Args:
        low: Analysis filter of the approximation.
        high: Analysis filter of the detail.
        mode: One of :data:`MODES`.
        extent: Samples of the signal.
    """
    taps, count, shift = len(low), coefficient_length(extent, len(low), mode), _shift(low, mode)
    first = min((taps - shift) // 2, count)
    stop = max((extent - 1 - shift) // 2 + 1, first)
    rows = _rows(low, high, mode, extent, [*range(first), *range(stop, count)])
    return _kept(rows, first, stop, 2 * first + shift - taps + 1)


@lru_cache(maxsize=512)
def overhang(low: Taps, high: Taps, mode: str, extent: int) -> Split:
    """What a mode adds to mode ``zero``: as :func:`split`, but ``ends`` is the difference.

    Args:
        low: Analysis filter of the approximation.
        high: Analysis filter of the detail.
        mode: One of :data:`MODES` except ``periodization``, which has other lengths.
        extent: Samples of the signal.
    """
    part = split(low, high, mode, extent)
    outer = [*range(part.first), *range(part.stop, coefficient_length(extent, len(low), mode))]
    rows = _rows(low, high, mode, extent, outer) - _rows(low, high, "zero", extent, outer)
    return _kept(rows, part.first, part.stop, part.start)


def _kept(rows: npt.NDArray[np.float64], first: int, stop: int, start: int) -> Split:
    extent = rows.shape[1]
    used = np.flatnonzero(rows.any(axis=0))
    # no plain rest: all samples in their order
    half = extent // 2 if stop > first else extent
    head = extent if stop == first else int(max(used[used < half] + 1, default=0))
    tail = int(max(extent - used[used >= half], default=0))
    kept = np.concatenate((rows[:, :head], rows[:, extent - tail :]), axis=1)
    return Split(first, stop, start, head, tail, kept)


@lru_cache(maxsize=32)
def matrix(low: Taps, high: Taps, mode: str, extent: int) -> npt.NDArray[np.float64]:
    """The whole level along one axis as a matrix.

    Args:
        low: Analysis filter of the approximation.
        high: Analysis filter of the detail.
        mode: One of :data:`MODES`.
        extent: Samples of the signal.

    Returns:
        ``(2 * count, extent)``, the rows of the low band first.
    """
    return _rows(low, high, mode, extent, range(coefficient_length(extent, len(low), mode)))


def _rows(
    low: Taps, high: Taps, mode: str, extent: int, which: Sequence[int]
) -> npt.NDArray[np.float64]:
    rows = np.zeros((2, len(which), extent))
    shift = _shift(low, mode)
    for row, i in enumerate(which):
        for j, taps in enumerate(zip(low, high, strict=True)):
            for index, weight in continuation(2 * i + shift - j, extent, mode).items():
                rows[:, row, index] += weight * np.array(taps)
    return rows.reshape(-1, extent)


def _shift(low: Taps, mode: str) -> int:
    return len(low) // 2 if mode == "periodization" else 1
