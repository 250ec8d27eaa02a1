"""The environment that the wheel is tried in holds what the wheel's metadata names, and no more."""

import importlib.util
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / ".ci" / "fill_environment.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("fill_environment", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def install(site, name, requirements=(), *, command=False):
    """A distribution of one module, as pip leaves it."""
    files = {
        f"{name}.py": f"NAME = {name!r}\n",
        f"{name}-1.dist-info/METADATA": "\n".join(
            ["Metadata-Version: 2.1", f"Name: {name}", "Version: 1"]
            + [f"Requires-Dist: {line}" for line in requirements]
        ),
    }
    if command:
        files[f"../../../bin/{name}"] = "#!/elsewhere/python\n"
    files[f"{name}-1.dist-info/RECORD"] = "".join(f"{file},,\n" for file in files)
    for file, content in files.items():
        (site / file).parent.mkdir(parents=True, exist_ok=True)
        (site / file).write_text(content)


@pytest.fixture
def site(tmp_path, monkeypatch):
    folder = tmp_path / "have" / "lib" / "python" / "site-packages"
    folder.mkdir(parents=True)
    monkeypatch.syspath_prepend(str(folder))
    install(folder, "mdsg_named", ["mdsg_deep[more]", 'mdsg_windows; os_name == "nt"'])
    install(folder, "mdsg_deep", ['mdsg_of_extra; extra == "more"', 'mdsg_not; extra == "less"'])
    for name in ("mdsg_of_extra", "mdsg_not", "mdsg_unnamed"):
        install(folder, name)
    install(folder, "mdsg_commands", command=True)
    return folder


def wheel(folder, *requirements):
    path = folder / "mine-1-py3-none-any.whl"
    lines = [f"Requires-Dist: {line}" for line in requirements]
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("mine-1.dist-info/METADATA", "\n".join(["Name: mine", *lines]))
    return path


def empty_environment(folder):
    place = str(folder)
    site = Path(sysconfig.get_path("platlib", "venv", {"base": place, "platbase": place}))
    site.mkdir(parents=True)
    return site


def fill(script, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["fill_environment.py", *map(str, arguments)])
    script.main()


def test_it_holds_what_is_named_at_any_depth_and_nothing_else(script, site, tmp_path, monkeypatch):
    found = empty_environment(tmp_path / "environment")
    built = wheel(tmp_path, "mdsg-named>=1", "mdsg_commands", 'mdsg_unnamed; extra == "dev"')
    fill(script, monkeypatch, built, tmp_path / "environment")
    modules = {path.stem for path in found.glob("*.py")}
    assert modules == {"mdsg_named", "mdsg_deep", "mdsg_of_extra", "mdsg_commands"}
    assert (found / "mdsg_named.py").samefile(site / "mdsg_named.py")
    # a command begins with the path of the other environment's Python
    assert not (tmp_path / "environment" / "bin" / "mdsg_commands").exists()


def test_a_requirement_that_is_not_installed_is_named(script, site, tmp_path, monkeypatch):
    empty_environment(tmp_path / "environment")
    with pytest.raises(SystemExit, match="mdsg_absent>=2 is required, but not installed in"):
        fill(script, monkeypatch, wheel(tmp_path, "mdsg_absent>=2"), tmp_path / "environment")


def test_a_folder_that_is_no_environment_is_refused(script, site, tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match=r"none is no environment of Python 3\."):
        fill(script, monkeypatch, wheel(tmp_path), tmp_path / "none")


def test_on_another_file_system_files_are_copied(script, site, tmp_path, monkeypatch):
    def refused(self, target):
        raise OSError

    monkeypatch.setattr(Path, "hardlink_to", refused)
    found = empty_environment(tmp_path / "environment")
    fill(script, monkeypatch, wheel(tmp_path, "mdsg_deep"), tmp_path / "environment")
    assert (found / "mdsg_deep.py").read_text() == "NAME = 'mdsg_deep'\n"
    assert not (found / "mdsg_deep.py").samefile(site / "mdsg_deep.py")


def test_a_forgotten_requirement_fails_at_its_import(script, site, tmp_path, monkeypatch):
    found = empty_environment(tmp_path / "environment")
    fill(script, monkeypatch, wheel(tmp_path, "mdsg_named"), tmp_path / "environment")
    program = f"import sys; sys.path = [{str(found)!r}]; import mdsg_named; import mdsg_unnamed"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "No module named 'mdsg_unnamed'" in done.stderr
