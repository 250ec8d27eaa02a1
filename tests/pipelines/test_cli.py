"""The command line as such: quick, quiet, and honest about what it is."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

import medseg
from medseg.errors import ConfigError, FormatError, ResourceError
from pipelines.cli import app
from pipelines.commands.console import answering

REPOSITORY = Path(__file__).resolve().parents[2]


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def afresh(statement):
    """What a process of its own says when it carries out a statement."""
    return subprocess.run(
        [sys.executable, "-c", statement],
        capture_output=True,
        text=True,
        check=True,
        cwd=REPOSITORY,
    )


@pytest.mark.parametrize(
    "statement",
    [
        "import medseg",
        "import sys; sys.argv = ['medseg', '--help']; from pipelines.cli import main\n"
        "try: main()\nexcept SystemExit: pass",
    ],
)
def test_neither_the_package_nor_help_loads_torch_or_monai(statement):
    check = "\nimport sys; print(sorted({'torch', 'monai', 'napari'} & set(sys.modules)))"
    done = afresh(statement + check)
    assert done.stdout.splitlines()[-1] == "[]"


def test_an_unknown_model_is_refused_before_torch_is_loaded(tmp_path):
    statement = (
        "import sys; from pipelines.cli import app\n"
        f"code = app(['predict', {str(tmp_path)!r}, '-m', 'nothing', '-o', {str(tmp_path)!r}],"
        " standalone_mode=False)\n"
        "print(code, 'torch' in sys.modules)"
    )
    done = afresh(statement)
    assert "nothing" in done.stderr, done.stderr
    assert done.stdout.split()[-2:] == ["2", "False"]


def test_predicting_does_not_load_monai():
    statement = (
        "import pipelines.infer, pipelines.demo, medseg.inference.predictor, sys;"
        "print('monai' in sys.modules)"
    )
    done = afresh(statement)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("kind", "code", "exit_code"),
    [
        (ConfigError, "usage", 2),
        (ConfigError, "loss-not-finite", 1),
        (FormatError, "bundle-zip", 1),
        (ResourceError, "plan-memory", 2),
        (ResourceError, "output-exists", 2),
        (ResourceError, "output-unwritable", 2),
        (ResourceError, "disk-full", 1),
    ],
)
def test_what_cannot_be_as_asked_ends_with_2_and_work_that_failed_with_1(kind, code, exit_code):
    @answering
    def command():
        raise kind("here", expected="one", found="another", remedy="change it", code=code)

    with pytest.raises(typer.Exit) as ended:
        command()
    assert ended.value.exit_code == exit_code


def test_the_version_says_what_it_is_not():
    result = run("--version")
    assert result.exit_code == 0
    assert result.stdout.strip() == (
        f"medseg {medseg.__version__}. Research software, not a medical device."
    )


def test_the_version_is_the_packages():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert medseg.__version__ == project["version"]


@pytest.mark.parametrize(
    "command",
    [["demo"], ["train"], ["predict"], ["doctor"], ["models", "list"], ["evaluate"], ["compare"]],
)
def test_every_command_has_help_and_json(command):
    result = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"}).invoke(app, [*command, "--help"])
    assert result.exit_code == 0
    assert "--json" in result.stdout


def test_a_word_that_is_no_command_is_wrong_usage():
    assert run("segment").exit_code == 2


def test_doctor_finds_nothing_wrong_here():
    result = run("doctor", "--json")
    findings = json.loads(result.stdout)["findings"]
    assert [finding for finding in findings if finding["state"] == "problem"] == []
    assert result.exit_code == 0
    assert {"Python", "torch", "DICOM decoders", "disk"} <= {item["topic"] for item in findings}


def test_models_list_shows_the_shipped_model():
    content = json.loads(run("models", "list", "--json").stdout)
    assert "reversible_hippocampus" in content["models"]
    table = run("models", "list")
    assert "reversible_hippocampus" in table.stdout


def test_a_broken_model_folder_does_not_hide_the_others(tmp_path):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "model.json").write_text("{")
    result = run("models", "list", tmp_path, "--json")
    assert result.exit_code == 1
    content = json.loads(result.stdout)
    assert "reversible_hippocampus" in content["models"]
    assert len(content["broken"]) == 1
    assert "expected a model card" in result.stderr


def test_models_list_shows_the_networks_when_asked():
    result = run("models", "list", "--networks")
    assert result.exit_code == 0
    words = result.stdout.split()
    assert {"neunet", "transdae", "macmd", "qtseg", "revunet"} <= set(words)
    assert "reversible" in result.stdout
    assert {"181,132,838", "1860.62"} <= set(words), "weights and GMAC of neunet, as published"


def test_models_show_prints_the_card():
    result = run("models", "show", "reversible_hippocampus")
    assert result.exit_code == 0
    assert "SCT" in result.stdout
    card = json.loads(run("models", "show", "reversible_hippocampus", "--json").stdout)["model"]
    assert card["licence"].startswith("CC-BY-SA-4.0")


def test_models_list_of_a_missing_folder_is_wrong_usage(tmp_path):
    result = run("models", "list", tmp_path / "none")
    assert result.exit_code == 2
    assert "expected a folder that holds model folders" in result.stderr


def test_errors_are_json_too_when_asked():
    result = run("models", "show", "nothing", "--json")
    assert result.exit_code == 2
    assert json.loads(result.stdout)["error"]["code"] == "model-missing"
