"""Documents stay true: codes exist, links lead somewhere, commands are commands."""

import re
import shlex
from pathlib import Path

import click
import pytest
import typer.main
from typer.testing import CliRunner

from pipelines.cli import app
from tests import forked

REPOSITORY = Path(__file__).resolve().parent.parent
DOCUMENTS = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]


def codes_in_source(*folders):
    found = set()
    for folder in folders:
        for path in (REPOSITORY / folder).rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            found |= set(re.findall(r'"([a-z0-9]+(?:-[a-z0-9]+)*)"', text))
    return found


def codes_in_document():
    table = (REPOSITORY / "docs" / "errors.md").read_text(encoding="utf-8")
    cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    return {code for cell in cells for code in re.findall(r"`([a-z0-9-]+)`", cell)}


def test_every_documented_code_is_in_the_source():
    assert codes_in_document() - codes_in_source("medseg", "pipelines", "plugins") == set()


def test_every_code_that_a_user_can_meet_is_documented():
    given = set()
    for folder in (
        "medseg/io",
        "medseg/models",
        "medseg/ops",
        "medseg/data",
        "medseg/training",
        "medseg/inference",
        "medseg/metrics",
        "medseg/studies",
        "plugins/napari/medseg_napari",
    ):
        for path in (REPOSITORY / folder).rglob("*.py"):
            given |= set(re.findall(r'code="([a-z0-9-]+)"', path.read_text(encoding="utf-8")))
    assert given - codes_in_document() == set()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_to_files_of_the_repository(document):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (document.parent / target).exists(), target


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_no_placeholder_is_left(document):
    assert "@@" not in document.read_text(encoding="utf-8")


def commands():
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        for block in re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if words and words[0] == "medseg":
                    yield pytest.param(words[1:], id=" ".join(words))


@pytest.mark.parametrize("words", list(commands()))
def test_documented_commands_parse(words):
    command = typer.main.get_command(app)
    with click.Context(command) as context:
        while isinstance(command, click.Group):
            name, command, words = command.resolve_command(context, list(words))
            assert name is not None
        command.make_context("medseg", list(words))


def test_the_commands_on_the_sample_run_as_written(tmp_path, monkeypatch):
    """The README's `medseg` lines that need nothing but the clone."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "medseg").symlink_to(REPOSITORY / "medseg")
    ran = 0
    # a command that several documents show is run once
    for words in {parameter.id: parameter.values[0] for parameter in commands()}.values():
        if words[0] in ("predict", "models", "doctor") and not any("data/" in w for w in words):
            if "--max-memory" in words:  # a limit for a process that is not full of other tests
                done = forked.command(*words)
                assert done.returncode == 0, (words, done.stderr)
            else:
                result = CliRunner().invoke(app, words)
                assert result.exit_code == 0, (words, result.stderr)
            ran += 1
    assert ran >= 4
