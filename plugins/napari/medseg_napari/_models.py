"""The models that can be run: those of the package, and those of the user's folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import platformdirs
from psygnal import Signal

from medseg.errors import MedsegError
from medseg.models.card import ModelCard, load_card
from medseg.models.zoo import ENSEMBLE_NAME, find_members, find_models, shipped_models

__all__ = [
    "FoundModel",
    "FoundModels",
    "find_all_models",
    "model_events",
    "remember_model",
    "user_models",
]


class ModelEvents:
    """What docks tell each other of models."""

    added = Signal(Path)


model_events = ModelEvents()
_made_here: list[Path] = []


def remember_model(folder: Path) -> None:
    """List a model that was made in this session, wherever it lies, and tell every dock."""
    if folder not in _made_here:
        _made_here.append(folder)
    model_events.added.emit(folder)


@dataclass(frozen=True, slots=True)
class FoundModel:
    """One model, or an ensemble of them.

    Args:
        name: As listed: the folder's name.
        folders: The model folder; one for each member of an ensemble.
        card: The first member's.
        packaged: Whether it comes with medseg.
    """

    name: str
    folders: tuple[Path, ...]
    card: ModelCard
    packaged: bool = False

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of the images that it needs."""
        return tuple(channel.name for channel in self.card.inputs.channels)

    @property
    def title(self) -> str:
        """How it is listed."""
        members = f", {len(self.folders)} networks" if len(self.folders) > 1 else ""
        return f"{self.name} {self.card.version}{members}"


@dataclass(frozen=True, slots=True)
class FoundModels:
    """What a search found.

    Args:
        models: Those that can be used, the packaged ones first.
        problems: What is wrong with the others, one sentence each.
    """

    models: tuple[FoundModel, ...]
    problems: tuple[str, ...]

    def named(self, name: str) -> FoundModel | None:
        """The model of that name."""
        return next((model for model in self.models if model.name == name), None)


def user_models() -> Path:
    """Where models are looked for beside the packaged ones, if no other folder is chosen."""
    return Path(platformdirs.user_data_dir("medseg", appauthor=False)) / "models"


def find_all_models(folder: Path | None) -> FoundModels:
    """Every model of the package, of a folder and of this session; weights are not read.

    Args:
        folder: Holds model folders, run folders or ensembles, or is one itself; None, or a folder
            that does not exist, adds nothing.
    """
    places: list[tuple[str, Path, bool]] = [
        (name, place, True) for name, place in shipped_models().items()
    ]
    if folder is not None and folder.is_dir():
        own = find_models(folder.parent).get(folder.name)
        if own is not None or (folder / ENSEMBLE_NAME).is_file():
            places.append((folder.name, folder, False))
        else:
            inside = {**find_models(folder), **_ensembles(folder)}
            places += [(name, place, False) for name, place in sorted(inside.items())]
    listed = {place for _, place, _ in places}
    places += [
        (place.name, place, False) for place in _made_here if place not in listed and place.is_dir()
    ]
    models: list[FoundModel] = []
    problems: list[str] = []
    taken: set[str] = set()
    for name, place, packaged in places:
        try:
            members = (place,) if packaged else find_members(str(place.resolve()))
            card = load_card(members[0])
        except MedsegError as error:
            problems.append(str(error))
            continue
        except OSError:
            problems.append(f"{place}: the model's card cannot be read")
            continue
        shown = name if name not in taken else f"{name} ({place.parent.name})"
        taken.add(shown)
        models.append(FoundModel(shown, members, card, packaged))
    return FoundModels(tuple(models), tuple(problems))


def _ensembles(folder: Path) -> dict[str, Path]:
    return {place.name: place for place in folder.iterdir() if (place / ENSEMBLE_NAME).is_file()}
