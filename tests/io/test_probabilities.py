import itertools
import math
import shutil
import signal
import subprocess
import sys
import textwrap

import h5py
import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg import NOTICE, __version__
from medseg.core import Grid, LabelScheme
from medseg.errors import ConfigError, FormatError, MedsegError, ResourceError, ShapeError
from medseg.io.nifti import read_nifti
from medseg.io.nifti_header import GEOMETRY_FIELDS
from medseg.io.probabilities import (
    BUFFER_BYTES,
    CHUNK_BYTES,
    ProbabilityClass,
    ProbabilityWriter,
    buffer_bytes,
    chunk_extents,
    probabilities_to_nifti,
    read_probabilities,
    scheme_classes,
)
from tests.grids import grids, rotation

OBLIQUE = np.eye(4)
OBLIQUE[:3, :3] = rotation((1.0, 0.1, -0.05, 0.2)) * (0.7, 0.9, 3.0)
OBLIQUE[:3, 3] = (-80.0, 40.0, 12.5)
GRID = Grid((9, 10, 11), OBLIQUE)
SCHEME = LabelScheme.plain("organs", {1: "left kidney", 7: "śledziona"})
CLASSES = scheme_classes(SCHEME)


def softmax(shape_nijk, seed=0) -> np.ndarray:
    """Probabilities that sum to 1, with exact zeros and ones among them."""
    logits = np.random.default_rng(seed).normal(0.0, 40.0, shape_nijk)
    powers = np.exp(logits - logits.max(axis=0))
    return (powers / powers.sum(axis=0)).astype(np.float32)


def write(path, values_nijk, *, grid=GRID, classes=CLASSES, axis=2, cuts=(), **options):
    """Write in slabs that end at ``cuts``."""
    with ProbabilityWriter(path, grid, classes, **options) as writer:
        ends = [0, *cuts, grid.shape_ijk[axis]]
        for first, last in itertools.pairwise(ends):
            part = [slice(None)] * 4
            part[1 + axis] = slice(first, last)
            writer.write_slab(axis, first, values_nijk[tuple(part)])
    return path


def names_in(folder) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


# -- writing and reading back


@settings(max_examples=40, deadline=None)
@given(
    grids(largest=40),
    st.integers(0, 2),
    st.sampled_from(["uint8", "float16"]),
    st.sampled_from(["gzip", "lzf"]),
    st.data(),
)
def test_any_slabs_along_any_axis_come_back_as_near_as_the_encoding_allows(
    tmp_path_factory, grid, axis, encoding, compression, data
):
    path = tmp_path_factory.mktemp("h5") / "case_probseg.h5"
    values = softmax((3, *grid.shape_ijk))
    inner = range(1, grid.shape_ijk[axis])
    cuts = sorted(data.draw(st.sets(st.sampled_from(inner)))) if inner else []
    options = {"encoding": encoding, "compression": compression}
    write(path, values, grid=grid, axis=axis, cuts=cuts, **options)
    file = read_probabilities(path)
    assert file.grid == grid
    assert file.shape_nijk == values.shape
    everything = file.read_box((slice(None), slice(None), slice(None)))
    assert everything.dtype == np.float32
    if encoding == "uint8":
        assert np.abs(everything - values).max() <= 0.5 / 255 + 1e-7
        assert (everything[values == 1.0] == 1.0).all()
    else:
        np.testing.assert_array_equal(everything, values.astype(np.float16))
    assert (everything[values == 0.0] == 0.0).all()
    assert names_in(path.parent) == [path.name]


def test_planes_of_several_megabytes_are_rounded_in_blocks_and_come_back(tmp_path):
    grid = Grid((900, 7, 700), np.eye(4))
    classes = [ProbabilityClass(1, "tumour", (255, 0, 0))]
    ramp = np.linspace(0.0, 1.0, math.prod(grid.shape_ijk), dtype=np.float32)
    values = ramp.reshape((1, *grid.shape_ijk))
    path = tmp_path / "a.h5"
    write(path, values, grid=grid, classes=classes, axis=1, cuts=[4], compression="lzf")
    assert np.abs(read_probabilities(path).read_class(0) - values[0]).max() <= 0.5 / 255 + 1e-7


def test_a_class_and_a_box_are_read_alone(tmp_path):
    values = softmax((3, *GRID.shape_ijk))
    file = read_probabilities(write(tmp_path / "a_probseg.h5", values, encoding="float16"))
    box = (slice(2, 5), slice(None), slice(7, 8))
    half = values.astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(file.read_class("śledziona"), half[2])
    np.testing.assert_array_equal(file.read_class(1, box), half[1][box])
    np.testing.assert_array_equal(file.read_box(box), half[:, *box])
    assert file.read_stored(0).dtype == np.float16


def test_any_hdf5_reader_finds_what_the_numbers_mean(tmp_path):
    values = softmax((3, *GRID.shape_ijk))
    path = tmp_path / "DOE_JOHN_probseg.h5"
    write(path, values, model_name="tiny", model_sha256="ab" * 32)
    with h5py.File(path) as file:
        assert list(file) == ["probabilities"]
        assert dict(file.attrs) == {}
        dataset = file["probabilities"]
        stated = dict(dataset.attrs)
        np.testing.assert_allclose(dataset[:] * stated["scale"], values, atol=0.5 / 255 + 1e-7)
        assert dataset.compression == "gzip"
        assert dataset.shuffle
        assert dataset.fletcher32
    np.testing.assert_array_equal(stated.pop("affine_ras"), OBLIQUE)
    np.testing.assert_allclose(stated.pop("spacing_mm"), (0.7, 0.9, 3.0))
    assert stated.pop("label_values").tolist() == [0, 1, 7]
    names = [name.decode() for name in stated.pop("label_names")]
    assert names == ["background", "left kidney", "śledziona"]
    assert stated.pop("label_rgb").tolist() == [[0, 0, 0], *(list(x.rgb) for x in SCHEME.labels)]
    assert stated == {
        "format": b"medseg-probabilities",
        "format_version": 1,
        "axes": b"class i j k",
        "scale": 1 / 255,
        "model_name": b"tiny",
        "model_sha256": b"ab" * 32,
        "medseg_version": __version__.encode(),
        "notice": NOTICE.encode(),
    }
    content = path.read_bytes()
    assert b"DOE" not in content
    assert str(tmp_path).encode() not in content


def test_a_reader_knows_the_model_or_that_none_is_stated(tmp_path):
    values = softmax((3, *GRID.shape_ijk))
    file = read_probabilities(write(tmp_path / "a.h5", values, model_name="tiny"))
    assert (file.model_name, file.model_sha256, file.medseg_version) == ("tiny", None, __version__)
    assert file.classes == CLASSES
    assert file.names == ("background", "left kidney", "śledziona")


def test_hundreds_of_long_names_fit_into_the_attributes(tmp_path):
    classes = [ProbabilityClass(n, f"{n:04d}" + "ż" * 60, (n % 256, 0, 0)) for n in range(700)]
    values = np.full((700, 2, 2, 2), 0.5, np.float32)
    path = write(tmp_path / "a.h5", values, grid=Grid((2, 2, 2), np.eye(4)), classes=classes)
    assert read_probabilities(path).classes == tuple(classes)


def test_rounding_just_outside_of_0_to_1_is_clipped(tmp_path):
    values = np.zeros((3, *GRID.shape_ijk), np.float32)
    values[0], values[1] = 1.0005, -0.0005
    file = read_probabilities(write(tmp_path / "a.h5", values))
    assert (file.read_stored(0) == 255).all()
    assert (file.read_stored(1) == 0).all()


# -- chunks and memory


@given(
    st.integers(1, 200),
    st.tuples(*(st.integers(1, 2000) for _ in range(3))),
    st.integers(0, 2),
    st.sampled_from(["uint8", "float16"]),
)
def test_chunks_and_buffer_keep_to_their_bounds(count, shape_ijk, axis, encoding):
    chunk = chunk_extents(count, shape_ijk, axis, encoding)
    itemsize = np.dtype(encoding).itemsize
    assert chunk[0] == 1
    assert all(1 <= part <= extent for part, extent in zip(chunk[1:], shape_ijk, strict=True))
    assert math.prod(chunk) * itemsize <= CHUNK_BYTES
    plane = count * math.prod(shape_ijk) // shape_ijk[axis] * itemsize
    held = buffer_bytes(count, shape_ijk, axis, encoding)
    assert held <= max(BUFFER_BYTES, plane)
    assert held % plane == 0


def test_a_common_volume_is_cut_as_worked_out_on_paper():
    # 14 planes of 512 x 512 bytes are 3.5 MiB; 9 fit into 32 MiB; 2^20 / 9 = 116508 = 341 x 341.67
    # so that 512 is cut into two parts of 256 either way
    assert chunk_extents(14, (512, 512, 800), 2, "uint8") == (1, 256, 256, 9)
    assert chunk_extents(14, (800, 512, 512), 0, "uint8") == (1, 9, 256, 256)
    assert buffer_bytes(14, (512, 512, 800), 2, "uint8") == 14 * 512 * 512 * 9


def test_chunks_are_thin_where_many_classes_would_fill_the_buffer():
    assert chunk_extents(117, (512, 512, 800), 2, "uint8")[3] == 1
    assert chunk_extents(2, (64, 64, 100), 2, "uint8") == (1, 64, 64, 16)


def test_each_chunk_is_compressed_once_and_its_first_bytes_are_final(tmp_path):
    """Rewritten chunks of another compressed size would leave holes in the file."""
    values = softmax((3, 40, 40, 40))
    grid = Grid((40, 40, 40), np.eye(4))
    thin = write(tmp_path / "thin.h5", values, grid=grid, cuts=range(1, 40))
    whole = write(tmp_path / "whole.h5", values, grid=grid)
    assert thin.read_bytes() == whole.read_bytes()
    with h5py.File(thin) as file:
        dataset = file["probabilities"]
        stored = dataset.id.get_storage_size()
        assert dataset.id.get_num_chunks() == 3 * 3
    assert thin.stat().st_size - stored < 8192


def test_memory_does_not_grow_with_the_depth(tmp_path):
    script = textwrap.dedent("""
        import resource, sys
        from pathlib import Path
        import numpy as np
        from medseg.core import Grid
        from medseg.io.probabilities import ProbabilityClass, ProbabilityWriter
        def run(depth):
            classes = [ProbabilityClass(n, str(n), (0, 0, 0)) for n in range(4)]
            slab = np.random.default_rng(0).random((4, 128, 128, 8), dtype=np.float32)
            grid = Grid((128, 128, depth), np.eye(4))
            with ProbabilityWriter(Path(sys.argv[1]), grid, classes, compression="lzf") as writer:
                for first in range(0, depth, 8):
                    writer.write_slab(2, first, slab)
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        before = run(32)
        print((run(1600) - before) * 1024)
    """)
    path = tmp_path / "a.h5"
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True
    )
    assert path.stat().st_size > 60_000_000
    assert int(done.stdout) < 8 << 20


def test_io_of_probabilities_does_not_load_torch():
    script = "import sys, medseg.io.probabilities; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


# -- refusals of the writer


def test_other_names_and_settings_are_refused(tmp_path):
    with pytest.raises(FormatError, match=r"ends in .h5, found the ending .nii") as caught:
        ProbabilityWriter(tmp_path / "a.nii", GRID, CLASSES)
    assert caught.value.code == "output-suffix"
    with pytest.raises(ConfigError, match=r"float16, uint8 \(nearest: uint8\)") as caught:
        ProbabilityWriter(tmp_path / "a.h5", GRID, CLASSES, encoding="int8")
    assert caught.value.code == "probability-encoding"
    with pytest.raises(ConfigError, match="one of gzip, lzf"):
        ProbabilityWriter(tmp_path / "a.h5", GRID, CLASSES, compression="zip")
    with pytest.raises(ConfigError, match="at least one class") as caught:
        ProbabilityWriter(tmp_path / "a.h5", GRID, ())
    assert caught.value.code == "probability-classes"


@pytest.mark.parametrize(
    ("slabs", "words", "code"),
    [
        ([(3, 0, (0, 11))], "along axis 0, 1 or 2, found axis 3", "slab-order"),
        ([(2, 1, (1, 11))], "begins at plane 0, found one that begins at 1", "slab-order"),
        ([(2, 0, (0, 5)), (2, 6, (6, 11))], "begins at plane 5, found one that", "slab-order"),
        ([(2, 0, (0, 5)), (2, 0, (0, 5))], "begins at plane 5, found one that", "slab-order"),
        ([(2, 0, (0, 5)), (1, 5, (5, 11))], "along axis 2, as before, found axis 1", "slab-order"),
        ([(1, 0, (0, 5))], r"shape \(3, 9, 1 to 10, 11\), found .* \(3, 9, 10, 5\)", "slab-shape"),
        ([(2, 0, (0, 0))], r"1 to 11\), found .* \(3, 9, 10, 0\)", "slab-shape"),
        ([(2, 0, (0, 5)), (2, 5, (4, 11))], r"10, 1 to 6\), found .* 10, 7\)", "slab-shape"),
        ([(2, 0, (0, 5)), (2, 5, (5, 10))], "fill the volume, found 10 of 11", "slabs-missing"),
        ([], "fill the volume, found none", "slabs-missing"),
    ],
)
def test_slabs_that_do_not_fill_the_volume_in_order_are_refused(tmp_path, slabs, words, code):
    values = softmax((3, *GRID.shape_ijk))
    with (  # noqa: PT012 - which line fails is the parameter's matter
        pytest.raises(ShapeError, match=words) as caught,
        ProbabilityWriter(tmp_path / "a.h5", GRID, CLASSES) as writer,
    ):
        for axis, first, (start, stop) in slabs:
            writer.write_slab(axis, first, values[..., start:stop])
    assert caught.value.code == code
    assert names_in(tmp_path) == []


@pytest.mark.parametrize(
    "slab", [np.zeros((2, *GRID.shape_ijk), np.float32), np.zeros((3, *GRID.shape_ijk), np.uint8)]
)
def test_other_classes_and_integers_are_refused(tmp_path, slab):
    with (
        pytest.raises(ShapeError, match=r"floats of shape \(3, 9, 10, 1 to 11\)") as caught,
        ProbabilityWriter(tmp_path / "a.h5", GRID, CLASSES) as writer,
    ):
        writer.write_slab(2, 0, slab)
    assert caught.value.code == "slab-shape"


def test_a_slab_outside_of_the_block_is_refused(tmp_path):
    writer = ProbabilityWriter(tmp_path / "a.h5", GRID, CLASSES)
    with pytest.raises(ShapeError, match="inside the block"):
        writer.write_slab(2, 0, softmax((3, *GRID.shape_ijk)))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -0.01, 1.01])
def test_values_that_are_no_probabilities_are_refused_and_leave_nothing(tmp_path, bad):
    values = softmax((3, *GRID.shape_ijk))
    values[1, 2, 3, 4] = bad
    with pytest.raises(FormatError, match=r"from 0 to 1, found .* in planes") as caught:
        write(tmp_path / "a.h5", values)
    assert caught.value.code == "probability-values"
    assert names_in(tmp_path) == []


# -- what stops a run


@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("planes", [0, 3, 11])
def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path, kind, planes):
    target = tmp_path / "a.h5"
    target.write_bytes(b"old")
    values = softmax((3, *GRID.shape_ijk))
    with (  # noqa: PT012 - the block fails
        pytest.raises(kind),
        ProbabilityWriter(target, GRID, CLASSES) as writer,
    ):
        if planes:
            writer.write_slab(2, 0, values[..., :planes])
        raise kind
    assert target.read_bytes() == b"old"
    assert names_in(tmp_path) == ["a.h5"]


def interrupt_soon(inside):
    """Raise `KeyboardInterrupt` in about half a second, while a function of that name is at work.

    Python drops what is raised in the callback of a weak reference or in a destructor, and either
    runs wherever it likes; the interrupt is put off by some milliseconds there.
    """

    def interrupt(_signal, frame):
        dropping = frame.f_code.co_name in ("remove", "__del__", "_remove")
        while frame is not None and frame.f_code.co_name != inside:
            frame = frame.f_back
        if dropping or frame is None:
            signal.setitimer(signal.ITIMER_REAL, 0.003)
        else:
            raise KeyboardInterrupt

    signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.5)


@pytest.fixture
def _alarm():
    before = signal.getsignal(signal.SIGALRM)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0.0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.usefixtures("_alarm")
def test_an_interrupt_while_hdf5_writes_leaves_nothing(tmp_path):
    grid = Grid((64, 64, 4000), np.eye(4))
    slab = np.random.default_rng(0).random((3, 64, 64, 16), dtype=np.float32)
    interrupt_soon(inside="write_slab")
    with (  # noqa: PT012 - the block is interrupted
        pytest.raises(KeyboardInterrupt),
        ProbabilityWriter(tmp_path / "a.h5", grid, CLASSES) as writer,
    ):
        for first in range(0, 4000, 16):
            writer.write_slab(2, first, slab)
        raise AssertionError("all was written before the interrupt")
    assert names_in(tmp_path) == []


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(ResourceError, match="an existing folder, found no such folder") as caught:
        write(tmp_path / "absent" / "a.h5", softmax((3, *GRID.shape_ijk)))
    assert caught.value.code == "output-unwritable"


FILL = textwrap.dedent("""
    import resource, sys
    from pathlib import Path
    import numpy as np
    from medseg.core import Grid
    from medseg.errors import ResourceError
    from medseg.io.probabilities import ProbabilityClass, ProbabilityWriter
    target = Path(sys.argv[1])
    classes = [ProbabilityClass(n, str(n), (0, 0, 0)) for n in range(3)]
    values = np.random.default_rng(0).random((3, 32, 32, 70), dtype=np.float32)
    def attempt():
        with ProbabilityWriter(target, Grid((32, 32, 70), np.eye(4)), classes) as writer:
            for first in range(0, 70, 7):
                writer.write_slab(2, first, values[..., first : first + 7])
""")


def test_a_limit_met_anywhere_leaves_nothing_and_the_process_ends_well(tmp_path):
    """The system itself refuses the write, early, in the middle and as the file is closed."""
    script = FILL + textwrap.dedent("""
        attempt()
        size = target.stat().st_size
        target.unlink()
        places = [0, 1, 100, 1000, *range(5000, size, 9973), *range(size - 600, size, 37), size - 1]
        for place in places:
            resource.setrlimit(resource.RLIMIT_FSIZE, (place, resource.RLIM_INFINITY))
            try:
                attempt()
            except ResourceError as error:
                assert error.code == "disk-full", error
                assert error.found == "a limit on the size of files", error
            else:
                raise SystemExit(f"no error at {place} of {size}")
            assert not list(target.parent.iterdir())
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
        attempt()
        print(len(places))
    """)
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "a.h5")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert int(done.stdout) > 30
    assert names_in(tmp_path) == ["a.h5"]


def small_disk_works() -> bool:
    if shutil.which("unshare") is None:
        return False
    command = ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not small_disk_works(), reason="needs unshare and leave to mount a tmpfs")
@pytest.mark.parametrize("kilobytes", [4, 64, 128])
def test_a_full_disk_is_named_and_left_empty(tmp_path, kilobytes):
    """The disk is a tmpfs in a mount namespace of its own, gone with the process."""
    script = FILL + textwrap.dedent("""
        try:
            attempt()
        except ResourceError as error:
            assert not list(target.parent.iterdir())
            sys.exit(f"{error.code}: {error.found}")
    """)
    mount = f'mount -t tmpfs -o size={kilobytes}k tmpfs "$1" && exec "$2" -c "$3" "$1/a.h5"'
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", mount, "sh", str(tmp_path), sys.executable, script],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr.strip()) == (1, "disk-full: a full disk")


# -- refusals of the reader


def test_a_class_or_box_that_does_not_exist_is_refused(tmp_path):
    file = read_probabilities(write(tmp_path / "a.h5", softmax((3, *GRID.shape_ijk))))
    with pytest.raises(ConfigError, match="nearest: left kidney") as caught:
        file.read_class("left kidny")
    assert caught.value.code == "probability-class"
    for number in (3, -1):
        with pytest.raises(ConfigError, match="or 0 to 2, found"):
            file.read_class(number)
    with pytest.raises(ShapeError, match="three slices without a step") as caught:
        file.read_box((slice(None), slice(None), slice(0, 9, 2)))
    assert caught.value.code == "probability-box"


def test_a_name_that_two_classes_have_is_refused(tmp_path):
    twins = [ProbabilityClass(value, "background", (0, 0, 0)) for value in (0, 1, 2)]
    path = write(tmp_path / "a.h5", softmax((3, *GRID.shape_ijk)), classes=twins)
    with pytest.raises(ConfigError, match="found 'background', 3 times"):
        read_probabilities(path).read_class("background")


def test_missing_empty_and_foreign_files_are_named(tmp_path):
    with pytest.raises(ResourceError) as missing:
        read_probabilities(tmp_path / "absent.h5")
    assert missing.value.code == "file-missing"
    (tmp_path / "empty.h5").write_bytes(b"")
    with pytest.raises(FormatError) as empty:
        read_probabilities(tmp_path / "empty.h5")
    assert empty.value.code == "file-empty"
    with pytest.raises(ResourceError) as folder:
        read_probabilities(tmp_path)
    assert folder.value.code == "input-unreadable"
    (tmp_path / "text.h5").write_text("no HDF5 at all\n" * 100)
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["image"] = np.zeros(3)
    for name in ("text.h5", "other.h5"):
        with pytest.raises(FormatError, match=r"a \*_probseg.h5 file that medseg wrote") as foreign:
            read_probabilities(tmp_path / name)
        assert foreign.value.code == "probabilities-format"


def test_a_file_that_vanishes_after_it_was_looked_into_is_named(tmp_path):
    file = read_probabilities(write(tmp_path / "a.h5", softmax((3, *GRID.shape_ijk))))
    file.path.unlink()
    with pytest.raises(ResourceError) as caught:
        file.read_class(0)
    assert caught.value.code == "file-missing"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format_version": 2}, "version 2"),
        (
            {
                "label_values": [0, 1],
                "label_names": np.array([b"a", b"b"]),
                "label_rgb": [[0] * 3] * 2,
            },
            "2 names for 3 classes",
        ),
    ],
)
def test_files_of_another_making_are_refused(tmp_path, change, words):
    path = write(tmp_path / "a.h5", softmax((3, *GRID.shape_ijk)))
    with h5py.File(path, "a") as file:
        file["probabilities"].attrs.update(change)
    with pytest.raises(FormatError, match=words) as caught:
        read_probabilities(path)
    assert caught.value.code == "probabilities-format"


def test_a_dataset_of_another_type_is_refused(tmp_path):
    path = write(tmp_path / "a.h5", softmax((3, *GRID.shape_ijk)))
    with h5py.File(path, "a") as file:
        attributes = dict(file["probabilities"].attrs)
        del file["probabilities"]
        file["probabilities"] = np.zeros((3, 4), np.int32)
        file["probabilities"].attrs.update(attributes)
    with pytest.raises(FormatError, match=r"found type int32 of shape \(3, 4\)"):
        read_probabilities(path)


@pytest.mark.parametrize("kept", [0.02, 0.5, 0.999])
def test_a_file_cut_off_is_truncated(tmp_path, kept):
    path = write(tmp_path / "a.h5", softmax((3, *GRID.shape_ijk)))
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(FormatError) as caught:
        read_probabilities(path)
    assert caught.value.code == "file-truncated"


@pytest.mark.parametrize("compression", ["gzip", "lzf"])
def test_a_flipped_bit_is_found_wherever_it_is_or_changes_nothing(tmp_path, compression):
    values = softmax((2, 6, 6, 6), seed=1)
    classes, grid = CLASSES[:2], Grid((6, 6, 6), OBLIQUE)
    path = tmp_path / "a.h5"
    write(path, values, grid=grid, classes=classes, compression=compression)
    content = path.read_bytes()
    sound = read_probabilities(path)
    stored = sound.read_box((slice(None),) * 3)
    codes = []
    for at in range(0, len(content), 7):
        broken = bytearray(content)
        broken[at] ^= 1 << (at % 8)
        path.write_bytes(broken)
        try:
            file = read_probabilities(path)
            read = file.read_box((slice(None),) * 3)
        except MedsegError as error:
            codes.append(error.code)
        else:
            assert (file.grid, file.classes, file.scale) == (grid, classes, sound.scale), at
            np.testing.assert_array_equal(read, stored)
    assert len(codes) > 100
    assert set(codes) <= {"file-damaged", "file-truncated", "probabilities-format"}


# -- NIfTI


def test_each_class_becomes_a_nifti_file_that_nibabel_reads_the_same(tmp_path):
    values = softmax((3, *GRID.shape_ijk))
    written = probabilities_to_nifti(write(tmp_path / "sub-1_probseg.h5", values), tmp_path)
    assert [path.name for path in written] == [
        "sub-1_label-Background_probseg.nii.gz",
        "sub-1_label-LeftKidney_probseg.nii.gz",
        "sub-1_label-Sledziona_probseg.nii.gz",
    ]
    for number, path in enumerate(written):
        image = nibabel.load(path)
        assert image.get_data_dtype() == np.uint8
        np.testing.assert_allclose(image.get_fdata(), values[number], atol=0.5 / 255 + 1e-6)
        np.testing.assert_allclose(image.affine, OBLIQUE, atol=1e-5)


def test_probabilities_of_a_leaning_stack_keep_its_affine_in_both_forms(tmp_path):
    leaning = OBLIQUE.copy()
    leaning[:3, 2] += 0.3 * leaning[:3, 1]
    grid = Grid(GRID.shape_ijk, leaning)
    assert grid.shear_deg > 5
    values = softmax((3, *grid.shape_ijk))
    path = write(tmp_path / "a_probseg.h5", values, grid=grid)
    assert read_probabilities(path).grid == grid
    for number, written in enumerate(probabilities_to_nifti(path, tmp_path)):
        image = nibabel.load(written)
        np.testing.assert_allclose(image.affine, leaning, atol=1e-5)
        np.testing.assert_allclose(image.get_fdata(), values[number], atol=0.5 / 255 + 1e-6)


def test_half_precision_becomes_float32_with_the_images_own_geometry_fields(tmp_path):
    header = nibabel.Nifti1Header()
    header.set_qform(OBLIQUE, 2)
    image = nibabel.Nifti1Image(np.zeros(GRID.shape_ijk, np.int16), None, header)
    nibabel.save(image, tmp_path / "image.nii")
    scan = read_nifti(tmp_path / "image.nii")
    values = softmax((3, *GRID.shape_ijk))
    path = tmp_path / "a_probseg.h5"
    write(path, values, grid=scan.volume.grid, encoding="float16")
    given = nibabel.load(tmp_path / "image.nii").header
    for number, written in enumerate(probabilities_to_nifti(path, tmp_path, source=scan.source)):
        back = nibabel.load(written)
        assert back.get_data_dtype() == np.float32
        np.testing.assert_array_equal(back.get_fdata(), values[number].astype(np.float16))
        for name in GEOMETRY_FIELDS:
            assert back.header[name].tobytes() == given[name].tobytes(), name


def test_names_that_bids_cannot_tell_apart_get_their_number(tmp_path):
    names = ("a b", "A-B", "肝", "ab")
    classes = [ProbabilityClass(value, name, (0, 0, 0)) for value, name in enumerate(names)]
    path = write(tmp_path / "c.h5", softmax((4, *GRID.shape_ijk)), classes=classes)
    written = probabilities_to_nifti(path, tmp_path)
    labels = [entry.name.split("_")[1] for entry in written]
    assert labels == ["label-AB", "label-ABx1", "label-Class2", "label-Abx3"]


def test_an_existing_file_is_not_replaced(tmp_path):
    path = write(tmp_path / "a_probseg.h5", softmax((3, *GRID.shape_ijk)))
    taken = tmp_path / "a_label-LeftKidney_probseg.nii.gz"
    taken.write_bytes(b"old")
    with pytest.raises(ResourceError, match="still free") as caught:
        probabilities_to_nifti(path, tmp_path)
    assert caught.value.code == "output-exists"
    assert taken.read_bytes() == b"old"
    assert names_in(tmp_path) == [taken.name, path.name]


def test_a_class_that_cannot_be_read_leaves_no_nifti_file_at_all(tmp_path):
    values = softmax((3, *GRID.shape_ijk))
    path = write(tmp_path / "a_probseg.h5", values)
    with h5py.File(path) as file:
        chunk = file["probabilities"].id.get_chunk_info(2)
    content = bytearray(path.read_bytes())
    content[chunk.byte_offset + chunk.size // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(FormatError) as caught:
        probabilities_to_nifti(path, tmp_path)
    assert caught.value.code == "file-damaged"
    assert names_in(tmp_path) == [path.name]
