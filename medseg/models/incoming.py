"""Model folders that come from elsewhere: looked at as data, and as data only.

A source is a folder or a zip. What is in it is listed and judged before one byte is written; of
what passes only a model's own files are taken: the card, the weights, the licence and texts. No
pickle is opened, no expression evaluated, no configuration of another program built.
"""

from __future__ import annotations

import hashlib
import json
import re
import stat
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, NoReturn

import torch
from safetensors import SafetensorError, safe_open

from medseg.atomic import atomic_folder, check_replaceable
from medseg.errors import ConfigError, FormatError, MedsegError
from medseg.models.card import CARD_NAME, ModelCard, parse_card
from medseg.models.folder import WEIGHTS_NAME, load_model
from medseg.models.table import build_volume_network

__all__ = ["Imported", "first_expression", "import_model"]

MOST_BYTES = 8 << 30
MOST_FILES = 1000
MOST_RATIO = 200
MOST_TEXT_BYTES = 4 << 20
_SMALL_BYTES = 1 << 20  # a text of zeros and blanks may well shrink to nothing
_PART_BYTES = 1 << 20
_METADATA = "configs/metadata.json"
_TEXTS = (".md", ".txt", ".rst")
_DRIVE = re.compile(r"^[A-Za-z]:")
_NAME = re.compile(r"^[a-z0-9][a-z0-9_.-]{0,63}$")


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


@dataclass(frozen=True, slots=True)
class _Entry:
    """A regular file of the source."""

    name: PurePosixPath
    size: int
    opened: Callable[[], IO[bytes]]


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
        ConfigError: If the source, the name or the card is wrong, or the card holds an expression.
        FormatError: If the source is damaged, dangerous or larger than a model can be, or its
            weights are missing, no safetensors, exchanged or of another network.
        ResourceError: If the target exists or cannot be written.
    """
    if name is not None and not _NAME.match(name):
        raise ConfigError(
            "--name",
            expected="1 to 64 of a-z, 0-9, _ . -, the first a letter or digit",
            found=repr(name),
            remedy="choose such a name",
            code="bundle-name",
        )
    with ExitStack() as closing:
        archive = closing.enter_context(_opened(source))
        try:
            entries = list(_listed(archive, source) if archive else _walked(source))
        except OSError as error:
            raise _unreadable(source) from error
        _check_amount(entries, source)
        model = _model_of(entries, source)
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
                with path.open("xb") as file, _reading(entry, source) as content:
                    while part := content.read(_PART_BYTES):
                        file.write(part)
            (folder / CARD_NAME).write_text(card.model_dump_json(indent=2) + "\n", encoding="utf-8")
            _check_weights(folder / WEIGHTS_NAME, card, source)
            _check_loads(folder, source)
    left_out = tuple(sorted(str(inner) for inner in model.keys() - taken.keys()))
    return Imported(target, card, left_out)


def first_expression(content: object) -> str | None:
    """The first text, or key, in parsed JSON that MONAI would evaluate or resolve; None if none.

    Those begin with ``$``, ``@`` or ``%``, or are keys that begin with ``_`` (``_target_``).
    """
    if isinstance(content, str):
        return _shown(content) if content.lstrip()[:1] in ("$", "@", "%") else None
    if isinstance(content, dict):
        for key, value in content.items():
            if str(key).lstrip()[:1] in ("$", "@", "%", "_"):
                return f"the key {_shown(str(key))}"
            if (found := first_expression(value)) is not None:
                return found
    if isinstance(content, list | tuple):
        for value in content:
            if (found := first_expression(value)) is not None:
                return found
    return None


def _shown(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:40] + "...")


@contextmanager
def _opened(source: Path) -> Iterator[zipfile.ZipFile | None]:
    if source.is_dir():
        yield None
        return
    if not source.is_file():
        raise ConfigError(
            str(source),
            expected="a model folder or a zip of one",
            found="no such file or folder" if not source.exists() else "neither",
            remedy="correct the path",
            code="bundle-missing",
        )
    try:
        archive = zipfile.ZipFile(source)
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise _damaged(source) from error
    except OSError as error:
        raise _unreadable(source) from error
    with archive:
        yield archive


def _damaged(source: Path) -> FormatError:
    return FormatError(
        str(source),
        expected="a whole zip file",
        found="one that is cut off or damaged, or something else",
        remedy="copy or download it again",
        code="bundle-zip",
    )


def _refuse(source: Path, name: str, *, expected: str, found: str, code: str) -> NoReturn:
    raise FormatError(
        f"{source}: {_shown(name)}",
        expected=expected,
        found=found,
        remedy="nothing was taken from it; ask its makers for a plain model folder",
        code=code,
    )


def _listed(archive: zipfile.ZipFile, source: Path) -> Iterator[_Entry]:
    """The files of a zip, each judged by what the archive says of it."""
    folders: set[str] = set()
    files: set[str] = set()
    packed = 0
    for info in archive.infolist()[: 2 * MOST_FILES]:  # more are too many in any case
        name = _checked_name(info.orig_filename, source)
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind == stat.S_IFLNK:
            _refuse(source, str(name), expected="files", found="a link", code="bundle-link")
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR) or info.flag_bits & 0x1:
            _refuse(
                source,
                str(name),
                expected="plain files",
                found="an encrypted one" if info.flag_bits & 0x1 else "a device, pipe or socket",
                code="bundle-special",
            )
        is_folder = info.is_dir() or kind == stat.S_IFDIR
        same = _folded(name)
        above = {_folded(parent) for parent in name.parents} - {"."}
        if same in files or (same in folders and not is_folder) or above & files:
            _refuse(
                source,
                str(name),
                expected="every name once, whatever the case of its letters",
                found="one that is there twice",
                code="bundle-duplicate",
            )
        folders |= above | ({same} if is_folder else set())
        if is_folder:
            continue
        files.add(same)
        packed += info.compress_size
        if info.file_size > max(_SMALL_BYTES, MOST_RATIO * info.compress_size):
            _refuse(
                source,
                str(name),
                expected=f"at most {MOST_RATIO} bytes for each compressed one",
                found=f"{info.file_size} bytes in {info.compress_size}",
                code="bundle-ratio",
            )
        yield _Entry(name, info.file_size, partial(archive.open, info))
    if packed > source.stat().st_size:
        _refuse(
            source,
            source.name,
            expected="files that lie one after the other",
            found="files that share their compressed bytes",
            code="bundle-ratio",
        )


def _checked_name(name: str, source: Path) -> PurePosixPath:
    if name.startswith(("/", "\\")) or _DRIVE.match(name):
        _refuse(
            source,
            name,
            expected="paths relative to the model",
            found="an absolute one",
            code="bundle-path-absolute",
        )
    parts = name.replace("\\", "/").removesuffix("/").split("/")
    if ".." in parts:
        _refuse(
            source,
            name,
            expected="paths inside the model",
            found="one that leads out of it",
            code="bundle-path-parent",
        )
    if "\\" in name or any(part in ("", ".") or not part.isprintable() for part in parts):
        _refuse(
            source,
            name,
            expected="paths of printable names with / between",
            found="another one",
            code="bundle-path",
        )
    return PurePosixPath(*parts)


def _folded(name: PurePosixPath) -> str:
    """Alike for names that some file system takes for one."""
    return unicodedata.normalize("NFC", str(name)).casefold()


def _walked(source: Path) -> Iterator[_Entry]:
    """The files of a folder; no link is followed."""
    inner = source / "model"  # of a run folder
    root = inner if (inner / CARD_NAME).is_file() and not inner.is_symlink() else source
    waiting, seen = [root], 0
    while waiting:
        for path in sorted(waiting.pop().iterdir()):
            seen += 1
            if seen > 2 * MOST_FILES:
                return  # too many in any case
            name = PurePosixPath(path.relative_to(root).as_posix())
            state = path.lstat()
            if stat.S_ISLNK(state.st_mode):
                _refuse(source, str(name), expected="files", found="a link", code="bundle-link")
            if stat.S_ISDIR(state.st_mode):
                waiting.append(path)
            elif stat.S_ISREG(state.st_mode):
                yield _Entry(name, state.st_size, partial(_open, path))
            else:
                _refuse(
                    source,
                    str(name),
                    expected="plain files",
                    found="a device, pipe or socket",
                    code="bundle-special",
                )


def _check_amount(entries: Sequence[_Entry], source: Path) -> None:
    if len(entries) > MOST_FILES:
        _refuse(
            source,
            source.name,
            expected=f"at most {MOST_FILES} files",
            found="more",
            code="bundle-files",
        )
    total = sum(entry.size for entry in entries)
    if total > MOST_BYTES:
        _refuse(
            source,
            source.name,
            expected=f"at most {MOST_BYTES >> 30} GiB",
            found=f"{total} bytes",
            code="bundle-size",
        )
    for entry in entries:
        text = entry.name.suffix in (".json", *_TEXTS)
        if text and entry.size > MOST_TEXT_BYTES:
            _refuse(
                source,
                str(entry.name),
                expected=f"texts of at most {MOST_TEXT_BYTES >> 20} MiB",
                found=f"{entry.size} bytes",
                code="bundle-size",
            )


def _model_of(entries: Sequence[_Entry], source: Path) -> dict[PurePosixPath, _Entry]:
    """The files of the model by their names in it: of the whole source, or of its one folder."""
    by_name = {entry.name: entry for entry in entries}
    cards = sorted((name for name in by_name if name.name == CARD_NAME), key=lambda n: len(n.parts))
    within = [name for name in by_name if name.suffix.lower() == ".zip"]
    if not cards and within:
        _refuse(
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
        _refuse(
            source,
            str(cards[-1]),
            expected=f"one {CARD_NAME}, at the top or in one folder",
            found="one further down" if len(cards) == 1 else f"{len(cards)} of them",
            code="bundle-nested",
        )
    return {
        name.relative_to(top): entry for name, entry in by_name.items() if name.is_relative_to(top)
    }


def _has_metadata(by_name: dict[PurePosixPath, _Entry]) -> bool:
    return any(name.name == "metadata.json" for name in by_name)


def _wanted(name: PurePosixPath) -> bool:
    """Card, weights and texts for people."""
    if len(name.parts) == 1:
        text = name.suffix in (*_TEXTS, "") and name.stem.upper() in ("LICENSE", "README")
        return text or str(name) in (CARD_NAME, WEIGHTS_NAME)
    return name.parts[0] == "docs" and name.suffix in _TEXTS


def _open(path: Path) -> IO[bytes]:
    return path.open("rb")


def _unreadable(source: Path) -> ConfigError:
    return ConfigError(
        str(source),
        expected="a model that can be read",
        found="no permission, or a disk that fails",
        remedy="check its permissions, or copy it again",
        code="input-unreadable",
    )


@contextmanager
def _reading(entry: _Entry, source: Path) -> Iterator[IO[bytes]]:
    try:
        opened = entry.opened()
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise _damaged(source) from error
    except OSError as error:
        raise _unreadable(source) from error
    try:
        with opened as content:
            yield content
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, ValueError) as error:
        raise _damaged(source) from error


def _text(entry: _Entry, source: Path) -> bytes:
    with _reading(entry, source) as content:
        return content.read(MOST_TEXT_BYTES)


def _card_of(model: dict[PurePosixPath, _Entry], source: Path) -> ModelCard:
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
