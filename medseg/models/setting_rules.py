"""Rules that one setting of a network must keep for the sake of another."""

from __future__ import annotations

from medseg.errors import ConfigError

__all__ = ["broken_rule"]


def broken_rule(setting: str, *, expected: str, found: object) -> ConfigError:
    """The error to raise in a validator of several settings.

    To such a validator pydantic reports the whole model as the wrong value. This keeps the name of
    the one setting at fault and its value alone, for
    :func:`~medseg.models.table.build_settings` to tell.

    Args:
        setting: Name of the setting that the message is about.
        expected: What it should have been, with the value of the setting that it depends on.
        found: Its value.
    """
    return ConfigError(
        setting,
        expected=expected,
        found=str(list(found) if isinstance(found, tuple) else found),
        remedy="correct it or the setting that it depends on",
        code="network-value",
    )
