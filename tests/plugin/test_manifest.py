import subprocess
import sys
from pathlib import Path

import pytest
from npe2 import PluginManager, PluginManifest

import medseg_napari

YAML = Path(medseg_napari.__file__).with_name("napari.yaml")


@pytest.fixture
def manifest():
    return PluginManifest.from_file(YAML)


@pytest.fixture
def manager(manifest):
    manager = PluginManager()
    manager.register(manifest)
    return manager


def readers_of(manager, path):
    return [reader.command for reader in manager.iter_compatible_readers(str(path))]


def test_the_installed_distribution_offers_the_manifest():
    assert PluginManifest.from_distribution("medseg").name == "medseg"


def test_every_command_of_the_manifest_imports(manifest):
    manifest.validate_imports()
    for command in manifest.contributions.commands:
        module, _, function = command.python_name.partition(":")
        assert module.startswith("medseg_napari.")
        assert callable(getattr(__import__(module, fromlist=[function]), function))


def test_every_contribution_names_a_command_of_the_manifest(manifest):
    offered = manifest.contributions
    parts = (offered.readers, offered.writers, offered.widgets, offered.sample_data)
    used = {item.command for part in parts for item in part}
    assert used == {command.id for command in offered.commands}


@pytest.mark.parametrize(
    "name",
    [
        *("a.nii", "a.nii.gz", "A.NII.GZ", "a.b.nii.gz", "a.nrrd", "a.nhdr", "a.mha", "a.mhd"),
        *("a.zip", "a.dcm", "a.dicom"),
    ],
)
def test_volume_files_are_claimed(manager, name):
    assert readers_of(manager, name) == ["medseg.get_reader"]


@pytest.mark.parametrize("name", ["a.gz", "a.tar.gz", "a.csv.gz", "nii.gz", "a.png", "a.dcmx", "a"])
def test_other_files_and_plain_gz_are_left_alone(manager, name):
    assert readers_of(manager, name) == []


def test_folders_are_offered_to_the_reader(manager, tmp_path):
    assert readers_of(manager, tmp_path) == ["medseg.get_reader"]


@pytest.mark.parametrize(
    ("layers", "command"),
    [
        (["labels"], "medseg.write_labels"),
        (["image", "labels"], "medseg.write_labels_on_image"),
        (["labels", "image"], "medseg.write_labels_on_image"),
    ],
)
@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".dcm"])
def test_the_writer_follows_from_the_layers_chosen(manager, layers, command, ending):
    writer, path = manager.get_writer(f"out{ending}", layers)
    assert (writer.command, path) == (command, f"out{ending}")


@pytest.mark.parametrize("layers", [["image"], ["labels", "labels"], ["image", "image", "labels"]])
def test_no_writer_is_offered_for_layers_without_one_grid(manager, layers):
    assert manager.get_writer("out.nii.gz", layers)[0] is None


def test_reader_writer_and_sample_load_neither_qt_nor_napari_nor_torch():
    program = (
        "import sys, medseg_napari._reader, medseg_napari._writer, medseg_napari._sample_data\n"
        "heavy = {'napari', 'qtpy', 'PyQt6', 'torch', 'monai', 'SimpleITK', 'highdicom'}\n"
        "sys.exit(', '.join(sorted(heavy & set(sys.modules))) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], check=False, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
