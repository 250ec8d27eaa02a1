"""Trained models by name or by folder."""

from __future__ import annotations

from pathlib import Path

from medseg.errors import ConfigError, one_of
from medseg.models.card import CARD_NAME, ModelCard, load_card, model_folder

__all__ = ["cards", "find_model", "find_models", "shipped_models"]

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
