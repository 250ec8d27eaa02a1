"""``medseg napari`` starts the viewer in a process of its own."""

import subprocess
import sys

import pytest
from typer.testing import CliRunner

from medseg_napari._start import SAMPLES
from pipelines.cli import app
from pipelines.commands.viewer import Sample


def test_the_viewer_that_is_not_installed_gives_its_install_command(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    done = CliRunner().invoke(app, ["napari"])
    assert done.exit_code == 2
    assert 'pip install "medseg[napari]"' in done.stderr
    assert "[napari-missing]" in done.stderr


@pytest.mark.parametrize("words", [["gone.nii.gz"], ["--models", "gone"], ["--ledger", "gone"]])
def test_a_path_that_is_not_there_is_refused_before_anything_starts(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["napari", *words])
    assert done.exit_code == 2
    assert "[file-missing]" in done.stderr


def test_samples_of_the_command_are_those_of_the_plugin():
    assert tuple(sample.value for sample in Sample) == SAMPLES


def test_the_process_that_is_started_understands_its_arguments_without_loading_napari():
    program = (
        "import sys\n"
        "from medseg_napari._start import main\n"
        "try:\n    main(['--help'])\n"
        "except SystemExit as end:\n    assert end.code == 0\n"
        "sys.exit(bool({'napari', 'qtpy', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "--sample" in done.stdout
