"""Model folders that come from elsewhere: looked at as data, and as data only.

A source is a folder or a zip. What is in it is listed and judged before one byte is written; of
what passes only a model's own files are taken: the card, the weights, the licence and texts. No
pickle is opened, no expression evaluated, no configuration of another program built.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import torch
from safetensors import SafetensorError, safe_open

from medseg.atomic import atomic_folder, check_replaceable
from medseg.errors import ConfigError, FormatError, MedsegError
from medseg.models.card import CARD_NAME, ModelCard, parse_card
from medseg.models.folder import WEIGHTS_NAME, load_model
from medseg.models.source_files import (
    MOST_TEXT_BYTES,
    TEXTS,
    Entry,
    list_source,
    reading,
    refuse,
    shown,
)
from medseg.models.table import build_volume_network

__all__ = ["Imported", "first_expression", "import_model"]

_PART_BYTES = 1 << 20
_METADATA = "configs/metadata.json"
_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")


@dataclass(frozen=True, slots=True)
class Imported:
    """A model that was taken in.

    Args:
        folder: Where it lies.
        card: As written there.
        left_out: Files of the source that were not taken, relative to the model in it.
    """

    folder: Path
    card: ModelCard
    left_out: tuple[str, ...]


def import_model(
    source: Path, out: Path | None = None, *, name: str | None = None, overwrite: bool = False
) -> Imported:
    """Take a model folder or a zip of one in.

    The folder appears whole or not at all: it is made under a temporary name, its hash, its schema
    and its weights are checked there, and only then it gets its own.

    Args:
        source: A model folder, a run folder, a MONAI bundle that ``medseg models export`` wrote, or
            a zip of one, in which the model may lie within one folder.
        out: Folder to be made; ``models/NAME`` in the current folder if None.
        name: Replaces the name on the card.
        overwrite: Whether a model folder of that name may be replaced.

    Raises:
        ConfigError: If there is no such source, it cannot be read, or the name is wrong.
        FormatError: If the source is damaged, dangerous or larger than a model can be, its card is
            wrong or holds an expression, or its weights are missing, no safetensors, exchanged or
            of another network.
        ResourceError: If the target exists or cannot be written.
    """
    if name is not None and not _NAME.fullmatch(name):
        raise ConfigError(
            "--name",
            expected="1 to 64 of a-z, 0-9, _ . -, the first a letter or digit",
            found=repr(name),
            remedy="choose such a name",
            code="bundle-name",
        )
    with list_source(source) as entries:
        model = _model_of(entries, source)
        with _content():
            card = _card_of(model, source)
        if name is not None:
            card = card.model_copy(update={"name": name})
        target = out if out is not None else Path("models") / card.name
        check_replaceable(target, CARD_NAME, overwrite=overwrite)
        with atomic_folder(target, replace=overwrite, parents=True) as folder:
            taken = {inner: entry for inner, entry in model.items() if _wanted(inner)}
            for inner, entry in taken.items():
                path = folder / inner
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("xb") as file, reading(entry, source) as content:
                    while part := content.read(_PART_BYTES):
                        file.write(part)
            (folder / CARD_NAME).write_text(card.model_dump_json(indent=2) + "\n", encoding="utf-8")
            with _content():
                _check_weights(folder / WEIGHTS_NAME, card, source)
                _check_loads(folder, source)
    left_out = tuple(sorted(str(inner) for inner in model.keys() - taken.keys()))
    return Imported(target, card, left_out)


@contextmanager
def _content() -> Iterator[None]:
    """What is wrong with the content of a file is no wrong setting of whoever takes it in."""
    try:
        yield
    except ConfigError as error:
        if error.code == "input-unreadable":
            raise
        raise FormatError(
            error.where,
            expected=error.expected,
            found=error.found,
            remedy=error.remedy,
            code=error.code,
        ) from error


def first_expression(content: object) -> str | None:
    """The first text, or key, in parsed JSON that MONAI would evaluate or resolve; None if none.

    Those begin with ``$``, ``@`` or ``%``, or are keys that begin with ``_`` (``_target_``).
    """
    if isinstance(content, str):
        return shown(content) if content.lstrip()[:1] in ("$", "@", "%") else None
    if isinstance(content, dict):
        for key, value in content.items():
            if str(key).lstrip()[:1] in ("$", "@", "%", "_"):
                return f"the key {shown(str(key))}"
            if (found := first_expression(value)) is not None:
                return found
    if isinstance(content, list | tuple):
        for value in content:
            if (found := first_expression(value)) is not None:
                return found
    return None


def _model_of(entries: Sequence[Entry], source: Path) -> dict[PurePosixPath, Entry]:
    """The files of the model by their names in it: of the whole source, or of its one folder."""
    by_name = {entry.name: entry for entry in entries}
    cards = sorted((name for name in by_name if name.name == CARD_NAME), key=lambda n: len(n.parts))
    within = [name for name in by_name if name.suffix.lower() == ".zip"]
    if not cards and within:
        refuse(
            source,
            str(within[0]),
            expected="a model",
            found="a zip within the zip" if source.is_file() else "a zip within the folder",
            code="bundle-nested",
        )
    if not cards:
        what = "a MONAI bundle of another program" if _has_metadata(by_name) else "none"
        raise FormatError(
            str(source),
            expected=f"a {CARD_NAME}, the card of a model of medseg",
            found=what,
            remedy="import what `medseg models export` or `medseg train` wrote; networks of other "
            "programs are not taken over",
            code="bundle-card-missing",
        )
    top = cards[0].parent
    if len(top.parts) > 1 or len(cards) > 1:
        refuse(
            source,
            str(cards[-1]),
            expected=f"one {CARD_NAME}, at the top or in one folder",
            found="one further down" if len(cards) == 1 else f"{len(cards)} of them",
            code="bundle-nested",
        )
    return {
        name.relative_to(top): entry for name, entry in by_name.items() if name.is_relative_to(top)
    }


def _has_metadata(by_name: dict[PurePosixPath, Entry]) -> bool:
    return any(name.name == "metadata.json" for name in by_name)


def _wanted(name: PurePosixPath) -> bool:
    """Card, weights and texts for people."""
    if len(name.parts) == 1:
        text = name.suffix in (*TEXTS, "") and name.stem.upper() in ("LICENSE", "README")
        return text or str(name) in (CARD_NAME, WEIGHTS_NAME)
    return name.parts[0] == "docs" and name.suffix in TEXTS


def _text(entry: Entry, source: Path) -> bytes:
    with reading(entry, source) as content:
        return content.read(MOST_TEXT_BYTES)


def _card_of(model: dict[PurePosixPath, Entry], source: Path) -> ModelCard:
    """The card, and nothing in it or in the bundle's metadata that is more than data."""
    if PurePosixPath(WEIGHTS_NAME) not in model:
        others = sorted(
            str(name) for name in model if name.suffix in (".pt", ".pth", ".ts", ".bin", ".pkl")
        )
        raise FormatError(
            str(source),
            expected=WEIGHTS_NAME,
            found=f"only {others[0]}, a pickle" if others else "no weights",
            remedy="pickles can run code and are not opened; export the model again with "
            "`medseg models export`",
            code="bundle-weights",
        )
    card_bytes = _text(model[PurePosixPath(CARD_NAME)], source)
    documents = {CARD_NAME: card_bytes}
    if (metadata := model.get(PurePosixPath(_METADATA))) is not None:
        documents[_METADATA] = _text(metadata, source)
    for name, content in documents.items():
        try:
            found = first_expression(json.loads(content))
        except (ValueError, RecursionError) as error:
            raise ConfigError(
                f"{source}: {name}",
                expected="JSON",
                found="something else",
                remedy="export the model again with this version of medseg",
                code="model-card",
            ) from error
        if found is not None:
            raise ConfigError(
                f"{source}: {name}",
                expected="data",
                found=f"an expression, {found}",
                remedy="nothing was taken from it; expressions can run code, ask its makers for a "
                "plain model folder",
                code="bundle-expression",
            )
    return parse_card(card_bytes, where=f"{source}: {CARD_NAME}")


def _check_weights(path: Path, card: ModelCard, source: Path) -> None:
    """Before a network is built in memory: what file this is, whose, and of which shapes."""
    with path.open("rb") as file:
        start = file.read(10)
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    where = f"{source}: {WEIGHTS_NAME}"
    if start[8:9] != b"{":  # after eight bytes of length the header begins, which is JSON
        pickled = start[:1] == b"\x80" or start[:2] == b"PK"
        raise FormatError(
            where,
            expected="safetensors",
            found="a pickle" if pickled else "something else",
            remedy="pickles can run code and are not opened; export the model again with "
            "`medseg models export`",
            code="bundle-pickle",
        )
    if digest != card.weights_sha256:
        raise FormatError(
            where,
            expected=f"the sha256 on the card, {card.weights_sha256[:12]}...",
            found=f"{digest[:12]}...",
            remedy="copy or download it again; it was damaged or changed",
            code="weights-hash",
        )
    # without numbers a network of any size costs nothing
    with torch.device("meta"):
        network = build_volume_network(card.network, card.inputs)
    wanted = {name: list(tensor.shape) for name, tensor in network.state_dict().items()}
    try:
        with safe_open(path, framework="pt") as file_of_tensors:
            given = {
                name: list(file_of_tensors.get_slice(name).get_shape())
                for name in file_of_tensors.keys()  # noqa: SIM118 - no mapping
            }
    except SafetensorError:
        given = {}
    if given != wanted:
        raise FormatError(
            where,
            expected=f"weights of the {card.network.name} network on the card",
            found="tensors that do not fit it" if given else "a damaged file",
            remedy="use the weights and the card of one export",
            code="weights-mismatch",
        )


def _check_loads(folder: Path, source: Path) -> None:
    try:
        load_model(folder)
    except MedsegError as error:
        raise type(error)(
            f"{source}: {WEIGHTS_NAME}",
            expected=error.expected,
            found=error.found,
            remedy=error.remedy,
            code=error.code,
        ) from error
