"""Discrete wavelet transform along any set of axes, with the conventions of PyWavelets.

One level along one axis is

    a[i] = sum_j low[j] x[2 i + s - j],    d[i] = sum_j high[j] x[2 i + s - j],

the signal being continued beyond its ends by the mode (see :mod:`medseg.ops.wavelet_filters` for
``s`` and the lengths). It is a matrix ``W(low, high, mode)``. The inverse is the transpose of such
a matrix, ``W(rec_lo reversed, rec_hi reversed, mode0)``, where ``mode0`` is ``periodization`` if
that is the mode and ``zero`` for all others. So two operators, ``medseg::dwt`` and its transpose
``medseg::idwt``, are the transform, its inverse, and the derivatives of both to any order.

Coefficients agree with PyWavelets' ``dwtn``, ``idwtn``, ``wavedecn``, ``waverecn`` and
``WaveletPacketND``; only the layout is another: sub-bands are stacked before the channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product

import torch
from torch import Tensor, nn

from medseg.errors import ConfigError, ShapeError
from medseg.ops.checks import check_tensor, spatial_dims, stored_axes
from medseg.ops.wavelet_filters import (
    FilterBank,
    Mode,
    coefficient_length,
    filter_bank,
    max_level,
    mode_named,
)
from medseg.ops.wavelet_level import level_forward, level_transposed

__all__ = [
    "Dwt",
    "Idwt",
    "InverseWaveletPacket",
    "Wavedec",
    "WaveletPacket",
    "Waverec",
    "band_names",
    "dwt",
    "idwt",
    "inverse_wavelet_packet",
    "named_bands",
    "named_coefficients",
    "stacked_bands",
    "stacked_coefficients",
    "wavedec",
    "wavelet_packet",
    "waverec",
]


def dwt(
    x_bcs: Tensor,
    wavelet: str | FilterBank,
    mode: Mode = "symmetric",
    axes: Sequence[int] | None = None,
) -> Tensor:
    """One level of the transform along ``axes``, PyWavelets' ``dwtn``.

    Convention:
        Sub-bands are stacked before the channels, last axis of ``axes`` fastest: for two axes aa,
        ad, da, dd, as :func:`band_names` lists them. With ``haar`` and even extents this is
        :func:`medseg.ops.haar.haar_forward`.

    Args:
        x_bcs: ``(b, c, *spatial)``, floating; half types are computed in float32.
        wavelet: PyWavelets' name, such as ``db4``, or filters of one's own.
        mode: How the signal goes on beyond its ends.
        axes: Spatial axes of ``x_bcs`` (2 is the first; negative ones count from the end); all of
            them if None. No axis at all, ``()``, is the identity.

    Returns:
        ``(b, 2**len(axes) * c, *spatial)``; an extent ``n`` in ``axes`` becomes
        ``(n + taps - 1) // 2``, or ``ceil(n / 2)`` in mode ``periodization``. As in PyWavelets a
        filter may be longer than the signal: the ends then touch every coefficient, and there can
        be more coefficients than samples. (:func:`wavedec` and :func:`wavelet_packet` refuse it.)

    Raises:
        ConfigError: If there is no such wavelet or mode.
        ShapeError: If an axis is not spatial or named twice, an extent is too short for the mode,
            or ``x_bcs`` is no tensor, lacks axes, is not floating or is an empty batch.
    """
    bank, mode, dims = _bank(wavelet), mode_named(mode), _spatial_dims("dwt", x_bcs, axes)
    for dim in dims:
        _check_extent(x_bcs.shape[dim], dim, mode)
    if not dims:
        return x_bcs
    return level_forward(x_bcs, bank.dec_lo, bank.dec_hi, mode, dims)


def idwt(
    bands_bcs: Tensor,
    wavelet: str | FilterBank,
    mode: Mode = "symmetric",
    axes: Sequence[int] | None = None,
    extents: Sequence[int] | None = None,
) -> Tensor:
    """Undo :func:`dwt`, PyWavelets' ``idwtn``.

    Args:
        bands_bcs: ``(b, 2**len(axes) * c, *spatial)`` in the order of :func:`dwt`.
        wavelet: As given to :func:`dwt`.
        mode: As given to :func:`dwt`.
        axes: As given to :func:`dwt`.
        extents: What the extents in ``axes`` were, in that order. Two extents give coefficients of
            one length; without this the larger, even one comes out, as in PyWavelets.

    Returns:
        ``(b, c, *spatial)``; ``n`` coefficients become ``2 n - taps + 2`` samples, or ``2 n`` in
        mode ``periodization``, or what ``extents`` says.

    Raises:
        ConfigError: If there is no such wavelet or mode.
        ShapeError: If an axis is not spatial or named twice, the channels are no multiple of
            ``2**len(axes)``, the coefficients are too few for the filters, ``extents`` cannot have
            given them, or ``bands_bcs`` is no tensor, lacks axes, is not floating or is an empty
            batch.
    """
    bank, mode, dims = _bank(wavelet), mode_named(mode), _spatial_dims("idwt", bands_bcs, axes)
    _check_bands("idwt", bands_bcs, 2 ** len(dims))
    if not dims:
        return bands_bcs
    full = [_full_extent(bands_bcs.shape[dim], dim, bank, mode) for dim in dims]
    wanted = full if extents is None else _checked_extents(extents, full, dims)
    low, high = bank.rec_lo[::-1], bank.rec_hi[::-1]
    ends = "periodization" if mode == "periodization" else "zero"
    x_bcs = level_transposed(bands_bcs, low, high, ends, dims, full)
    for dim, extent in zip(dims, wanted, strict=True):
        x_bcs = x_bcs.narrow(dim, 0, extent)
    return x_bcs


def wavedec(
    x_bcs: Tensor,
    wavelet: str | FilterBank,
    mode: Mode = "symmetric",
    level: int | None = None,
    axes: Sequence[int] | None = None,
) -> tuple[Tensor, ...]:
    """Several levels, each of the approximation of the one before; PyWavelets' ``wavedecn``.

    Args:
        x_bcs: ``(b, c, *spatial)``, floating.
        wavelet: As for :func:`dwt`.
        mode: As for :func:`dwt`.
        level: How many; the deepest that the filters allow if None.
        axes: As for :func:`dwt`, but at least one.

    Returns:
        ``level + 1`` tensors, coarsest first: the approximation ``(b, c, *spatial)``, then for each
        level its other sub-bands, ``(b, (2**len(axes) - 1) * c, *spatial)``, in the order of
        :func:`dwt` without the first (for two axes ad, da, dd).

    Raises:
        ConfigError: As :func:`dwt`; or if ``level`` is below 1.
        ShapeError: As :func:`dwt`; or if ``level`` is deeper than :func:`max_level` allows.
    """
    bank, dims = _bank(wavelet), _spatial_dims("wavedec", x_bcs, axes)
    channels = x_bcs.shape[1]
    details: list[Tensor] = []
    for _ in range(_checked_level(x_bcs, bank, level, dims)):
        bands_bcs = dwt(x_bcs, bank, mode, dims)
        x_bcs = bands_bcs[:, :channels]
        details.insert(0, bands_bcs[:, channels:])
    return x_bcs, *details


def waverec(
    coefficients: Sequence[Tensor],
    wavelet: str | FilterBank,
    mode: Mode = "symmetric",
    axes: Sequence[int] | None = None,
    extents: Sequence[int] | None = None,
) -> Tensor:
    """Undo :func:`wavedec`, PyWavelets' ``waverecn``.

    Args:
        coefficients: As :func:`wavedec` gives them.
        wavelet: As given to :func:`wavedec`.
        mode: As given to :func:`wavedec`.
        axes: As given to :func:`wavedec`.
        extents: What the extents in ``axes`` were; without this an odd one comes out one larger.

    Returns:
        ``(b, c, *spatial)``.

    Raises:
        ConfigError: As :func:`idwt`.
        ShapeError: As :func:`idwt`; or if there are no details, or those of a level are no tensor
            or do not fit the approximation below it.
    """
    if len(coefficients) < 2:
        raise ShapeError(
            "waverec",
            expected="an approximation and the details of one level at least",
            found=f"{len(coefficients)} tensors",
            remedy="hand in all that wavedec gave",
            code="wavelet-coefficients",
        )
    x_bcs = coefficients[0]
    dims = _spatial_dims("waverec", x_bcs, axes)
    for n, details_bcs in enumerate(coefficients):
        check_tensor(f"coefficients[{n}]", details_bcs)
    finer = [*([detail.shape[dim] for dim in dims] for detail in coefficients[2:]), extents]
    for n, (details_bcs, wanted) in enumerate(zip(coefficients[1:], finer, strict=True)):
        expected = (x_bcs.shape[0], (2 ** len(dims) - 1) * x_bcs.shape[1], *x_bcs.shape[2:])
        if details_bcs.shape != expected or details_bcs.device != x_bcs.device:
            raise ShapeError(
                f"coefficients[{n + 1}]",
                expected=f"details of shape {tuple(expected)} on {x_bcs.device}",
                found=f"{tuple(details_bcs.shape)} on {details_bcs.device}",
                remedy="wavelet, mode and axes must be those of wavedec",
                code="wavelet-coefficients",
            )
        x_bcs = idwt(torch.cat((x_bcs, details_bcs), dim=1), wavelet, mode, dims, wanted)
    return x_bcs


def wavelet_packet(
    x_bcs: Tensor,
    wavelet: str | FilterBank,
    mode: Mode = "symmetric",
    level: int | None = None,
    axes: Sequence[int] | None = None,
) -> Tensor:
    """All wavelet packets of one level: every sub-band is transformed again.

    Convention:
        Packets are stacked before the channels, the first level's letters slowest: the order of
        ``band_names(len(axes), level)``, which are the paths of PyWavelets' ``WaveletPacketND``
        (``WaveletPacket`` along one axis). This is its natural order, not that of frequencies.

    Args:
        x_bcs: ``(b, c, *spatial)``, floating.
        wavelet: As for :func:`dwt`.
        mode: As for :func:`dwt`.
        level: How many; the deepest that the filters allow if None.
        axes: As for :func:`dwt`, but at least one.

    Returns:
        ``(b, 2**(len(axes) * level) * c, *spatial)``.

    Raises:
        ConfigError: As :func:`wavedec`.
        ShapeError: As :func:`wavedec`.
    """
    bank, dims = _bank(wavelet), _spatial_dims("wavelet_packet", x_bcs, axes)
    batch, channels = x_bcs.shape[:2]
    depth = _checked_level(x_bcs, bank, level, dims)
    for _ in range(depth):
        # the letters of a level go after those before it if earlier packets count as samples
        x_bcs = dwt(_in_groups(x_bcs, channels), bank, mode, dims)
    return x_bcs.reshape(batch, 2 ** (len(dims) * depth) * channels, *x_bcs.shape[2:])


def inverse_wavelet_packet(
    packets_bcs: Tensor,
    wavelet: str | FilterBank,
    mode: Mode = "symmetric",
    level: int = 1,
    axes: Sequence[int] | None = None,
    extents: Sequence[int] | None = None,
) -> Tensor:
    """Undo :func:`wavelet_packet`.

    Args:
        packets_bcs: ``(b, 2**(len(axes) * level) * c, *spatial)`` as :func:`wavelet_packet` gives
            them.
        wavelet: As given to :func:`wavelet_packet`.
        mode: As given to :func:`wavelet_packet`.
        level: How many levels they are deep.
        axes: As given to :func:`wavelet_packet`.
        extents: What the extents in ``axes`` were. Needed where an extent was odd on any level;
            without it every level is taken to have had an even one.

    Returns:
        ``(b, c, *spatial)``.

    Raises:
        ConfigError: As :func:`idwt`; or if ``level`` is below 1.
        ShapeError: As :func:`idwt`.
    """
    _check_level(level)
    bank, dims = _bank(wavelet), _spatial_dims("inverse_wavelet_packet", packets_bcs, axes)
    bands = 2 ** len(dims)
    _check_bands("inverse_wavelet_packet", packets_bcs, bands**level)
    batch, channels = packets_bcs.shape[0], packets_bcs.shape[1] // bands**level
    wanted: list[Sequence[int] | None] = [extents]
    for _ in range(level - 1):
        finer = wanted[0]
        coarser = finer and [coefficient_length(n, len(bank.dec_lo), mode) for n in finer]
        wanted.insert(0, coarser)
    x_bcs = packets_bcs
    for level_extents in wanted:
        x_bcs = idwt(_in_groups(x_bcs, bands * channels), bank, mode, dims, level_extents)
    return x_bcs.reshape(batch, channels, *x_bcs.shape[2:])


def band_names(n_axes: int, level: int = 1) -> tuple[str, ...]:
    """Keys of the sub-bands as PyWavelets writes them, in the order of the stack.

    Args:
        n_axes: Number of axes that were transformed.
        level: Depth of the packets; 1 for :func:`dwt`.

    >>> band_names(2)
    ('aa', 'ad', 'da', 'dd')
    """
    return tuple("".join(letters) for letters in product("ad", repeat=n_axes * level))


def named_bands(bands_bcs: Tensor, n_axes: int, level: int = 1) -> dict[str, Tensor]:
    """Sub-bands or packets as a dictionary, as ``pywt.dwtn`` gives them.

    Args:
        bands_bcs: ``(b, 2**(n_axes * level) * c, *spatial)``.
        n_axes: Number of axes that were transformed.
        level: Depth of the packets; 1 for :func:`dwt`.

    Returns:
        ``(b, c, *spatial)`` by name; views.

    Raises:
        ShapeError: If the channels do not divide into so many sub-bands, or it is no tensor or an
            empty batch.
    """
    names = band_names(n_axes, level)
    check_tensor("named_bands", bands_bcs)
    _check_bands("named_bands", bands_bcs, len(names))
    return dict(zip(names, bands_bcs.chunk(len(names), dim=1), strict=True))


def stacked_bands(bands: Mapping[str, Tensor]) -> Tensor:
    """Undo :func:`named_bands`; the order of the dictionary does not count.

    Args:
        bands: ``(b, c, *spatial)`` by name; every name of a set that :func:`band_names` lists.

    Returns:
        ``(b, len(bands) * c, *spatial)``.

    Raises:
        ConfigError: If a name is missing or unknown.
        ShapeError: If one is no tensor or an empty batch, or the shapes differ.
    """
    letters = len(next(iter(bands), ""))
    names = band_names(letters)
    if set(bands) != set(names) or not letters:
        raise ConfigError(
            "bands",
            expected="every word of one length in the letters a and d, such as aa, ad, da, dd",
            found=", ".join(sorted(bands)) or "none",
            remedy="fill missing sub-bands with zeros",
            code="wavelet-bands",
        )
    for name in names:
        check_tensor(f"bands[{name!r}]", bands[name])
    shapes = {tuple(band.shape) for band in bands.values()}
    if len(shapes) != 1:
        raise ShapeError(
            "bands",
            expected="sub-bands of one shape",
            found=", ".join(map(str, sorted(shapes))),
            remedy="hand in the bands of one level",
            code="wavelet-bands",
        )
    return torch.cat([bands[name] for name in names], dim=1)


def named_coefficients(
    coefficients: Sequence[Tensor], n_axes: int
) -> list[Tensor | dict[str, Tensor]]:
    """What :func:`wavedec` gives in the form of ``pywt.wavedecn``.

    Args:
        coefficients: As :func:`wavedec` gives them.
        n_axes: Number of axes that were transformed.

    Returns:
        The approximation, then one dictionary of details per level, coarsest first.

    Raises:
        ShapeError: If the channels do not divide into so many sub-bands, or details are no tensor
            or an empty batch.
    """
    approximation, *details = coefficients
    names = band_names(n_axes)[1:]
    named: list[Tensor | dict[str, Tensor]] = [approximation]
    for details_bcs in details:
        check_tensor("named_coefficients", details_bcs)
        _check_bands("named_coefficients", details_bcs, len(names))
        named.append(dict(zip(names, details_bcs.chunk(len(names), dim=1), strict=True)))
    return named


def stacked_coefficients(named: Sequence[Tensor | Mapping[str, Tensor]]) -> tuple[Tensor, ...]:
    """Undo :func:`named_coefficients`.

    Args:
        named: The approximation, then one mapping of details per level, coarsest first.

    Returns:
        As :func:`wavedec` gives them.

    Raises:
        ConfigError: If the first is no tensor, another no mapping, or a name is missing.
    """
    stacked: list[Tensor] = []
    for n, part in enumerate(named):
        if isinstance(part, Tensor) is not (n == 0):
            raise ConfigError(
                f"named[{n}]",
                expected="a tensor first, then mappings",
                found=type(part).__name__,
                remedy="the form is that of pywt.wavedecn",
                code="wavelet-coefficients",
            )
        if isinstance(part, Tensor):
            stacked.append(part)
            continue
        approximation = "a" * len(next(iter(part), ""))
        like = next(iter(part.values()), stacked[0])
        whole = stacked_bands({**part, approximation: like})
        stacked.append(whole[:, like.shape[1] :])
    return tuple(stacked)


class _Transform(nn.Module):
    def __init__(
        self,
        wavelet: str | FilterBank,
        mode: Mode = "symmetric",
        axes: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.bank = _bank(wavelet)
        self.mode = mode_named(mode)
        self.axes = stored_axes(f"{type(self).__name__} axes", axes, code="wavelet-axes")

    def extra_repr(self) -> str:
        return f"{self.bank.name!r}, mode={self.mode!r}, axes={self.axes}"


class Dwt(_Transform):
    """:func:`dwt` as a module, with the same arguments."""

    def forward(self, x_bcs: Tensor) -> Tensor:
        """``(b, c, *spatial)`` to ``(b, 2**len(axes) * c, *spatial)``."""
        return dwt(x_bcs, self.bank, self.mode, self.axes)


class Idwt(_Transform):
    """:func:`idwt` as a module, with the same arguments."""

    def forward(self, bands_bcs: Tensor, extents: Sequence[int] | None = None) -> Tensor:
        """``(b, 2**len(axes) * c, *spatial)`` to ``(b, c, *spatial)``."""
        return idwt(bands_bcs, self.bank, self.mode, self.axes, extents)


class Wavedec(_Transform):
    """:func:`wavedec` as a module.

    Args:
        wavelet: As for :func:`dwt`.
        mode: As for :func:`dwt`.
        level: As for :func:`wavedec`.
        axes: As for :func:`wavedec`.
    """

    def __init__(
        self,
        wavelet: str | FilterBank,
        mode: Mode = "symmetric",
        level: int | None = None,
        axes: Sequence[int] | None = None,
    ) -> None:
        super().__init__(wavelet, mode, axes)
        if level is not None:
            _check_level(level)
        self.level = level

    def extra_repr(self) -> str:
        """Arguments."""
        return f"{super().extra_repr()}, level={self.level}"

    def forward(self, x_bcs: Tensor) -> tuple[Tensor, ...]:
        """``(b, c, *spatial)`` to ``level + 1`` tensors, coarsest first."""
        return wavedec(x_bcs, self.bank, self.mode, self.level, self.axes)


class Waverec(_Transform):
    """:func:`waverec` as a module."""

    def forward(
        self, coefficients: Sequence[Tensor], extents: Sequence[int] | None = None
    ) -> Tensor:
        """``level + 1`` tensors, coarsest first, to ``(b, c, *spatial)``."""
        return waverec(coefficients, self.bank, self.mode, self.axes, extents)


class WaveletPacket(_Transform):
    """:func:`wavelet_packet` as a module.

    Args:
        wavelet: As for :func:`dwt`.
        mode: As for :func:`dwt`.
        level: As for :func:`wavelet_packet`, but with a number: it decides the channels.
        axes: As for :func:`wavelet_packet`.
    """

    def __init__(
        self,
        wavelet: str | FilterBank,
        mode: Mode = "symmetric",
        level: int = 1,
        axes: Sequence[int] | None = None,
    ) -> None:
        super().__init__(wavelet, mode, axes)
        _check_level(level)
        self.level = level

    def extra_repr(self) -> str:
        """Arguments."""
        return f"{super().extra_repr()}, level={self.level}"

    def forward(self, x_bcs: Tensor) -> Tensor:
        """``(b, c, *spatial)`` to ``(b, 2**(len(axes) * level) * c, *spatial)``."""
        return wavelet_packet(x_bcs, self.bank, self.mode, self.level, self.axes)


class InverseWaveletPacket(WaveletPacket):
    """:func:`inverse_wavelet_packet` as a module, with the arguments of :class:`WaveletPacket`."""

    def forward(self, packets_bcs: Tensor, extents: Sequence[int] | None = None) -> Tensor:
        """``(b, 2**(len(axes) * level) * c, *spatial)`` to ``(b, c, *spatial)``."""
        return inverse_wavelet_packet(
            packets_bcs, self.bank, self.mode, self.level, self.axes, extents
        )


def _in_groups(x_bcs: Tensor, channels: int) -> Tensor:
    samples = x_bcs.shape[0] * x_bcs.shape[1] // channels
    return x_bcs.reshape(samples, channels, *x_bcs.shape[2:])


def _bank(wavelet: str | FilterBank) -> FilterBank:
    return wavelet if isinstance(wavelet, FilterBank) else filter_bank(wavelet)


def _spatial_dims(where: str, x_bcs: Tensor, axes: Sequence[int] | None) -> list[int]:
    check_tensor(where, x_bcs)
    if not x_bcs.is_floating_point():
        raise ShapeError(
            where,
            expected="a floating tensor",
            found=str(x_bcs.dtype),
            remedy="convert it, for instance with .float()",
            code="wavelet-dtype",
        )
    return spatial_dims(f"{where} axes", x_bcs, axes, code="wavelet-axes")


def _check_extent(extent: int, dim: int, mode: Mode) -> None:
    least = 2 if mode in {"reflect", "antireflect"} else 1
    if extent < least:
        raise ShapeError(
            f"axis {dim}",
            expected=f"an extent of {least} or more for mode {mode}",
            found=str(extent),
            remedy="leave that axis out of axes",
            code="wavelet-extent",
        )


def _check_bands(where: str, bands_bcs: Tensor, bands: int) -> None:
    if bands_bcs.shape[1] % bands:
        raise ShapeError(
            where,
            expected=f"a multiple of {bands} channels, one set per sub-band",
            found=f"{bands_bcs.shape[1]} channels",
            remedy="hand in all sub-bands, in the order of band_names",
            code="wavelet-bands",
        )


def _full_extent(count: int, dim: int, bank: FilterBank, mode: Mode) -> int:
    extent = 2 * count if mode == "periodization" else 2 * count - len(bank.dec_lo) + 2
    if extent < 1:
        raise ShapeError(
            f"axis {dim}",
            expected=f"{len(bank.dec_lo) // 2} coefficients or more for {bank.name}",
            found=str(count),
            remedy="wavelet and mode must be those of the forward transform",
            code="wavelet-coefficients",
        )
    return extent


def _checked_extents(
    extents: Sequence[int], full: Sequence[int], dims: Sequence[int]
) -> Sequence[int]:
    fits = len(extents) == len(full) and all(
        n in (most - 1, most) and n > 0 for n, most in zip(extents, full, strict=True)
    )
    if not fits:
        raise ShapeError(
            "extents",
            expected=f"{tuple(full)}, or one less on any of them, for axes {tuple(dims)}",
            found=str(tuple(extents)),
            remedy="hand in the extents of the input of the forward transform along axes",
            code="wavelet-extents",
        )
    return extents


def _check_level(level: int) -> None:
    if not isinstance(level, int) or level < 1:
        raise ConfigError(
            "level",
            expected="1 or more, a whole number",
            found=str(level),
            remedy="leave it out for the deepest possible",
            code="wavelet-level",
        )


def _checked_level(x_bcs: Tensor, bank: FilterBank, level: int | None, dims: Sequence[int]) -> int:
    if not dims:
        raise ShapeError(
            "axes",
            expected="one spatial axis or more",
            found="none",
            remedy="leave axes out for all of them",
            code="wavelet-axes",
        )
    extents = [x_bcs.shape[dim] for dim in dims]
    most = max_level(extents, len(bank.dec_lo))
    if level is not None:
        _check_level(level)
    if most < 1 or (level is not None and level > most):
        raise ShapeError(
            "level",
            expected=f"at most {most} for {bank.name} ({len(bank.dec_lo)} taps) on extents "
            f"{tuple(extents)}",
            found=str(level if level is not None else "none given"),
            remedy="take fewer levels, a shorter wavelet or a larger image"
            if most
            else "no level is free of the ends; dwt still gives one",
            code="wavelet-level",
        )
    return most if level is None else level
