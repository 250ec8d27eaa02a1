"""The label schemes of public datasets, by name; two numberings of the same organs are two schemes.

Codes are SNOMED CT, given only where they are in common use for the structure; a label without one
gets a private code in DICOM (see ``docs/label-schemes.md``).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from medseg.core import Code, Label, LabelScheme
from medseg.core.scheme import spread_colour
from medseg.errors import ConfigError, FormatError, kind_of, one_of
from medseg.metrics.structures import BRATS_REGIONS
from medseg.models.card import Region

__all__ = [
    "BRATS_SCHEMES",
    "REGIONS",
    "SCHEMES",
    "find_scheme",
    "recode_by_name",
    "scheme_of_content",
]

_ANATOMY = Code("91723000", "SCT", "Anatomical Structure")
_ALTERED = Code("49755003", "SCT", "Morphologically Altered Structure")
_RIGHT = Code("24028007", "SCT", "Right")
_LEFT = Code("7771000", "SCT", "Left")

# in the order of BTCV's numbers: colour, concept and laterality of each
_ORGANS: Mapping[str, tuple[tuple[int, int, int], tuple[str, str] | None, Code | None]] = {
    "spleen": ((0, 114, 178), ("78961009", "Spleen"), None),
    "right kidney": ((230, 159, 0), ("64033007", "Kidney"), _RIGHT),
    "left kidney": ((240, 228, 66), ("64033007", "Kidney"), _LEFT),
    "gallbladder": ((0, 158, 115), ("28231008", "Gallbladder"), None),
    "esophagus": ((204, 121, 167), ("32849002", "Esophagus"), None),
    "liver": ((153, 76, 51), ("10200004", "Liver"), None),
    "stomach": ((86, 180, 233), ("69695003", "Stomach"), None),
    "aorta": ((213, 40, 40), ("15825003", "Aorta"), None),
    "inferior vena cava": ((60, 60, 200), ("64131007", "Inferior vena cava"), None),
    "portal and splenic veins": ((130, 110, 220), None, None),
    "pancreas": ((245, 170, 120), ("15776009", "Pancreas"), None),
    "right adrenal gland": ((120, 200, 80), ("23451007", "Adrenal gland"), _RIGHT),
    "left adrenal gland": ((60, 140, 40), ("23451007", "Adrenal gland"), _LEFT),
}


def _organs(name: str, numbers: Mapping[int, str]) -> LabelScheme:
    labels = []
    for value, organ in numbers.items():
        rgb, concept, side = _ORGANS[organ]
        code = None if concept is None else Code(concept[0], "SCT", concept[1])
        labels.append(Label(value, organ, rgb, _ANATOMY, code, side))
    return LabelScheme(name, tuple(labels))


_BTCV = dict(enumerate(_ORGANS, start=1))
_HEART = (
    (1, "right ventricle", (0, 114, 178), ("53085002", "Right ventricle")),
    (2, "myocardium", (240, 228, 66), ("74281007", "Myocardium")),
    (3, "left ventricle", (213, 40, 40), ("87878005", "Left ventricle")),
)
_NECROSIS = ((230, 60, 60), ("6574001", "Necrosis"))
_OEDEMA = ((60, 180, 75), ("79654002", "Edema"))
_ENHANCING = ((255, 225, 25), None)
_NON_ENHANCING = ((145, 30, 180), None)
_CAVITY = ((70, 130, 230), None)


def _tumour(name: str, parts: Mapping[int, tuple[str, Any]]) -> LabelScheme:
    labels = []
    for value, (part, (rgb, concept)) in parts.items():
        code = None if concept is None else Code(concept[0], "SCT", concept[1])
        labels.append(Label(value, part, rgb, _ALTERED, code))
    return LabelScheme(name, tuple(labels))


_SCHEMES = (
    _organs("btcv-13", _BTCV),
    _organs(
        "transunet-8",
        dict(
            enumerate(
                (
                    "aorta",
                    "gallbladder",
                    "left kidney",
                    "right kidney",
                    "liver",
                    "pancreas",
                    "spleen",
                    "stomach",
                ),
                start=1,
            )
        ),
    ),
    _organs(
        "cascade-8",
        dict(
            enumerate(
                (
                    "spleen",
                    "right kidney",
                    "left kidney",
                    "gallbladder",
                    "liver",
                    "stomach",
                    "aorta",
                    "pancreas",
                ),
                start=1,
            )
        ),
    ),
    _organs(
        "emcad-8",
        dict(
            enumerate(
                (
                    "spleen",
                    "right kidney",
                    "left kidney",
                    "gallbladder",
                    "pancreas",
                    "liver",
                    "stomach",
                    "aorta",
                ),
                start=1,
            )
        ),
    ),
    LabelScheme(
        "acdc",
        tuple(
            Label(value, name, rgb, _ANATOMY, Code(code, "SCT", meaning))
            for value, name, rgb, (code, meaning) in _HEART
        ),
    ),
    LabelScheme(
        "msd-hippocampus",
        tuple(
            Label(
                value,
                f"{part} hippocampus",
                rgb,
                _ANATOMY,
                Code("5366008", "SCT", "Hippocampus"),
                Code(code, "SCT", part.capitalize()),
            )
            for value, part, rgb, code in (
                (1, "anterior", (230, 159, 0), "255549009"),
                (2, "posterior", (86, 180, 233), "255551008"),
            )
        ),
    ),
    _tumour(
        "brats-2012-2015",
        {
            1: ("necrosis", _NECROSIS),
            2: ("oedema", _OEDEMA),
            3: ("non-enhancing tumour", _NON_ENHANCING),
            4: ("enhancing tumour", _ENHANCING),
        },
    ),
    _tumour(
        "brats-2018-2021",
        {
            1: ("necrotic or non-enhancing core", _NECROSIS),
            2: ("oedema", _OEDEMA),
            4: ("enhancing tumour", _ENHANCING),
        },
    ),
    _tumour(
        "brats-2023",
        {
            1: ("necrotic or non-enhancing core", _NECROSIS),
            2: ("oedema", _OEDEMA),
            3: ("enhancing tumour", _ENHANCING),
        },
    ),
    _tumour(
        "brats-2024-gli",
        {
            1: ("necrotic or non-enhancing core", _NECROSIS),
            2: ("oedema", _OEDEMA),
            3: ("enhancing tumour", _ENHANCING),
            4: ("resection cavity", _CAVITY),
        },
    ),
    _tumour(
        "brats-nnunet-137",
        {
            1: ("oedema", _OEDEMA),
            2: ("necrotic or non-enhancing core", _NECROSIS),
            3: ("enhancing tumour", _ENHANCING),
        },
    ),
)

SCHEMES: Mapping[str, LabelScheme] = {scheme.name: scheme for scheme in _SCHEMES}
"""Every label scheme that medseg knows by name."""

BRATS_SCHEMES: tuple[str, ...] = tuple(name for name in SCHEMES if name.startswith("brats-"))
"""Those of the brain tumour challenge; a number means different tissue in different years."""

# the value that each region writes: oedema for the whole tumour, the rest of the core for the core
_WRITES = {
    "brats-2012-2015": (2, 3, 4),
    "brats-2018-2021": (2, 1, 4),
    "brats-2023": (2, 1, 3),
    "brats-2024-gli": (2, 1, 3, 4),
    "brats-nnunet-137": (1, 2, 3),
}

REGIONS: Mapping[str, tuple[Region, ...]] = {
    name: tuple(
        Region(name=one.name, members=one.members, writes=value)
        for one, value in zip(BRATS_REGIONS[name], writes, strict=True)
    )
    for name, writes in _WRITES.items()
}
"""Overlapping regions that are trained and judged in place of the labels, by scheme."""


def find_scheme(name: str) -> LabelScheme:
    """The scheme of that name, or of a YAML or JSON file.

    Args:
        name: A member of :data:`SCHEMES`, or the path of a file that holds a scheme as a run's
            ``labels`` do; the short form ``{1: Anterior, 2: Posterior}`` will do.

    Raises:
        ConfigError: ``scheme-unknown``, or ``label-scheme`` if the file's content is no scheme.
        FormatError: ``dataset-index`` if the file cannot be parsed.
    """
    if name in SCHEMES:
        return SCHEMES[name]
    path = Path(name)
    if path.suffix.lower() not in (".json", ".yaml", ".yml") or not path.is_file():
        raise ConfigError(
            "label scheme",
            expected=f"{one_of(name, SCHEMES)}, or a YAML or JSON file with one",
            found=repr(name),
            remedy="see `medseg data schemes`",
            code="scheme-unknown",
        )
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))  # JSON is YAML
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise FormatError(
            str(path),
            expected="a label scheme as YAML or JSON",
            found="text that cannot be parsed",
            remedy="repair the file",
            code="dataset-index",
        ) from error
    return scheme_of_content(content, str(path), path.stem)


def scheme_of_content(content: Any, where: str, name: str) -> LabelScheme:  # noqa: ANN401 - parsed
    """A scheme that people wrote by hand; what they left out is filled in.

    Args:
        content: As :meth:`LabelScheme.from_dict` takes it, where colours may be missing; or
            ``{value: name}``; either also under ``labels``.
        where: The file, for messages.
        name: Of a scheme that does not say its own.

    Raises:
        ConfigError: ``label-scheme``; the sentence names the file and the entry.
    """
    if isinstance(content, Mapping) and "labels" in content and "name" not in content:
        content = content["labels"]  # a run's file or a model's card
    if isinstance(content, list):
        content = {"name": name, "labels": content}
    if isinstance(content, Mapping) and not {"name", "labels"} & set(content):
        content = {"name": name, "labels": content}
    if isinstance(content, Mapping) and isinstance(content.get("labels"), Mapping):
        members = [
            {"value": value, "name": label}
            for value, label in content["labels"].items()
            if str(value) != "0"  # background
        ]
        content = {**content, "labels": members}
    entries = content.get("labels") if isinstance(content, Mapping) else None
    if not isinstance(entries, list):
        raise ConfigError(
            where,
            expected="{value: name}, or a label scheme with a name and labels",
            found=kind_of(content),
            remedy="write for example {1: Anterior, 2: Posterior}",
            code="label-scheme",
        )
    labels = [_whole_entry(entry, where, number) for number, entry in enumerate(entries)]
    return _told_where({**content, "labels": labels}, where)


def _whole_entry(entry: Any, where: str, number: int) -> Any:  # noqa: ANN401 - parsed YAML
    """An entry with a colour, checked by itself so that a message can tell which it is."""
    place = f"{where}, label {number + 1}"
    if isinstance(entry, Mapping):
        entry = {"rgb": list(spread_colour(number)), **entry}
        if "name" in entry and not isinstance(entry["name"], str):
            raise ConfigError(
                place,
                expected="a name",
                found=kind_of(entry["name"]),
                remedy="write for example 1: Anterior, the value first; quote names such as 'no'",
                code="label-scheme",
            )
    _told_where({"name": "one", "labels": [entry]}, place)
    return entry


def _told_where(content: Mapping[str, Any], where: str) -> LabelScheme:
    try:
        return LabelScheme.from_dict(content)
    except ConfigError as error:
        raise ConfigError(
            where,
            expected=error.expected,
            found=error.found,
            remedy=error.remedy,
            code=error.code,
        ) from error


def recode_by_name(stored: LabelScheme, wanted: LabelScheme) -> tuple[tuple[int, int], ...]:
    """How stored values become those of another scheme, structure by structure.

    Args:
        stored: What the values on disk mean.
        wanted: What they shall become; structures that it does not list become background.

    Returns:
        Pairs of stored and wanted value, background included; empty if nothing changes.

    Raises:
        ConfigError: ``scheme-differs`` if the wanted scheme lists a structure that is not stored.
    """
    values = {label.name: label.value for label in wanted.labels}
    absent = sorted(set(values) - {label.name for label in stored.labels})
    if absent:
        raise ConfigError(
            f"label scheme {wanted.name!r}",
            expected=f"structures of {stored.name!r}",
            found=f"{absent[0]!r}, which is not among them",
            remedy="choose a scheme that the dataset's labels can be turned into",
            code="scheme-differs",
        )
    pairs = tuple((label.value, values.get(label.name, 0)) for label in stored.labels)
    if all(old == new for old, new in pairs):
        return ()
    return ((0, 0), *pairs)
