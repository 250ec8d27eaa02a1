"""Model folders from elsewhere: what is sound is taken whole, what is not leaves nothing behind."""

import hashlib
import io
import json
import os
import pickle
import re
import shutil
import signal
import stat
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from safetensors.torch import load_file, save

from medseg.errors import ConfigError, FormatError, MedsegError, ResourceError
from medseg.models import incoming, source_files
from medseg.models.folder import load_model
from medseg.models.incoming import first_expression, import_model
from tests.tiny_model import write_tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch) -> Path:
    """Where nothing but what a test makes may appear."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    return here


def make_zip(path: Path, model: Path, extra=(), *, replace=None, top="tiny/") -> Path:
    """A zip of a model; ``extra`` is pairs of a name, or a ZipInfo, and content."""
    content = {name: (model / name).read_bytes() for name in ("model.json", "weights.safetensors")}
    content |= replace or {}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in content.items():
            if data is not None:
                archive.writestr(top + name, data)
        for name, data in extra:
            archive.writestr(name, data)
    return path


def card_of(model: Path, **changes) -> bytes:
    return json.dumps({**json.loads((model / "model.json").read_text()), **changes}).encode()


def mode(name: str, kind: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.create_system = 3
    info.external_attr = (kind | 0o644) << 16
    return info


class Bomb:
    """Makes a file when it is unpickled."""

    def __reduce__(self):
        return Path("executed").write_text, ("yes",)


BOMB = pickle.dumps(Bomb())


def refused(source: Path, kind: type[MedsegError], code: str, words: str, **options) -> None:
    before = set(Path.cwd().rglob("*"))
    with pytest.raises(kind, match=words) as caught:
        import_model(source, **options)
    assert caught.value.code == code
    assert set(Path.cwd().rglob("*")) == before
    assert not Path("executed").exists()


def test_a_zip_becomes_a_model_folder_that_loads(model, tmp_path):
    source = make_zip(tmp_path / "tiny.zip", model)
    taken = import_model(source)
    assert taken.folder == Path("models/tiny")
    assert sorted(path.name for path in taken.folder.iterdir()) == [
        "model.json",
        "weights.safetensors",
    ]
    network, card = load_model(taken.folder)
    assert card == taken.card
    ours = load_file(model / "weights.safetensors")
    assert all(tensor.equal(ours[name]) for name, tensor in network.state_dict().items())


def test_a_folder_and_a_run_folder_are_taken_under_the_name_that_is_wished(model, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(model, run / "model")
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "last.pt").write_bytes(BOMB)
    for source in (model, run):
        taken = import_model(source, name=f"from_{source.name}".replace("-", "_"))
        assert taken.folder == Path("models") / taken.card.name
        assert load_model(taken.folder)[1].name == taken.card.name
        assert taken.left_out == ()
    assert import_model(model, Path("deep/down")).folder == Path("deep/down")
    assert not Path("executed").exists()


def test_texts_are_taken_and_pickles_and_configurations_are_left_out(model, tmp_path):
    evil = "$__import__('pathlib').Path('executed').write_text('yes')"
    extra = [
        ("tiny/LICENSE", "CC0"),
        ("tiny/docs/README.md", "text"),
        ("tiny/docs/run.py", "open('executed', 'w')"),
        ("tiny/models/model.pt", BOMB),
        ("tiny/configs/inference.json", json.dumps({"run": [evil], "initialize": [evil]})),
        ("tiny/configs/metadata.json", json.dumps({"version": "1"})),
    ]
    taken = import_model(make_zip(tmp_path / "tiny.zip", model, extra))
    assert taken.left_out == (
        "configs/inference.json",
        "configs/metadata.json",
        "docs/run.py",
        "models/model.pt",
    )
    files = {path.relative_to(taken.folder).as_posix() for path in taken.folder.rglob("*.*")}
    assert files == {"model.json", "weights.safetensors", "docs/README.md"}
    assert (taken.folder / "LICENSE").read_text() == "CC0"
    assert not Path("executed").exists()


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("../../evil.txt", "bundle-path-parent", "found one that leads out of it"),
        ("tiny/../../evil.txt", "bundle-path-parent", "found one that leads out of it"),
        ("tiny\\..\\..\\evil.txt", "bundle-path-parent", "found one that leads out of it"),
        ("/evil.txt", "bundle-path-absolute", "found an absolute one"),
        ("C:\\evil.txt", "bundle-path-absolute", "found an absolute one"),
        ("\\\\host\\evil.txt", "bundle-path-absolute", "found an absolute one"),
        ("tiny//evil.txt", "bundle-path", "expected paths of printable names"),
        ("tiny/./evil.txt", "bundle-path", "expected paths of printable names"),
        ("tiny/a\nb.txt", "bundle-path", "expected paths of printable names"),
        ("tiny\\evil.txt", "bundle-path", "expected paths of printable names"),
    ],
)
def test_paths_that_lead_elsewhere_are_refused(model, tmp_path, name, code, words):
    source = make_zip(tmp_path / "bad.zip", model, [(name, "evil")])
    refused(source, FormatError, code, words)
    assert not list(tmp_path.rglob("evil*"))


def test_links_and_special_files_are_refused_in_zips(model, tmp_path):
    link = mode("tiny/docs/README.md", stat.S_IFLNK)
    source = make_zip(tmp_path / "link.zip", model, [(link, "/etc/passwd")])
    refused(source, FormatError, "bundle-link", "expected files, found a link")
    for kind in (stat.S_IFIFO, stat.S_IFCHR, stat.S_IFSOCK):
        source = make_zip(tmp_path / "pipe.zip", model, [(mode("tiny/pipe", kind), "")])
        refused(source, FormatError, "bundle-special", "found a device, pipe or socket")


def test_encrypted_files_are_refused(model, tmp_path):
    source = make_zip(tmp_path / "locked.zip", model, [("tiny/locked.txt", "text")])
    content = bytearray(source.read_bytes())
    at = content.rindex(b"PK\x01\x02")  # the last entry of the directory
    content[at + 8] |= 1
    source.write_bytes(content)
    refused(source, FormatError, "bundle-special", "found an encrypted one")


def test_links_and_special_files_are_refused_in_folders(model, tmp_path):
    linked = tmp_path / "linked"
    shutil.copytree(model, linked)
    (linked / "LICENSE").symlink_to("/etc/passwd")
    refused(linked, FormatError, "bundle-link", "expected files, found a link")
    outside = tmp_path / "outside"
    shutil.copytree(model, outside)
    (outside / "docs").symlink_to(tmp_path)
    refused(outside, FormatError, "bundle-link", "expected files, found a link")
    piped = tmp_path / "piped"
    shutil.copytree(model, piped)
    os.mkfifo(piped / "LICENSE")
    refused(piped, FormatError, "bundle-special", "found a device, pipe or socket")


@pytest.mark.parametrize(
    "names",
    [
        ("tiny/a.txt", "tiny/a.txt"),
        ("tiny/a.txt", "tiny/A.TXT"),
        ("tiny/\u00e9.txt", "tiny/e\u0301.txt"),
        ("tiny/a", "tiny/a/b.txt"),
        ("tiny/a/b.txt", "tiny/a"),
        ("tiny/weights.safetensors",),
    ],
    ids=["twice", "letter case", "composed", "file then folder", "folder then file", "weights"],
)
@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
def test_names_that_a_file_system_may_take_for_one_are_refused(model, tmp_path, names):
    source = make_zip(tmp_path / "twice.zip", model, [(name, "x") for name in names])
    refused(source, FormatError, "bundle-duplicate", "found one that is there twice")


def test_a_zip_bomb_is_refused_before_it_is_unpacked(model, tmp_path):
    source = make_zip(tmp_path / "bomb.zip", model, [("tiny/docs/a.bin", bytes(4 << 20))])
    refused(source, FormatError, "bundle-ratio", "at most 200 bytes for each compressed one")


def test_files_that_share_their_bytes_are_refused(model, tmp_path):
    source = make_zip(
        tmp_path / "overlap.zip", model, [(f"tiny/{n}.bin", os.urandom(5000)) for n in range(9)]
    )
    content = bytearray(source.read_bytes())
    # all nine entries of the directory tell of the first one's bytes, and of more than there are
    at = 0
    while (at := content.find(b"PK\x01\x02", at)) >= 0:
        content[at + 20 : at + 24] = (20_000).to_bytes(4, "little")
        at += 4
    source.write_bytes(content)
    refused(source, FormatError, "bundle-ratio", "found files that share their compressed bytes")


def test_too_many_files_are_refused(model, tmp_path):
    source = make_zip(tmp_path / "many.zip", model, [(f"tiny/{n}.txt", "") for n in range(2500)])
    refused(source, FormatError, "bundle-files", "expected at most 1000 files, found more")
    folder = tmp_path / "many"
    shutil.copytree(model, folder)
    for number in range(1001):
        (folder / f"{number}.txt").touch()
    refused(folder, FormatError, "bundle-files", "expected at most 1000 files, found more")


def test_more_bytes_than_a_model_has_are_refused(model, tmp_path, monkeypatch):
    text = make_zip(tmp_path / "text.zip", model, [("tiny/docs/a.md", os.urandom((4 << 20) + 1))])
    refused(text, FormatError, "bundle-size", "expected texts of at most 4 MiB")
    folder = tmp_path / "large"
    shutil.copytree(model, folder)
    with (folder / "large.bin").open("wb") as file:
        file.truncate(source_files.MOST_BYTES)  # takes no room on the disk
    refused(folder, FormatError, "bundle-size", "expected at most 8 GiB, found 8")


def test_weights_of_another_hash_are_refused(model, tmp_path):
    tensors = load_file(model / "weights.safetensors")
    other = save({name: tensor + 1 for name, tensor in tensors.items()})
    source = make_zip(tmp_path / "other.zip", model, replace={"weights.safetensors": other})
    refused(source, FormatError, "weights-hash", "expected the sha256 on the card, [0-9a-f]{12}")


def with_weights(path: Path, model: Path, weights: bytes) -> Path:
    """Whoever exchanges the weights can exchange the hash too."""
    card = card_of(model, weights_sha256=hashlib.sha256(weights).hexdigest())
    return make_zip(path, model, replace={"weights.safetensors": weights, "model.json": card})


def test_a_pickle_in_the_place_of_safetensors_is_not_opened(model, tmp_path):
    source = with_weights(tmp_path / "pickle.zip", model, BOMB)
    refused(source, FormatError, "bundle-pickle", "expected safetensors, found a pickle")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:  # as torch.save writes
        archive.writestr("archive/data.pkl", BOMB)
    source = with_weights(tmp_path / "torch.zip", model, buffer.getvalue())
    refused(source, FormatError, "bundle-pickle", "expected safetensors, found a pickle")
    source = with_weights(tmp_path / "text.zip", model, b"anything else at all")
    refused(source, FormatError, "bundle-pickle", "expected safetensors, found something else")


def test_weights_of_another_network_are_refused(model, tmp_path):
    tensors = load_file(model / "weights.safetensors")
    first = next(iter(tensors))
    fewer = save({name: tensor for name, tensor in tensors.items() if name != first})
    source = with_weights(tmp_path / "fewer.zip", model, fewer)
    refused(source, FormatError, "weights-mismatch", "found tensors that do not fit it")
    cut = (model / "weights.safetensors").read_bytes()[:-100]
    source = with_weights(tmp_path / "cut.zip", model, cut)
    refused(source, FormatError, "weights-mismatch", "found a damaged file")
    tensors[first] = tensors[first] / 0
    source = with_weights(tmp_path / "nan.zip", model, save(tensors))
    refused(source, FormatError, "weights-not-finite", r"nan.zip: weights.*NaN or infinity in")


def test_a_card_of_a_network_far_larger_than_its_weights_takes_no_memory(model, tmp_path):
    network = json.loads((model / "model.json").read_text())["network"]
    network["settings"]["widths"] = [1 << 20, 1 << 21]  # terabytes
    card = card_of(model, network=network)
    source = make_zip(tmp_path / "huge.zip", model, replace={"model.json": card})
    refused(source, FormatError, "weights-mismatch", "found tensors that do not fit it")


def test_a_card_cannot_name_an_encoder_that_would_be_fetched(model, tmp_path):
    for encoder in ("hf-hub:someone/something", "local-dir:something"):
        network = {"name": "macmd", "settings": {"preset": "tiny", "encoder": encoder}}
        card = card_of(model, network=network)
        source = make_zip(tmp_path / "fetch.zip", model, replace={"model.json": card})
        refused(source, FormatError, "encoder-name", "choose a network of timm")


def test_a_bundle_without_safetensors_is_refused_with_the_reason(model, tmp_path):
    source = make_zip(
        tmp_path / "pt.zip",
        model,
        [("tiny/models/model.pt", BOMB)],
        replace={"weights.safetensors": None},
    )
    refused(source, FormatError, "bundle-weights", "found only models/model.pt, a pickle")
    source = make_zip(tmp_path / "no.zip", model, replace={"weights.safetensors": None})
    refused(source, FormatError, "bundle-weights", "found no weights")


def test_a_bundle_of_another_program_is_refused(tmp_path):
    for name, words in (("configs/metadata.json", "a MONAI bundle of another"), ("a", "none")):
        source = tmp_path / "other.zip"
        with zipfile.ZipFile(source, "w") as archive:
            archive.writestr(f"other/{name}", "{}")
        refused(source, FormatError, "bundle-card-missing", f"found {words}")


def test_expressions_in_the_card_or_the_metadata_are_refused(model, tmp_path):
    evil = "$__import__('pathlib').Path('executed').write_text('yes')"
    card = card_of(model, description=evil)
    source = make_zip(tmp_path / "card.zip", model, replace={"model.json": card})
    refused(source, FormatError, "bundle-expression", r"model.json: expected data, found an expr")
    metadata = json.dumps({"network_data_format": {"outputs": [evil]}})
    source = make_zip(tmp_path / "meta.zip", model, [("tiny/configs/metadata.json", metadata)])
    refused(source, FormatError, "bundle-expression", r"metadata.json: expected data, found an")


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ({"a": ["plain", 5, None, {"b": "1 $, 2 @ 3 %"}]}, None),
        ({"a": ["plain", {"b": "$x"}]}, "'$x'"),
        (["  @x"], "'  @x'"),
        (["%file.json"], "'%file.json'"),
        ({"_target_": "os.system"}, "the key '_target_'"),
        ({"$a": 1}, "the key '$a'"),
        ("$" + 60 * "x", repr("$" + 39 * "x" + "...")),
    ],
)
def test_what_monai_would_evaluate_is_found_wherever_it_is(content, found):
    assert first_expression(content) == found


@pytest.mark.parametrize("content", [b"no json", b"[" * 100_000, b"\xff\xfe"])
def test_a_card_that_is_no_json_is_refused(model, tmp_path, content):
    source = make_zip(tmp_path / "card.zip", model, replace={"model.json": content})
    refused(source, FormatError, "model-card", "model.json: expected JSON, found something else")


def test_a_card_that_does_not_follow_the_schema_is_refused(model, tmp_path):
    card = card_of(model, surprise=1)
    source = make_zip(tmp_path / "card.zip", model, replace={"model.json": card})
    refused(source, FormatError, "model-card", "found surprise: Extra inputs")
    card = card_of(model, name="../../up")
    source = make_zip(tmp_path / "up.zip", model, replace={"model.json": card})
    refused(source, FormatError, "model-card", "found name: String should match")


def test_a_zip_that_is_cut_off_or_damaged_is_refused(model, tmp_path):
    whole = make_zip(tmp_path / "whole.zip", model).read_bytes()
    for number, size in enumerate((0, 10, len(whole) // 2, len(whole) - 5)):
        source = tmp_path / f"cut{number}.zip"
        source.write_bytes(whole[:size])
        refused(source, FormatError, "bundle-zip", "found one that is cut off or damaged")
    damaged = bytearray(whole)
    for at in range(3000, 3400):  # among the weights
        damaged[at] ^= 255
    source = tmp_path / "damaged.zip"
    source.write_bytes(damaged)
    refused(source, FormatError, "bundle-zip", "found one that is cut off or damaged")


def test_a_model_nested_twice_is_refused(model, tmp_path):
    source = make_zip(tmp_path / "deep.zip", model, top="a/b/")
    refused(source, FormatError, "bundle-nested", "found one further down")
    source = make_zip(tmp_path / "two.zip", model, [("other/model.json", "{}")])
    refused(source, FormatError, "bundle-nested", "found 2 of them")
    inner = make_zip(tmp_path / "inner.zip", model)
    source = tmp_path / "outer.zip"
    with zipfile.ZipFile(source, "w") as archive:
        archive.write(inner, "tiny/tiny.zip")
    refused(source, FormatError, "bundle-nested", "found a zip within the zip")


def test_a_source_or_a_name_that_cannot_be_meant_is_refused(model, tmp_path):
    refused(tmp_path / "absent", ConfigError, "bundle-missing", "found no such file or folder")
    for name in ("../up", "UPPER", "", "a\n", "a" * 65):
        refused(model, ConfigError, "bundle-name", "--name: expected 1 to 64 of", name=name)


def test_nothing_is_replaced_unless_it_is_a_model_and_wished(model, tmp_path):
    import_model(model)
    refused(model, ResourceError, "output-exists", "give --overwrite")
    before = (Path("models/tiny") / "weights.safetensors").stat().st_ino
    (Path("models/tiny") / "old.txt").touch()
    import_model(model, overwrite=True)
    assert (Path("models/tiny") / "weights.safetensors").stat().st_ino != before
    assert not (Path("models/tiny") / "old.txt").exists()
    assert [path.name for path in Path("models").iterdir()] == ["tiny"]

    precious = Path("precious")
    precious.mkdir()
    (precious / "thesis.txt").touch()
    for target, words in (
        (precious, "it holds files but no model.json"),
        (precious / "thesis.txt", "only a folder can be replaced"),
    ):
        refused(model, ResourceError, "output-exists", words, out=target, overwrite=True)
    Path("link").symlink_to(Path("models/tiny"))
    refused(
        model, ResourceError, "output-exists", "only a folder", out=Path("link"), overwrite=True
    )
    assert (precious / "thesis.txt").exists()


def test_what_is_refused_leaves_the_earlier_model_as_it_was(model, tmp_path):
    import_model(model)
    before = (Path("models/tiny") / "model.json").read_bytes()
    source = with_weights(tmp_path / "pickle.zip", model, BOMB)
    refused(source, FormatError, "bundle-pickle", "found a pickle", overwrite=True)
    assert (Path("models/tiny") / "model.json").read_bytes() == before
    load_model(Path("models/tiny"))


@pytest.mark.skipif(os.geteuid() == 0, reason="the administrator may read everything")
def test_a_source_without_permission_is_named(model, tmp_path):
    source = make_zip(tmp_path / "locked.zip", model)
    source.chmod(0)
    refused(source, ConfigError, "input-unreadable", "found no permission")
    folder = tmp_path / "locked"
    shutil.copytree(model, folder)
    (folder / "weights.safetensors").chmod(0)
    refused(folder, ConfigError, "input-unreadable", "found no permission")


def test_files_of_tensors_are_read_as_tensors_alone_by_a_torch_that_keeps_to_it():
    """Before torch 2.10 ``weights_only`` could be got round (CVE-2026-24747)."""
    repository = Path(incoming.__file__).resolve().parents[2]
    sources = [*(repository / "medseg").rglob("*.py"), *(repository / "pipelines").rglob("*.py")]
    calls = [
        call
        for path in sources
        for call in re.findall(r"torch\.load\([^)]*\)", path.read_text(encoding="utf-8"))
    ]
    assert calls
    assert all("weights_only=True" in call for call in calls)
    project = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))
    (needed,) = [
        requirement
        for requirement in map(Requirement, project["project"]["dependencies"])
        if requirement.name == "torch"
    ]
    assert not needed.specifier.contains("2.9.1")
    assert needed.specifier.contains("2.10.0")


def test_a_process_killed_while_it_takes_a_model_in_leaves_no_half_one(model, tmp_path):
    """Killed in the middle of the checks, when the files lie under a temporary name."""
    program = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from medseg.models import incoming\n"
        "incoming._check_weights = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "incoming.import_model(Path(sys.argv[1]))\n"
    )
    repository = Path(incoming.__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", program, str(model)],
        check=False,
        env={**os.environ, "PYTHONPATH": str(repository)},
    )
    assert done.returncode == -signal.SIGKILL
    assert not Path("models/tiny").exists()
    import_model(model)
    load_model(Path("models/tiny"))
