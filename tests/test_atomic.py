import contextlib
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from medseg.atomic import (
    atomic_folder,
    atomic_path,
    check_replaceable,
    scratch_folder,
    write_bytes,
    write_text,
)
from medseg.errors import FormatError, ResourceError


def names_in(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_the_file_appears_only_when_the_block_ends(tmp_path):
    target = tmp_path / "result.nii.gz"
    with atomic_path(target) as temporary:
        temporary.write_bytes(b"whole")
        assert not target.exists()
        assert temporary.parent == tmp_path
        assert temporary.name.endswith(".tmp.nii.gz")
        assert "result" not in temporary.name
    assert target.read_bytes() == b"whole"
    assert names_in(tmp_path) == ["result.nii.gz"]


def test_only_the_last_suffix_is_kept_where_there_is_no_gz(tmp_path):
    with atomic_path(tmp_path / "name.of.patient.nrrd") as temporary:
        temporary.write_bytes(b"")
        assert temporary.name.endswith(".tmp.nrrd")
        assert "patient" not in temporary.name


@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path, kind):
    target = tmp_path / "kept.txt"
    write_text(target, "old, zażółć")
    with pytest.raises(kind), atomic_path(target) as temporary:  # noqa: PT012 - the block fails
        temporary.write_text("half")
        raise kind
    assert target.read_text("utf-8") == "old, zażółć"
    assert names_in(tmp_path) == ["kept.txt"]


def test_our_own_errors_pass_unchanged(tmp_path):
    error = FormatError("x", expected="a", found="b", remedy="c", code="verify-labels")
    with pytest.raises(FormatError) as caught, atomic_path(tmp_path / "a") as temporary:  # noqa: PT012
        temporary.write_bytes(b"half")
        raise error
    assert caught.value is error
    assert names_in(tmp_path) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the always-full device of Linux")
def test_a_full_disk_is_named_and_nothing_is_left(tmp_path):
    """The device refuses the write itself; the error number is the system's own."""
    with (  # noqa: PT012 - the last write of the block fails
        pytest.raises(ResourceError, match="free space, found a full disk") as caught,
        atomic_path(tmp_path / "a.bin") as temporary,
        Path("/dev/full").open("wb") as full,
    ):
        temporary.write_bytes(b"half")
        full.write(b"x" * 100_000)
    assert caught.value.code == "disk-full"
    assert isinstance(caught.value.__cause__, OSError)
    assert names_in(tmp_path) == []


def test_a_write_cut_off_by_the_system_leaves_nothing(tmp_path):
    script = textwrap.dedent("""
        import resource, sys
        from pathlib import Path
        from medseg.atomic import write_bytes
        from medseg.errors import ResourceError
        target = Path(sys.argv[1])
        write_bytes(target, b"old")
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            write_bytes(target, bytes(100_000))
        except ResourceError as error:
            sys.exit(f"{error.code}: {error.found}")
    """)
    target = tmp_path / "a.bin"
    done = subprocess.run(
        [sys.executable, "-c", script, str(target)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr.strip()) == (1, "disk-full: a limit on the size of files")
    assert target.read_bytes() == b"old"
    assert names_in(tmp_path) == ["a.bin"]


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(ResourceError, match="an existing folder, found no such folder") as caught:
        write_bytes(tmp_path / "absent" / "a.bin", b"")
    assert caught.value.code == "output-unwritable"


def test_a_file_in_place_of_the_folder_is_named(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ResourceError, match="a file in its place"):
        write_bytes(tmp_path / "file" / "a.bin", b"")


def test_a_folder_in_place_of_the_file_is_named(tmp_path):
    (tmp_path / "taken").mkdir()
    with pytest.raises(ResourceError, match="a folder of that name"):
        write_bytes(tmp_path / "taken", b"content")
    assert names_in(tmp_path) == ["taken"]


@pytest.mark.skipif(os.geteuid() == 0, reason="the administrator may write everywhere")
def test_a_folder_without_permission_is_named(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(ResourceError, match="no permission to write"):
            write_bytes(tmp_path / "a.bin", b"")
    finally:
        tmp_path.chmod(0o700)


def test_an_error_of_another_kind_gives_the_systems_words(tmp_path):
    with (
        pytest.raises(ResourceError, match="check the disk") as caught,
        atomic_path(tmp_path / "a.bin"),
    ):
        raise OSError(5, "Input/output error")
    assert caught.value.found == "Input/output error"
    assert caught.value.code == "output-unwritable"


@pytest.mark.parametrize("fails", [False, True])
def test_a_scratch_folder_goes_with_its_block(tmp_path, fails):
    with contextlib.suppress(KeyError), scratch_folder(tmp_path) as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "a.bin").write_bytes(b"content")
        assert folder.parent == tmp_path
        if fails:
            raise KeyError
    assert names_in(tmp_path) == []


def test_a_scratch_folder_needs_a_folder_to_lie_in(tmp_path):
    with (
        pytest.raises(ResourceError, match="absent: expected an existing folder"),
        scratch_folder(tmp_path / "absent"),
    ):
        raise AssertionError
    assert names_in(tmp_path) == []


def test_a_folder_appears_only_when_the_block_ends(tmp_path):
    target = tmp_path / "series"
    with atomic_folder(target) as temporary:
        (temporary / "sub").mkdir()
        (temporary / "sub" / "a").write_bytes(b"whole")
        assert not target.exists()
        assert temporary.parent == tmp_path
    assert (target / "sub" / "a").read_bytes() == b"whole"
    assert names_in(tmp_path) == ["series"]


@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt])
def test_a_failure_leaves_no_folder(tmp_path, kind):
    with pytest.raises(kind), atomic_folder(tmp_path / "series") as temporary:  # noqa: PT012
        (temporary / "a").write_bytes(b"half")
        raise kind
    assert names_in(tmp_path) == []


def test_our_own_errors_pass_through_a_folder_too(tmp_path):
    error = FormatError("x", expected="a", found="b", remedy="c")
    with pytest.raises(FormatError) as caught, atomic_folder(tmp_path / "series"):
        raise error
    assert caught.value is error
    assert names_in(tmp_path) == []


def test_a_folder_that_exists_is_not_overwritten(tmp_path):
    (tmp_path / "series").mkdir()
    with (
        pytest.raises(ResourceError, match="a name that is still free") as caught,
        atomic_folder(tmp_path / "series"),
    ):
        pass
    assert caught.value.code == "output-exists"


def test_a_folder_in_a_missing_one_is_named(tmp_path):
    with (
        pytest.raises(ResourceError, match="an existing folder, found no such folder") as caught,
        atomic_folder(tmp_path / "absent" / "series"),
    ):
        pass
    assert caught.value.code == "output-unwritable"


def test_a_folder_is_replaced_whole_where_that_is_wished(tmp_path):
    target = tmp_path / "model"
    target.mkdir()
    (target / "old").touch()
    with atomic_folder(target, replace=True) as temporary:
        (temporary / "new").touch()
        assert names_in(target) == ["old"]
    assert names_in(target) == ["new"]
    assert names_in(tmp_path) == ["model"]
    with pytest.raises(KeyError), atomic_folder(target, replace=True) as temporary:  # noqa: PT012
        (temporary / "newer").touch()
        raise KeyError
    assert names_in(target) == ["new"]
    assert names_in(tmp_path) == ["model"]


def test_an_old_folder_comes_back_if_the_new_one_cannot_take_its_place(tmp_path):
    target = tmp_path / "model"
    target.mkdir()
    (target / "old").touch()
    with (
        pytest.raises(ResourceError, match="no such folder"),
        atomic_folder(target, replace=True) as temporary,
    ):
        temporary.rename(tmp_path / "elsewhere")
    assert names_in(target) == ["old"]
    assert names_in(tmp_path) == ["elsewhere", "model"]


def test_missing_folders_above_are_made_where_that_is_wished_and_taken_away_again(tmp_path):
    target = tmp_path / "a" / "b" / "model"
    with pytest.raises(KeyError), atomic_folder(target, parents=True):
        raise KeyError
    assert names_in(tmp_path) == []
    with atomic_folder(target, parents=True):
        pass
    assert target.is_dir()


def test_only_folders_of_a_kind_may_be_replaced(tmp_path):
    check_replaceable(tmp_path / "absent", "mark", overwrite=False)
    empty, full, marked = (tmp_path / name for name in ("empty", "full", "marked"))
    for folder in (empty, full, marked):
        folder.mkdir()
    (full / "other").touch()
    (marked / "mark").touch()
    link = tmp_path / "link"
    link.symlink_to(marked)
    check_replaceable(empty, "mark", overwrite=True)
    check_replaceable(marked, "mark", overwrite=True)
    for target, overwrite, words in (
        (empty, False, "give --overwrite"),
        (full, True, "it holds files but no mark, so it is left alone"),
        (full / "other", True, "only a folder can be replaced"),
        (link, True, "only a folder can be replaced"),
    ):
        with pytest.raises(ResourceError, match=words) as caught:
            check_replaceable(target, "mark", overwrite=overwrite)
        assert caught.value.code == "output-exists"
