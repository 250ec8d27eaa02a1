"""What the integers of a label map mean: names, colours and coded concepts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from medseg.errors import ConfigError, one_of

__all__ = ["Code", "Label", "LabelScheme", "spread_colour"]


@dataclass(frozen=True, slots=True)
class Code:
    """A coded concept as DICOM writes it (PS3.3 section 8).

    Args:
        value: Code value, such as ``10200004``.
        scheme: Coding scheme designator, such as ``SCT`` for SNOMED CT.
        meaning: Code meaning, such as ``Liver``.
    """

    value: str
    scheme: str
    meaning: str

    def __post_init__(self) -> None:
        for name, text, limit in (
            ("value", self.value, 64),
            ("scheme", self.scheme, 16),
            ("meaning", self.meaning, 64),
        ):
            if not text or len(text) > limit:
                raise ConfigError(
                    f"code {name}",
                    expected=f"1 to {limit} characters",
                    found=f"{len(text)} characters",
                    remedy="use the code as its scheme lists it",
                    code="label-scheme",
                )


@dataclass(frozen=True, slots=True)
class Label:
    """One structure of a label scheme.

    Args:
        value: Integer in the label map, 1 to 65535; 0 is background and is never listed.
        name: Short name for people, unique within its scheme.
        rgb: Display colour, three integers 0 to 255.
        category: Segmented property category; None lets the writer use "Tissue".
        concept: Segmented property type; None lets the writer make a private code from the name.
        modifier: Segmented property type modifier, such as a laterality; None for none.
    """

    value: int
    name: str
    rgb: tuple[int, int, int]
    category: Code | None = None
    concept: Code | None = None
    modifier: Code | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.value <= 65535:
            raise ConfigError(
                f"label {self.name!r}",
                expected="a value from 1 to 65535",
                found=str(self.value),
                remedy="number labels from 1; 0 is background",
                code="label-scheme",
            )
        if not self.name or len(self.name) > 64:
            raise ConfigError(
                f"label {self.value}",
                expected="a name of 1 to 64 characters",
                found=f"{len(self.name)} characters",
                remedy="shorten or add the name",
                code="label-scheme",
            )
        if len(self.rgb) != 3 or not all(0 <= level <= 255 for level in self.rgb):
            raise ConfigError(
                f"label {self.name!r}",
                expected="three colour levels from 0 to 255",
                found=str(self.rgb),
                remedy="give the colour as [red, green, blue]",
                code="label-scheme",
            )


@dataclass(frozen=True, slots=True)
class LabelScheme:
    """The closed list of structures that a label map may hold; valid once built.

    Args:
        name: Name of the scheme, such as ``msd_hippocampus``.
        labels: The structures in rising order of value; 0 is background and is not listed.

    Raises:
        ConfigError: If it is empty, or a value or a name occurs twice.
    """

    name: str
    labels: tuple[Label, ...]

    def __post_init__(self) -> None:
        ordered = tuple(sorted(self.labels, key=lambda label: label.value))
        object.__setattr__(self, "labels", ordered)
        values = [label.value for label in ordered]
        names = [label.name for label in ordered]
        if not ordered or len(set(values)) < len(values) or len(set(names)) < len(names):
            raise ConfigError(
                f"label scheme {self.name!r}",
                expected="at least one label, every value and name once",
                found=f"values {values}, names {names}",
                remedy="make values and names unique",
                code="label-scheme",
            )

    @property
    def values(self) -> tuple[int, ...]:
        """Label values in rising order, background left out."""
        return tuple(label.value for label in self.labels)

    def by_value(self, value: int) -> Label:
        """The label with that integer.

        Raises:
            ConfigError: If the scheme has no such value.
        """
        for label in self.labels:
            if label.value == value:
                return label
        raise ConfigError(
            f"label scheme {self.name!r}",
            expected=f"one of the values {list(self.values)}",
            found=str(value),
            remedy="use the label scheme that the map was made with",
            code="label-unknown",
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; :meth:`from_dict` reads them back to an equal scheme."""
        return {"name": self.name, "labels": [_label_to_dict(label) for label in self.labels]}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> LabelScheme:
        """Read what :meth:`to_dict` wrote, or the same written by hand in YAML.

        Raises:
            ConfigError: If a key is missing, unknown or of the wrong kind.
        """
        _check_keys("label scheme", content, required={"name", "labels"})
        if not isinstance(content["labels"], list | tuple):
            raise ConfigError(
                "label scheme",
                expected="a list under 'labels'",
                found=type(content["labels"]).__name__,
                remedy="list the labels, each with value, name and rgb",
                code="label-scheme",
            )
        return cls(
            str(content["name"]), tuple(_label_from_dict(item) for item in content["labels"])
        )

    @classmethod
    def plain(cls, name: str, names: Mapping[int, str]) -> LabelScheme:
        """A scheme from integers and names alone; colours are spread over the hue circle.

        Args:
            name: Name of the scheme.
            names: Value to name; a value of 0 is taken as background and left out.
        """
        members = sorted((int(value), label) for value, label in names.items() if int(value) != 0)
        return cls(
            name,
            tuple(
                Label(value, label, spread_colour(index))
                for index, (value, label) in enumerate(members)
            ),
        )


def spread_colour(index: int) -> tuple[int, int, int]:
    """Colour number ``index`` of a sequence whose neighbours differ well (golden-angle hues)."""
    hue = (index * 0.618034 + 0.02) % 1.0 * 6.0
    sector, fraction = int(hue), hue - int(hue)
    low, high = 0.25, 0.95
    falling, rising = high - (high - low) * fraction, low + (high - low) * fraction
    red, green, blue = (
        (high, rising, low),
        (falling, high, low),
        (low, high, rising),
        (low, falling, high),
        (rising, low, high),
        (high, low, falling),
    )[sector % 6]
    return round(red * 255), round(green * 255), round(blue * 255)


def _code_to_dict(code: Code) -> dict[str, str]:
    return {"value": code.value, "scheme": code.scheme, "meaning": code.meaning}


def _code_from_dict(where: str, content: Any) -> Code:  # noqa: ANN401 - parsed YAML or JSON
    _check_keys(where, content, required={"value", "scheme", "meaning"})
    return Code(str(content["value"]), str(content["scheme"]), str(content["meaning"]))


def _label_to_dict(label: Label) -> dict[str, Any]:
    content: dict[str, Any] = {"value": label.value, "name": label.name, "rgb": list(label.rgb)}
    for key, code in (
        ("category", label.category),
        ("concept", label.concept),
        ("modifier", label.modifier),
    ):
        if code is not None:
            content[key] = _code_to_dict(code)
    return content


def _label_from_dict(content: Any) -> Label:  # noqa: ANN401 - parsed YAML or JSON
    optional = {"category", "concept", "modifier"}
    _check_keys("label", content, required={"value", "name", "rgb"}, optional=optional)
    codes = {
        key: _code_from_dict(f"label {content['name']!r} {key}", content[key])
        for key in optional
        if content.get(key) is not None
    }
    try:
        red, green, blue = (int(level) for level in content["rgb"])
        value = int(content["value"])
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"label {content['name']!r}",
            expected="an integer value and rgb of three integers",
            found=f"value {content['value']!r}, rgb {content['rgb']!r}",
            remedy="write for example value: 1, rgb: [230, 60, 60]",
            code="label-scheme",
        ) from error
    return Label(value, str(content["name"]), (red, green, blue), **codes)


def _check_keys(
    where: str,
    content: Any,  # noqa: ANN401 - parsed YAML or JSON
    *,
    required: set[str],
    optional: set[str] = frozenset(),  # type: ignore[assignment]
) -> None:
    if not isinstance(content, Mapping):
        raise ConfigError(
            where,
            expected=f"a mapping with {', '.join(sorted(required))}",
            found=type(content).__name__,
            remedy="write it as key: value lines",
            code="label-scheme",
        )
    missing = required - set(content)
    unknown = set(content) - required - optional
    if missing or unknown:
        stranger = sorted(str(key) for key in unknown)
        raise ConfigError(
            where,
            expected=one_of(stranger[0] if stranger else "", required | optional),
            found=f"missing {sorted(missing)}, unknown {stranger}",
            remedy="correct the keys",
            code="label-scheme",
        )
