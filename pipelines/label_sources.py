"""What the labels of an evaluation mean: by a model, a table, a dataset's index, or by values."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from medseg.core import Label, LabelScheme
from medseg.data.layouts.brats import brats_scheme_of
from medseg.data.schemes import BRATS_SCHEMES, SCHEMES, find_scheme
from medseg.errors import ConfigError, FormatError, MedsegError, one_of, why_unreadable
from medseg.io.label_table import read_label_table
from medseg.metrics.structures import Structure, brats_regions, check_names, label_structures
from medseg.models.card import load_card
from medseg.models.zoo import find_model

__all__ = ["LabelSource", "chosen_structures", "find_labels", "ignored_value", "plain_labels"]

_INDEX = "dataset.json"
# beginnings of words; what may be called non-enhancing stands before what enhances
_PARTS = {
    "cavity": ("cavity", "resection"),
    "oedema": ("oedema", "edema", "flair"),
    "core": ("necro", "nonenh"),
    "enhancing": ("enhanc",),
}
_SHORT = {
    "rc": "cavity",
    "ncr": "core",
    "net": "core",
    "netc": "core",
    "ed": "oedema",
    "snfh": "oedema",
} | {"et": "enhancing"}


@dataclass(frozen=True, slots=True)
class LabelSource:
    """Labels and where they were read.

    Args:
        origin: For people, such as ``dataset.json of the references``.
        scheme: What the integers mean; the ignored value is among them.
        regions: Structures that are scored in place of the labels; empty for none.
        ignored: Value that the source itself says is to be left out; None for none.
    """

    origin: str
    scheme: LabelScheme
    regions: tuple[Structure, ...] = ()
    ignored: int | None = None


def find_labels(
    labels: Path | str | None, model: str | None, predictions: Path, references: Path
) -> LabelSource | None:
    """Labels from what the user names, else from a file that lies beside the references.

    Args:
        labels: Name of a scheme (:data:`medseg.data.schemes.SCHEMES`), or a YAML, JSON or TSV file;
            see :func:`read_label_file`.
        model: Name or folder of a model.
        predictions: Folder or file.
        references: Folder or file; ``dataset.json`` is looked for in and above it.

    Returns:
        None if nothing was named or found.

    Raises:
        ConfigError: If both are named, or a source cannot be read.
    """
    if labels is not None and model is not None:
        raise ConfigError(
            "medseg evaluate",
            expected="one source of labels",
            found="--labels and --model",
            remedy="leave one of them out",
            code="usage",
        )
    if model is not None:
        card = load_card(find_model(model))
        regions = tuple(Structure(each.name, each.members) for each in card.regions or ())
        return LabelSource(f"model {card.name}", card.scheme(), regions)
    if labels is not None:
        path = Path(labels)
        if str(labels) in SCHEMES or not (path.suffix or path.exists()):
            scheme = find_scheme(str(labels))
            return LabelSource(f"scheme {scheme.name}", scheme)
        return read_label_file(path)
    folder = references if references.is_dir() else references.parent
    for candidate in (folder / _INDEX, folder.parent / _INDEX):
        if candidate.is_file():
            source = read_label_file(candidate)
            return replace(source, origin=f"{_INDEX} of the references")
    tables = sorted(predictions.glob("*_dseg.tsv")) if predictions.is_dir() else []
    if tables:
        return replace(read_label_file(tables[0]), origin="label table of the predictions")
    return None


def read_label_file(path: Path) -> LabelSource:
    """Read labels from a file.

    These are known: a label scheme as in ``docs/label-schemes.md`` (YAML or JSON, by itself or
    under ``labels``), the ``labels`` of an MSD or nnU-Net ``dataset.json`` (nnU-Net's lists of
    values are regions, its ``ignore`` is left out), and a BIDS ``dseg.tsv`` (index, name, maybe
    colour).

    Raises:
        ConfigError: If it is none of these.
    """
    try:
        if path.suffix.lower() == ".tsv":
            return LabelSource(path.name, read_label_table(path, "table"))
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FormatError as error:
        raise _unreadable(path, error.found) from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise _unreadable(path, why_unreadable(error)) from error
    if isinstance(content, Mapping) and isinstance(content.get("labels"), Mapping):
        content = content["labels"]
    if not isinstance(content, Mapping) or not content:
        raise _unreadable(path, "no labels")
    if isinstance(content.get("labels"), list):
        return LabelSource(path.name, LabelScheme.from_dict(content))
    return _from_index(path, content)


def plain_labels(values: Collection[int]) -> LabelSource:
    """Labels named by their values alone."""
    names = {value: f"label {value}" for value in sorted(values) if value}
    if not names:
        raise ConfigError(
            "references",
            expected="at least one label",
            found="background alone in every reference",
            remedy="name the labels with --labels",
            code="evaluation-empty",
        )
    return LabelSource("values of the references", LabelScheme.plain("values", names))


def ignored_value(source: LabelSource, wanted: str | None) -> int | None:
    """The value that is left out: what the user names, else what the source says.

    Raises:
        ConfigError: If the user names neither a value nor a label.
    """
    if wanted is None:
        return source.ignored
    value = _value(source.scheme, wanted)
    if value is None or not 1 <= value <= 65535:
        raise ConfigError(
            "--ignore-label",
            expected=one_of(wanted, [label.name for label in source.scheme.labels])
            + ", or a value",
            found=repr(wanted),
            remedy="name the label whose voxels count in nothing",
            code="label-unknown",
        )
    return value


def with_ignored(scheme: LabelScheme, ignored: int | None) -> LabelScheme:
    """The scheme with the ignored value among its labels, so that it can be read."""
    if ignored is None or ignored in scheme.values:
        return scheme
    return LabelScheme(scheme.name, (*scheme.labels, Label(ignored, "ignored", (128, 128, 128))))


def chosen_structures(
    source: LabelSource,
    regions: Sequence[str],
    ignored: int | None,
    present: Collection[int],
    references: Sequence[Path] = (),
) -> tuple[str, tuple[Structure, ...]]:
    """What is scored.

    Which numbering ``brats`` means is told by the names of the labels, else by how the challenge
    named the files of a year together with the values that occur, else by these values alone.

    Args:
        source: The labels.
        regions: ``labels`` or nothing for every label (or nnU-Net's regions), ``model`` for the
            model's regions, a BraTS set, or ``NAME=MEMBER,MEMBER`` each.
        ignored: Value that is left out.
        present: Values that occur in the references; only looked at for ``brats``.
        references: Their files; only their names are looked at, for ``brats``.

    Returns:
        Name of the choice for people, and the structures.

    Raises:
        ConfigError: If regions are unknown, mixed, or of labels that do not exist.
    """
    regions = list(regions)
    if not regions and source.regions and source.origin.startswith("model"):
        regions = ["model"]
    if not regions:
        if source.regions:
            return f"regions of {source.origin}", source.regions
        found = label_structures(source.scheme, ignored)
        check_names(found)
        return "labels", found
    if regions == ["labels"]:
        return "labels", label_structures(source.scheme, ignored)
    if regions == ["model"]:
        if not source.regions:
            raise ConfigError(
                "--regions model",
                expected="labels whose source lists regions",
                found=f"none in {source.origin}",
                remedy="leave it out to score every label, or write the regions",
                code="regions-unknown",
            )
        return f"regions of {source.origin}", source.regions
    if len(regions) == 1 and "=" not in regions[0]:
        told = _brats_by_names(source.scheme) or _brats_by_files(references, present)
        return brats_regions(told or "brats" if regions[0] == "brats" else regions[0], present)
    found = tuple(_region(text, source.scheme) for text in regions)
    check_names(found)
    return "regions as written", found


def _brats_by_names(scheme: LabelScheme) -> str | None:
    """The numbering whose values mean the parts of a tumour that these labels are called after."""
    parts = {label.value: _part(label.name) for label in scheme.labels}
    for name in BRATS_SCHEMES:
        if parts == {label.value: _part(label.name) for label in SCHEMES[name].labels}:
            return name
    return None


def _part(name: str) -> str | None:
    """The part of a tumour that a label's name speaks of, in the words of the challenges."""
    words = set(re.findall(r"[a-z]+", name.lower().replace("non-enh", "nonenh")))
    for part, beginnings in _PARTS.items():
        if any(word.startswith(beginnings) for word in words):
            return part
    short = {_SHORT[word] for word in words if word in _SHORT}
    return short.pop() if len(short) == 1 else None


def _brats_by_files(references: Sequence[Path], present: Collection[int]) -> str | None:
    stems = [path.name.split(".")[0].lower() for path in references]
    if not stems or not all(stem.startswith("brats") for stem in stems):
        return None
    marks = {stem[-4:-3] for stem in stems if stem.endswith("seg")}
    if len(marks) != 1 or not marks <= {"-", "_"}:
        return None
    return brats_scheme_of(set(present) - {0}, hyphenated=marks == {"-"})


def _region(text: str, scheme: LabelScheme) -> Structure:
    name, _, members = (part.strip() for part in text.partition("="))
    values = [_value(scheme, member.strip()) for member in members.split(",") if member.strip()]
    known = {value for value in values if value in scheme.values}
    if not name or not known or len(known) < len(values):
        raise ConfigError(
            "--regions",
            expected="NAME=MEMBER,MEMBER with members of "
            + ", ".join(f"{label.value} {label.name}" for label in scheme.labels),
            found=repr(text),
            remedy="write for example --regions whole=1,2",
            code="regions-unknown",
        )
    return Structure(name, tuple(sorted(value for value in known if value is not None)))


def _value(scheme: LabelScheme, text: str) -> int | None:
    for label in scheme.labels:
        if label.name == text:
            return label.value
    return int(text) if text.isdecimal() else None


def _from_index(path: Path, labels: Mapping[Any, Any]) -> LabelSource:
    names: dict[int, str] = {}
    regions: list[tuple[str, tuple[int, ...]]] = []
    ignored = None
    try:
        for key, value in labels.items():
            if isinstance(value, list):
                regions.append((str(key), tuple(int(member) for member in value)))
            elif isinstance(value, str):
                names[int(key)] = value
            elif str(key) == "ignore":
                ignored = int(value)
                names[ignored] = "ignore"
            else:
                names[int(value)] = str(key)
    except (TypeError, ValueError) as error:
        raise _unreadable(path, f"the label {key!r}: {value!r}") from error
    if regions:
        # labels that stand alone are regions of one
        alone = {value: name for value, name in names.items() if value not in (0, ignored)}
        regions += [(name, (value,)) for value, name in alone.items()]
        for _, members in regions:
            names |= {member: f"label {member}" for member in members if member not in names}
    structures = tuple(Structure(name, members) for name, members in regions)
    return LabelSource(path.name, LabelScheme.plain(path.stem, names), structures, ignored)


def _unreadable(path: Path, found: str) -> MedsegError:
    return ConfigError(
        str(path),
        expected="a label scheme, a dataset.json or a dseg.tsv",
        found=found,
        remedy="see docs/evaluation.md for the forms that are read",
        code="label-file",
    )


def case_list(text: str) -> list[str]:
    """Cases from the command line: names with commas, a file of lines, or ``split.json:part``.

    Raises:
        ConfigError: If such a file cannot be read.
    """
    path, colon, part = text.rpartition(":")
    try:
        if colon and path.endswith(".json"):
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            return [str(case) for case in content[part]]
        if Path(text).is_file():
            lines = Path(text).read_text(encoding="utf-8").splitlines()
            return [line.strip() for line in lines if line.strip()]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            "--cases",
            expected="NAME,NAME, a text file of names, or FILE.json:PART",
            found=f"{why_unreadable(error)}: {text!r}",
            remedy="see `medseg evaluate --help`",
            code="cases",
        ) from error
    return [name.strip() for name in text.split(",") if name.strip()]
