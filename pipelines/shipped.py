"""Configurations that come with medseg, by name."""

from __future__ import annotations

from pathlib import Path

from medseg.errors import ConfigError, one_of

__all__ = ["find_config", "shipped_configs"]

_HERE = Path(__file__).resolve().parent.parent
# an installed package carries them inside medseg, a checkout keeps them at its root
_FOLDERS = (_HERE / "medseg" / "configs", _HERE / "configs")


def shipped_configs() -> dict[str, Path]:
    """The YAML files of shipped runs, by name."""
    for folder in _FOLDERS:
        found = {path.stem: path for path in sorted(folder.glob("*.yaml"))}
        if found:
            return found
    return {}


def find_config(name_or_path: str) -> Path:
    """The configuration that a user means.

    Args:
        name_or_path: A shipped configuration's name, or the path of a YAML file.

    Raises:
        ConfigError: If there is none.
    """
    shipped = shipped_configs()
    if name_or_path in shipped:
        return shipped[name_or_path]
    path = Path(name_or_path)
    if path.is_file():
        return path
    raise ConfigError(
        f"configuration {name_or_path!r}",
        expected=f"a YAML file, or {one_of(Path(name_or_path).stem, shipped)}",
        found="neither a file nor a shipped configuration of that name",
        remedy="correct the path or take a shipped name",
        code="config-missing",
    )
