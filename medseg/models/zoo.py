"""Trained models by name or by folder."""

from __future__ import annotations

import json
from pathlib import Path

from medseg.errors import ConfigError, one_of
from medseg.models.card import CARD_NAME, ModelCard, load_card, model_folder

__all__ = ["ENSEMBLE_NAME", "cards", "find_members", "find_model", "find_models", "shipped_models"]

ENSEMBLE_NAME = "ensemble.json"
SHIPPED = Path(__file__).resolve().parent.parent / "resources" / "models"


def shipped_models() -> dict[str, Path]:
    """Folders of the models that come with the package, by name."""
    return find_models(SHIPPED)


def find_models(root: Path) -> dict[str, Path]:
    """Model folders and run folders directly below ``root``, by folder name."""
    if not root.is_dir():
        return {}
    return {
        folder.name: folder
        for folder in sorted(root.iterdir())
        if (folder / CARD_NAME).is_file() or (folder / "model" / CARD_NAME).is_file()
    }


def find_model(name_or_folder: str) -> Path:
    """The model folder that a user means.

    Args:
        name_or_folder: A shipped model's name, a model folder or a run folder. A folder of that
            name wins if it is written with a slash or dot; else a shipped name does.

    Raises:
        ConfigError: If there is none.
    """
    shipped = shipped_models()
    if name_or_folder in shipped:
        return shipped[name_or_folder]
    folder = Path(name_or_folder)
    if folder.is_dir():
        return model_folder(folder)
    raise ConfigError(
        f"model {name_or_folder!r}",
        expected=f"a model folder, or {one_of(name_or_folder, shipped)}",
        found="neither a folder nor a shipped model of that name",
        remedy="see `medseg models list`",
        code="model-missing",
    )


def find_members(name_or_folder: str) -> tuple[Path, ...]:
    """The model folders that a user means: those of an ensemble, or the only one.

    Args:
        name_or_folder: As for :func:`find_model`, or a folder with the ``ensemble.json`` that
            ``medseg ensemble`` writes.

    Raises:
        ConfigError: If there is none, or the ensemble lists what is not there.
    """
    index = Path(name_or_folder) / ENSEMBLE_NAME
    if not index.is_file():
        return (find_model(name_or_folder),)
    try:
        listed = json.loads(index.read_text(encoding="utf-8"))["models"]
        if not listed or not all(isinstance(name, str) for name in listed):
            raise ValueError
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            str(index),
            expected='{"models": [folders, relative to this one], ...}',
            found="something else",
            remedy="write it again with medseg ensemble",
            code="ensemble-format",
        ) from error
    return tuple(model_folder(index.parent / name) for name in listed)


def cards(folders: dict[str, Path]) -> tuple[dict[str, ModelCard], list[ConfigError]]:
    """The cards of several model folders, and what is wrong with those that cannot be read."""
    good: dict[str, ModelCard] = {}
    bad: list[ConfigError] = []
    for name, folder in folders.items():
        try:
            good[name] = load_card(folder)
        except ConfigError as error:
            bad.append(error)
    return good, bad
