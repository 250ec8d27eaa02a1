"""Which stacks of a study a model is to see: by rule, or as the user says.

Nothing is guessed: where more than one stack fits, or none, the candidates are listed and the user
chooses. Messages list numbers, modalities and counts; descriptions are free text into which names
are sometimes written, and stay with ``medseg studies list``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from medseg.errors import ConfigError, FormatError, GeometryError
from medseg.io.dicom_study import Stack, Study

__all__ = ["SeriesRule", "chosen_stack", "known_rules", "match_series"]

_MOST_LISTED = 8
_DESCRIPTION_LENGTH = 64  # of a long string (LO)
_SEE = "`medseg studies list` shows them"


@dataclass(frozen=True, slots=True)
class SeriesRule:
    """What a stack must be like; what is None does not matter.

    Args:
        modality: DICOM's modality.
        description: Regular expression searched in the description and, where there is none, in the
            name of the protocol; letters of either case.
        exclude: Regular expression that must not be found there.
        body_part: Regular expression searched in the body part.
        min_thickness_mm: Least slice thickness; a stack that does not tell its thickness fits none.
        max_thickness_mm: Largest.
        orientation: ``axial``, ``coronal`` or ``sagittal``.
        contrast: Whether a contrast agent is recorded.
        b_values: Least and largest b-value in s/mm2.
    """

    modality: str | None = None
    description: str | None = None
    exclude: str | None = None
    body_part: str | None = None
    min_thickness_mm: float | None = None
    max_thickness_mm: float | None = None
    orientation: str | None = None
    contrast: bool | None = None
    b_values: tuple[float, float] | None = None

    def fits(self, stack: Stack) -> bool:
        """Whether a stack is like that."""
        text = (stack.description or stack.protocol)[:_DESCRIPTION_LENGTH]
        thickness, b_value = stack.thickness_mm, stack.b_value
        low, high = self.min_thickness_mm, self.max_thickness_mm
        return (
            self.modality in (None, stack.modality)
            and (self.description is None or _found(self.description, text))
            and (self.exclude is None or not _found(self.exclude, text))
            and (self.body_part is None or _found(self.body_part, stack.body_part))
            and (low is None or (thickness is not None and thickness >= low))
            and (high is None or (thickness is not None and thickness <= high))
            and self.orientation in (None, stack.orientation)
            and self.contrast in (None, stack.contrast)
            and (
                self.b_values is None
                or (b_value is not None and self.b_values[0] <= b_value <= self.b_values[1])
            )
        )


def _found(pattern: str, text: str) -> bool:
    return re.search(pattern, text, re.IGNORECASE) is not None


_T1 = r"t1|mp-?rage|spgr|bravo|tfl3d"
# The underscore joins words in descriptions, so that word boundaries do not part them.
_AGENT = (
    r"post|gado|contrast|(?<![a-z])(gd|gad|km|ce)(?![a-z])|[_ +-]c(?![a-z])"
    r"|t1[_ -]?(c|ce|gd|km)(?![a-z])"
)
_NOT_T1 = r"t2|flair|dark.?fluid|tirm|adc|dwi|diff|swi"
_KNOWN: dict[str, tuple[SeriesRule, ...]] = {
    "T1": (
        SeriesRule(description=_T1, exclude=f"{_AGENT}|{_NOT_T1}", contrast=False),
        SeriesRule(description=_T1, exclude=f"{_AGENT}|{_NOT_T1}"),
    ),
    "T1C": (
        SeriesRule(description=f"(?=.*({_T1}))(?=.*({_AGENT}))", exclude=_NOT_T1),
        SeriesRule(description=_T1, exclude=_NOT_T1, contrast=True),
    ),
    "T2": (SeriesRule(description=r"t2", exclude=r"flair|dark.?fluid|tirm|t2\*|t2.?star|swi|map"),),
    "FLAIR": (SeriesRule(description=r"flair|dark.?fluid|tirm"),),
    "ADC": (SeriesRule(description=r"(?<![a-z])adc|apparent"),),
    "DWI": (SeriesRule(description=r"dwi|diff|trace", exclude=r"(?<![a-z])adc|apparent"),),
}
_ALSO = {
    "T1W": "T1",
    "T1N": "T1",
    "T1CE": "T1C",
    "T1GD": "T1C",
    "T1POST": "T1C",
    "T2W": "T2",
    "T2F": "FLAIR",
    "T2FLAIR": "FLAIR",
}


def known_rules(channel: str, modality: str | None) -> tuple[SeriesRule, ...]:
    """Rules for channels with names that the field knows, the narrowest first; else modality alone.

    Args:
        channel: Such as ``T1c`` or ``FLAIR``.
        modality: What the stack must be besides.
    """
    name = re.sub(r"[^A-Z0-9]", "", channel.upper())
    rules = _KNOWN.get(_ALSO.get(name, name), (SeriesRule(),))
    return tuple(replace(rule, modality=modality) for rule in rules)


def chosen_stack(study: Study, wanted: str | None) -> Stack:
    """The stack that a user names, or the only one.

    Args:
        study: What there is.
        wanted: Its number in the listing, a SeriesInstanceUID, or a regular expression that is
            searched in the descriptions; None for the only stack.

    Raises:
        FormatError: ``series-ambiguous`` if several fit.
        ConfigError: ``series-unknown`` if none does; ``series-pattern``.
    """
    where = str(study.path)
    if wanted is None:
        return _the_one(study.stacks, where, "one series")
    if re.fullmatch(r"[0-9]{1,6}", wanted):
        number = int(wanted)
        if 1 <= number <= len(study.stacks):
            return study.stacks[number - 1]
        found: Sequence[Stack] = ()
    elif re.fullmatch(r"[0-9]+(\.[0-9]+)+", wanted):
        found = [stack for stack in study.stacks if stack.series_uid == wanted]
    else:
        try:
            found = [stack for stack in study.stacks if _found(wanted, stack.description)]
        except re.error as error:
            raise ConfigError(
                "--series",
                expected="a number, a SeriesInstanceUID or a regular expression",
                found=f"an expression that cannot be read ({error.msg})",
                remedy="put a backslash before signs such as ( and +",
                code="series-pattern",
            ) from error
    if not found:
        raise ConfigError(
            "--series",
            expected=f"a number up to {len(study.stacks)}, a SeriesInstanceUID or a description of "
            "the study",
            found="none of these",
            remedy=_SEE,
            code="series-unknown",
        )
    return _the_one(found, where, "one that is called so")


def match_series(
    study: Study,
    rules: Mapping[str, Sequence[SeriesRule]],
    *,
    wanted: Mapping[str, str] | None = None,
) -> dict[str, Stack]:
    """One stack for every channel of a model.

    Of the rules of a channel the first that fits any stack counts. Localizers are left out. A stack
    that is the only one for a channel is taken from the choice of the others; where several remain
    for one of them, nothing is chosen.

    Args:
        study: What there is.
        rules: Channel name to its rules, the narrowest first.
        wanted: Channel name to what the user says, as for :func:`chosen_stack`.

    Raises:
        FormatError: ``series-ambiguous`` with the candidates; ``series-none`` if none fits.
        GeometryError: ``channels-frames-differ`` if the stacks have different frames of reference,
            or none.
        ConfigError: As :func:`chosen_stack`, and ``channel-names``.
        MedsegError: The problem of a stack that alone fits.
    """
    where = str(study.path)
    wanted = wanted or {}
    if unknown := set(wanted) - set(rules):
        raise ConfigError(
            "--series",
            expected=f"the model's channels {', '.join(rules)}",
            found=", ".join(sorted(unknown)),
            remedy="name a channel of the model",
            code="channel-names",
        )
    candidates: dict[str, list[Stack]] = {}
    for channel, alternatives in rules.items():
        if channel in wanted:
            candidates[channel] = [chosen_stack(study, wanted[channel])]
        else:
            candidates[channel] = _candidates(study, alternatives, channel, where)
    _take_from_each_other(candidates)
    chosen = {
        channel: _the_one(stacks, where, f"one series for channel {channel}")
        for channel, stacks in candidates.items()
    }
    _check_apart(chosen, where)
    for stack in chosen.values():
        if stack.problem is not None:
            raise stack.problem
    _check_one_frame(chosen, where)
    return chosen


def _candidates(
    study: Study, alternatives: Sequence[SeriesRule], channel: str, where: str
) -> list[Stack]:
    able = [stack for stack in study.stacks if not stack.is_localizer] or list(study.stacks)
    for rule in alternatives:
        fitting = [stack for stack in able if rule.fits(stack)]
        if fitting:
            return [stack for stack in fitting if _may_be_meant(stack)] or fitting
    raise FormatError(
        where,
        expected=f"a series for channel {channel}",
        found=f"none that fits the model's rules among {_listed(study.stacks)}",
        remedy=f"choose one with --series; {_SEE}",
        code="series-none",
    )


def _may_be_meant(stack: Stack) -> bool:
    """Whether a stack is whole, or a series that broke: another is no answer to its gap.

    A picture without a place, in colour, or alone is of another kind and not asked for.
    """
    return stack.problem is None or (stack.images > 1 and stack.frames[0].plane is not None)


def _take_from_each_other(candidates: dict[str, list[Stack]]) -> None:
    """Leave a stack that is a channel's only one to that channel, until nothing changes."""
    settled: set[str] = set()
    while True:
        alone = next(
            (
                name
                for name, stacks in candidates.items()
                if len(stacks) == 1 and name not in settled
            ),
            None,
        )
        if alone is None:
            return
        settled.add(alone)
        (taken,) = candidates[alone]
        for name, stacks in candidates.items():
            if name != alone and len(stacks) > 1:
                candidates[name] = [stack for stack in stacks if stack is not taken]


def _the_one(stacks: Sequence[Stack], where: str, expected: str) -> Stack:
    if len(stacks) == 1:
        return stacks[0]
    series = len({stack.series_uid for stack in stacks})
    raise FormatError(
        where,
        expected=expected,
        found=f"{len(stacks)} {'series' if series == len(stacks) else 'volumes'}: "
        f"{_listed(stacks)}",
        remedy=f"choose one with --series; {_SEE}",
        code="series-ambiguous",
    )


def _listed(stacks: Sequence[Stack]) -> str:
    more = f" and {len(stacks) - _MOST_LISTED} more" if len(stacks) > _MOST_LISTED else ""
    return "; ".join(stack.words() for stack in stacks[:_MOST_LISTED]) + more


def _check_apart(chosen: Mapping[str, Stack], where: str) -> None:
    by_stack: dict[int, str] = {}
    for channel, stack in chosen.items():
        other = by_stack.setdefault(stack.number, channel)
        if other != channel:
            raise FormatError(
                where,
                expected="a series of its own for every channel",
                found=f"{stack.words()} for both {other} and {channel}",
                remedy=f"choose with --series CHANNEL=NUMBER; {_SEE}",
                code="series-ambiguous",
            )


def _check_one_frame(chosen: Mapping[str, Stack], where: str) -> None:
    """Positions of two frames of reference cannot be compared."""
    if len(chosen) < 2:
        return
    first_name, first = next(iter(chosen.items()))
    for name, stack in chosen.items():
        same = stack.frame_of_reference_uid == first.frame_of_reference_uid
        if not same or not stack.frame_of_reference_uid:
            raise GeometryError(
                where,
                expected=f"channel {name} in the frame of reference of channel {first_name}",
                found="none" if not stack.frame_of_reference_uid else "another one",
                remedy="register the series first, and give the channels as NIfTI files",
                code="channels-frames-differ",
            )
