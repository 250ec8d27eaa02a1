"""Feature encoders of timm: four maps at strides 4, 8, 16 and 32, and their ImageNet weights.

The networks are timm's (PyTorch Image Models, Wightman, Apache 2.0). Here they are chosen by name,
asked which extents they take, and given one layout of output. timm is imported when an encoder is
built: its import takes seconds.
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from medseg.errors import ConfigError, FormatError, ResourceError
from medseg.models.state_file import of_another_kind, read_state

__all__ = ["TIMM_STRIDES", "TimmEncoder", "load_timm_weights"]

TIMM_STRIDES = (4, 8, 16, 32)
"""Extents of the image over those of the four maps."""

Layout = Literal["channels first", "channels last"]

# what an encoder must take, and what to do about one that does not
_OPTIONS = {
    "drop_path_rate": ("takes a rate of stochastic depth", "set drop_path to 0"),
    "img_size": ("takes an image size", "leave the image size out"),
}
# timm's networks do not change while a process runs, and trying out one takes a second
_EXTENTS: dict[tuple[str, int | None], tuple[int, Layout]] = {}
_WITHOUT_SIZE_OPTION: set[str] = set()
_ALIKE = 0.6
_SHOWN = 6


class TimmEncoder(nn.Module):
    """A timm network without its classifier; ``(b, 3, h, w)`` to four maps.

    The weights are random; :func:`load_timm_weights` fills in trained ones. Networks that give
    ``(b, h, w, c)`` are turned to ``(b, c, h, w)``.

    Which extents an encoder takes is tried, not looked up: on the meta device it is run without
    arithmetic at the smallest extents, ``m x 2m`` and ``3m x m``, for ``m`` = 32 and then for the
    image size that it was built for. A window attention with 7 x 7 windows, as in
    ``maxvit_tiny_tf_224``, comes out as multiples of 224; one that pads its windows, or a
    convolutional network, as multiples of 32.

    Args:
        name: Name in timm, with or without the tag of its weights: ``pvt_v2_b2`` or
            ``pvt_v2_b2.in1k``.
        drop_path: Greatest rate of stochastic depth; rises linearly over the blocks, as timm does.
        image_size: Extent for which an encoder with windows or positions is built; None for timm's.

    Raises:
        ConfigError: If timm has no such network, it takes no such option, it has no maps at strides
            4, 8, 16 and 32, or it takes one image size only and no multiples.
    """

    def __init__(self, name: str, *, drop_path: float = 0.0, image_size: int | None = None) -> None:
        super().__init__()
        self.name = name
        self._options: dict[str, Any] = {}
        if drop_path:
            self._options["drop_path_rate"] = drop_path
        if image_size is not None:
            self._options["img_size"] = image_size
        self.features, self._picked = self._with_four_maps()
        channels = _info(self.features).channels()
        self._channels = tuple(int(channels[n]) for n in self._picked)
        self._step, self._layout = self._legal_extents(image_size)

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of the four maps, fine to coarse."""
        return self._channels

    @property
    def size_multiple(self) -> int:
        """Both extents of the image must be positive multiples of this."""
        return self._step

    def forward(self, x_bchw: Tensor) -> tuple[Tensor, ...]:
        """Maps ``(b, channels[n], h / TIMM_STRIDES[n], w / TIMM_STRIDES[n])``, fine to coarse."""
        maps = self.features(x_bchw)
        picked = (maps[n] for n in self._picked)
        if self._layout == "channels last":
            return tuple(map_bhwc.permute(0, 3, 1, 2) for map_bhwc in picked)
        return tuple(picked)

    def build_timm_network(self, **options: Any) -> nn.Module:  # noqa: ANN401 - timm's own options
        """Build timm's network of this name, with this encoder's options and further ones."""
        import timm  # noqa: PLC0415 - its import takes seconds

        network: nn.Module = timm.create_model(self.name, **self._options, **options)
        return network

    def _with_four_maps(self) -> tuple[nn.Module, tuple[int, ...]]:
        features = self._create()
        strides = list(_info(features).reduction())
        if missing := [stride for stride in TIMM_STRIDES if stride not in strides]:
            raise ConfigError(
                f"encoder {self.name}",
                expected=f"maps at strides {_listed(TIMM_STRIDES)}",
                found=f"strides {_listed(strides)}, without {_listed(missing)}",
                remedy="choose a hierarchical encoder such as pvt_v2_b2, resnet50 or convnext_tiny",
                code="encoder-strides",
            )
        # the last of several maps at one stride has seen most
        picked = tuple(len(strides) - 1 - strides[::-1].index(stride) for stride in TIMM_STRIDES)
        if picked[-1] == len(strides) - 1:
            return features, picked
        # layers deeper than stride 32 would never get a gradient
        return self._create(out_indices=picked), (0, 1, 2, 3)

    def _create(self, **options: Any) -> nn.Module:  # noqa: ANN401 - timm's own options
        import timm  # noqa: PLC0415 - its import takes seconds

        where = f"encoder {self.name}"
        if not timm.is_model(self.name):
            near = _nearest(self.name, timm.list_models())
            raise ConfigError(
                where,
                expected=f"one of {', '.join(near)} (nearest: {near[0]})"
                if near
                else "the name of a network of timm",
                found="a name that timm does not know",
                remedy="choose a network of timm; timm.list_models() gives all names",
                code="encoder-name",
            )
        if self.name not in _WITHOUT_SIZE_OPTION:
            try:
                return self.build_timm_network(features_only=True, strict_img_size=False, **options)
            except (TypeError, RuntimeError, AttributeError):
                # only Swin and its kin know that option, which frees them from one image size
                pass
        try:
            network = self.build_timm_network(features_only=True, **options)
        except (TypeError, RuntimeError, AttributeError, ValueError, AssertionError) as error:
            refused = [_OPTIONS[option] for option in self._refused_options(**options)]
            raise ConfigError(
                where,
                expected=" and ".join(
                    ["an encoder that can give its feature maps", *(takes for takes, _ in refused)]
                ),
                found=f"timm's refusal: {_first_line(error)}",
                remedy=", or ".join(
                    [" and ".join(instead for _, instead in refused), "choose another encoder"]
                    if refused
                    else ["choose another encoder"]
                ),
                code="encoder-options",
            ) from error
        _WITHOUT_SIZE_OPTION.add(self.name)
        return network

    def _refused_options(self, **options: Any) -> list[str]:  # noqa: ANN401 - timm's own options
        """Those of this encoder's options without which timm would build it."""
        import timm  # noqa: PLC0415 - its import takes seconds

        def builds(**own: Any) -> bool:  # noqa: ANN401 - timm's own options
            try:
                timm.create_model(self.name, features_only=True, **own, **options)
            except (TypeError, RuntimeError, AttributeError, ValueError, AssertionError):
                return False
            return True

        if not builds():
            return []
        return [name for name, value in self._options.items() if not builds(**{name: value})]

    def _legal_extents(self, image_size: int | None) -> tuple[int, Layout]:
        known = (self.name, image_size)
        if known not in _EXTENTS:
            _EXTENTS[known] = self._tried_extents(image_size)
        return _EXTENTS[known]

    def _tried_extents(self, image_size: int | None) -> tuple[int, Layout]:
        coarsest = TIMM_STRIDES[-1]
        listed: Any = self.features.pretrained_cfg
        native = image_size or int(listed["input_size"][-1])
        layout, refusal = self._dry_run(coarsest)
        if layout is not None:
            return coarsest, layout
        if native % coarsest == 0:
            layout, refusal = self._dry_run(native)
            if layout is not None:
                return native, layout
        raise ConfigError(
            f"encoder {self.name}",
            expected=f"an encoder that takes all multiples of {coarsest}, or of its image size",
            found=f"one that takes neither those of {coarsest} nor those of {native} ({refusal})",
            remedy="choose one that is not bound to a single image size, such as pvt_v2_b2",
            code="encoder-image-size",
        )

    def _dry_run(self, step: int) -> tuple[Layout | None, str]:
        """The layout of the maps if multiples of ``step`` are legal; else None and the refusal."""
        was_training = self.features.training
        self.features.eval()
        empty = {
            name: torch.empty_like(tensor, device="meta")
            for name, tensor in (*self.features.named_parameters(), *self.features.named_buffers())
        }
        layouts: list[Layout] = []
        try:
            for height, width in ((step, 2 * step), (3 * step, step)):
                with torch.device("meta"), torch.no_grad():
                    maps = functional_call(
                        self.features, empty, (torch.empty(1, 3, height, width),)
                    )
                found = [tuple(maps[n].shape[1:]) for n in self._picked]
                grids = [(height // stride, width // stride) for stride in TIMM_STRIDES]
                pairs = list(zip(self._channels, grids, strict=True))
                if found == [(channels, *grid) for channels, grid in pairs]:
                    layouts.append("channels first")
                elif found == [(*grid, channels) for channels, grid in pairs]:
                    layouts.append("channels last")
                else:
                    return None, f"its maps are {found} for an image of {height} x {width}"
        except Exception as error:  # each family of timm refuses a size in its own way
            return None, _first_line(error)
        finally:
            self.features.train(was_training)
        return layouts[0], ""


def load_timm_weights(encoder: TimmEncoder, source: Path | Literal["timm"]) -> None:
    """Fill an encoder with trained weights, in place.

    This is apart from the settings on purpose: a model folder holds all weights of a network, so a
    trained network is rebuilt without the file or the connection that its training began with.

    A file holds a state dict, bare or under ``state_dict`` or ``model``: ``.safetensors``, or
    ``.pth``, ``.pt``, ``.bin`` and ``.tar`` as torch writes them, of which only tensors are read
    and no code is run. Names may be timm's or those of the PVT release
    (``pvt_v2_b2.pth``: ``patch_embed1``, ``block1.0``, ``norm1``, ``mlp.dwconv.dwconv``). What
    timm's whole network has and the encoder has not, its classifier above all, is left out;
    everything else must be there, with the same shapes, and nothing besides. A count of batches
    (``num_batches_tracked``) may be absent. Half precision is taken, integers for weights are not.

    Args:
        encoder: Its parameters and buffers are overwritten, all of them or, on an error, none.
        source: A file, or ``timm`` for the weights that timm lists under the encoder's name; those
            come over the network, from the Hugging Face hub or its local cache.

    Raises:
        ConfigError: If timm lists no weights for this encoder, or ``source`` is neither a file nor
            ``timm`` but nearly that word.
        FormatError: If the file is missing, of another kind, damaged, or of another network; the
            message names the first tensors that do not fit.
        ResourceError: If timm's weights cannot be fetched.
    """
    if source == "timm":
        where = f"encoder {encoder.name}"
        given = whole = _fetched(encoder)
    else:
        where = f"encoder weights {source.name}"
        if not source.suffix and not source.is_file() and _likeness(source.name, "timm") >= _ALIKE:
            raise ConfigError(
                where,
                expected="a file of weights, or timm (nearest: timm)",
                found=f"{source.name!r}, which is neither",
                remedy="write timm for the weights that timm lists",
                code="weights-missing",
            )
        given = _pvt_names_to_timm(read_state(source))
        whole = encoder.build_timm_network().state_dict()
    leftovers = {_flat(name) for name in whole}
    wanted = encoder.features.state_dict()
    # timm's wrapper for features writes stages.0 as stages_0, or puts the network under "model"
    by_flat = {_flat(name.removeprefix("model.")): name for name in wanted}
    state: dict[str, Tensor] = {}
    known: dict[str, str] = {}
    unexpected: list[str] = []
    for name, tensor in given.items():
        own = by_flat.get(_flat(name))
        if own is not None:
            state[own] = tensor
            known[name] = own
        elif _flat(name) not in leftovers:
            unexpected.append(name)
    missing = [
        name for name in wanted if name not in state and not name.endswith("num_batches_tracked")
    ]
    reshaped = [
        f"{name} {tuple(tensor.shape)} for {tuple(wanted[name].shape)}"
        for name, tensor in state.items()
        if tensor.shape != wanted[name].shape
    ]
    problems = [
        f"{len(names)} {kind} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for kind, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", reshaped),
            ("of another type of numbers", of_another_kind(given, wanted, known)),
        )
        if names
    ]
    if problems:
        raise FormatError(
            where,
            expected=f"the {len(wanted)} tensors of {encoder.name}",
            found="; ".join(problems),
            remedy="use weights of this very encoder and image size",
            code="weights-mismatch",
        )
    encoder.features.load_state_dict(wanted | state)


def _fetched(encoder: TimmEncoder) -> dict[str, Tensor]:
    import timm  # noqa: PLC0415 - its import takes seconds

    where = f"encoder {encoder.name}"
    listed = timm.get_pretrained_cfg(encoder.name)
    if listed is None or not listed.has_weights:
        raise ConfigError(
            where,
            expected="an encoder for which timm lists weights",
            found="none",
            remedy="choose one of timm.list_pretrained(), or load a file",
            code="weights-unlisted",
        )
    try:
        return dict(encoder.build_timm_network(pretrained=True).state_dict())
    except Exception as error:  # the hub's client has errors of its own, of several libraries
        raise ResourceError(
            where,
            expected="the weights that timm lists, from the hub or its local cache",
            found=_first_line(error),
            remedy="check the connection, or load a file that was downloaded before",
            code="weights-fetch",
        ) from error


_PVT_NAMES = (
    (re.compile(r"^patch_embed1\."), r"patch_embed."),
    (re.compile(r"^patch_embed([2-4])\."), r"stages.{}.downsample."),
    (re.compile(r"^block([1-4])\."), r"stages.{}.blocks."),
    (re.compile(r"^norm([1-4])\."), r"stages.{}.norm."),
)


def _pvt_names_to_timm(state: dict[str, Tensor]) -> dict[str, Tensor]:
    if "patch_embed1.proj.weight" not in state:
        return state
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        new = name.replace("dwconv.dwconv.", "dwconv.")
        for pattern, replacement in _PVT_NAMES:
            if found := pattern.match(new):
                # stages count from 1 in the release and from 0 in timm
                stage = int(found[1]) - 1 if found.groups() else 0
                new = replacement.format(stage) + new[found.end() :]
                break
        renamed[new] = tensor
    return renamed


def _info(features: Any) -> Any:  # noqa: ANN401 - timm is untyped
    return features.feature_info


def _nearest(name: str, names: list[str]) -> list[str]:
    """Names like this one, nearest first; without its tag, case, dots and lines."""
    scores = {other: _likeness(name.partition(".")[0], other) for other in names}
    near = [other for other, score in scores.items() if score >= _ALIKE]
    return sorted(near, key=lambda other: (-scores[other], other))[:_SHOWN]


def _likeness(name: str, other: str) -> float:
    return difflib.SequenceMatcher(None, _plain(other), _plain(name)).ratio()


def _plain(name: str) -> str:
    return re.sub(r"[-_.]", "", name).lower()


def _flat(name: str) -> str:
    return name.replace(".", "_")


def _listed(numbers: list[int] | tuple[int, ...]) -> str:
    return ", ".join(str(number) for number in numbers)


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]
