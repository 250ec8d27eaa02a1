"""Damaged NIfTI files: read, or refused by an error of ours; no crash, no hang, bounded memory."""

import gzip
import tempfile
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg.core import LabelScheme
from medseg.errors import FormatError, MedsegError
from medseg.io.fingerprint import fingerprint
from medseg.io.nifti import read_nifti, read_nifti_labels
from tests.damage import Forms, bounded, damaged, damages

# deflate shrinks a thousandfold at most: files of 3 kB cannot tell of more than these hold
MOST_BYTES = 64 << 20
SCHEME = LabelScheme.plain("any", {1: "one"})


def read_or_refuse(path):
    """An image has finite voxels on its grid, or the reader says what is wrong."""
    for read in (read_nifti, lambda path: read_nifti_labels(path, SCHEME)):
        with bounded(MOST_BYTES):
            try:
                found = read(path)
            except MedsegError:
                continue
        grid = found.volume.grid if read is read_nifti else found.grid
        assert np.isfinite(grid.affine_ras).all()
        if read is read_nifti:
            assert np.isfinite(found.volume.data_cijk).all()
    assert len(fingerprint({"": path})) == 64


@pytest.fixture(scope="module")
def forms(tmp_path_factory):
    """Names and bytes of the files of one image in several encodings."""
    folder = tmp_path_factory.mktemp("fuzz")
    data = np.random.default_rng(0).integers(0, 99, (6, 5, 4)).astype(np.int16)
    affine = np.array([[-2.0, 0, 0, 9], [0, 1.5, 0.1, 4], [0, -0.1, 3, 1], [0, 0, 0, 1]])
    one = nibabel.Nifti1Image(data, affine)
    one.header.set_slope_inter(0.5, -3.0)
    other = nibabel.Nifti1Header(endianness=">")
    other.set_data_dtype(np.int16)
    images = {
        "one.nii": one,
        "two.nii": nibabel.Nifti2Image(data.astype(np.float32), affine),
        "big.nii": nibabel.Nifti1Image(data, affine, other),
        "packed.nii.gz": one,
        "pair.hdr": nibabel.Nifti1Pair(data, affine),
    }
    found = Forms()
    for name, image in images.items():
        nibabel.save(image, folder / name)
        files = [folder / name] + ([folder / "pair.img"] if name == "pair.hdr" else [])
        found[name] = {path.name: path.read_bytes() for path in files}
    return found


@pytest.mark.parametrize("name", ["one.nii", "two.nii", "big.nii", "packed.nii.gz", "pair.hdr"])
@settings(max_examples=60, deadline=None)
@given(damage=damages(), which=st.integers(0, 1))
def test_a_damaged_file_is_read_or_refused(forms, name, damage, which):
    with tempfile.TemporaryDirectory() as temporary:
        for number, (file, content) in enumerate(forms[name].items()):
            hurt = number == which % len(forms[name])
            Path(temporary, file).write_bytes(damaged(content, damage) if hurt else content)
        read_or_refuse(Path(temporary, name))


@settings(max_examples=60, deadline=None)
@given(damage=damages())
def test_damage_under_an_intact_compression_is_read_or_refused(forms, damage):
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary, "a.nii.gz")
        path.write_bytes(gzip.compress(damaged(forms["one.nii"]["one.nii"], damage)))
        read_or_refuse(path)


@settings(max_examples=60, deadline=None)
@given(content=st.binary(max_size=600), name=st.sampled_from(["a.nii", "a.nii.gz", "a.hdr"]))
def test_arbitrary_bytes_are_refused(content, name):
    with tempfile.TemporaryDirectory() as temporary:
        Path(temporary, name).write_bytes(content)
        read_or_refuse(Path(temporary, name))


_NUMBERS = st.one_of(
    st.integers(-2, 5),
    st.sampled_from([-(2**31), -32768, 32767, 2**31 - 1, 2**40, 2**62]),
    st.floats(allow_nan=True, allow_infinity=True, width=32),
)
_FIELDS = sorted(
    name
    for name in nibabel.Nifti1Header.template_dtype.names
    if nibabel.Nifti1Header.template_dtype[name].base.kind in "iuf"
)


@pytest.mark.parametrize("kind", [nibabel.Nifti1Header, nibabel.Nifti2Header])
@settings(max_examples=150, deadline=None)
@given(
    changes=st.lists(
        st.tuples(st.sampled_from(_FIELDS), st.integers(0, 7), _NUMBERS), min_size=1, max_size=5
    ),
    packed=st.booleans(),
)
def test_impossible_headers_are_read_or_refused(forms, kind, changes, packed):
    name = "one.nii" if kind is nibabel.Nifti1Header else "two.nii"
    content = forms[name][name]
    size = kind.template_dtype.itemsize
    block = np.frombuffer(content[:size], kind.template_dtype).copy()
    for field, at, value in changes:
        if field not in block.dtype.names:
            continue
        target = block[field].reshape(-1)
        if target.dtype.kind in "iu":
            limits = np.iinfo(target.dtype)
            whole = int(value) if np.isfinite(value) else 0
            target[at % target.size] = min(max(whole, limits.min), limits.max)
        else:
            target[at % target.size] = value
    whole = block.tobytes() + content[size:]
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary, "a.nii.gz" if packed else "a.nii")
        path.write_bytes(gzip.compress(whole) if packed else whole)
        read_or_refuse(path)


def test_a_file_that_unpacks_for_ever_is_refused(forms, tmp_path):
    """Two hundred megabytes of zeros behind the voxels of a file of 200 kB."""
    path = tmp_path / "a.nii.gz"
    with gzip.open(path, "wb", compresslevel=6) as stream:
        stream.write(forms["one.nii"]["one.nii"])
        for _ in range(200):
            stream.write(bytes(1 << 20))
    with bounded(MOST_BYTES), pytest.raises(FormatError, match="far more than voxels") as caught:
        read_nifti(path)
    assert caught.value.code == "file-damaged"


def test_the_volumes_behind_the_wanted_one_are_no_damage(tmp_path, monkeypatch):
    monkeypatch.setattr("medseg.io.nifti._MOST_BEHIND_BYTES", 0)
    data = np.arange(6 * 5 * 4 * 3, dtype=np.int16).reshape(6, 5, 4, 3)
    nibabel.save(nibabel.Nifti1Image(data, np.eye(4)), tmp_path / "a.nii.gz")
    for index in range(3):
        found = read_nifti(tmp_path / "a.nii.gz", time_index=index).volume.data_cijk[0]
        assert np.array_equal(found, data[..., index])
