"""Gives an empty environment what a wheel's metadata names, and nothing else.

The distributions are hard links to those of the environment that runs this file: the same files
that pip has unpacked there once, which takes seconds where a second installation takes minutes.
What no metadata names is not there, so a forgotten requirement fails at its import; `pip check`
then judges the versions.

Usage: python fill_environment.py WHEEL ENVIRONMENT
"""

import os
import shutil
import sys
import sysconfig
import zipfile
from email import message_from_bytes
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def requirements_of(wheel: Path) -> list[str]:
    """The requirements of a wheel, as its metadata writes them."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [one for one in archive.namelist() if one.endswith(".dist-info/METADATA")]
        return message_from_bytes(archive.read(name)).get_all("Requires-Dist", [])


def named_by(requirements: list[str]) -> dict[str, Distribution]:
    """The installed distributions that requirements name, and those that these name in turn.

    Raises:
        SystemExit: one that is named is not installed.
    """
    found: dict[str, Distribution] = {}
    seen: set[tuple[str, str]] = set()
    waiting = [(line, "") for line in requirements]
    while waiting:
        line, of_extra = waiting.pop()
        requirement = Requirement(line)
        if requirement.marker and not requirement.marker.evaluate({"extra": of_extra}):
            continue
        name = canonicalize_name(requirement.name)
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:
            sys.exit(f"{line} is required, but not installed in {sys.prefix}")
        for extra in ("", *requirement.extras):
            if (name, extra) not in seen:
                seen.add((name, extra))
                waiting += [(more, extra) for more in found[name].requires or ()]
    return found


def link(files_of: Distribution, site: Path) -> None:
    """Links the files of one distribution into a folder of packages, but not its commands."""
    for file in files_of.files or ():
        source, target = Path(str(files_of.locate_file(file))), Path(os.path.normpath(site / file))
        if target.parent.name == "bin" and site not in target.parents:
            continue  # begins with the path of the other environment's Python
        if target.exists() or not source.exists():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            target.hardlink_to(source)
        except OSError:  # another file system
            shutil.copy2(source, target)


def main() -> None:
    """Fills the environment."""
    wheel, environment = Path(sys.argv[1]), Path(sys.argv[2]).resolve()
    place = str(environment)
    site = Path(sysconfig.get_path("platlib", "venv", {"base": place, "platbase": place}))
    if not site.is_dir():
        sys.exit(f"{environment} is no environment of Python {sysconfig.get_python_version()}")
    for one in named_by(requirements_of(wheel)).values():
        link(one, site)


if __name__ == "__main__":
    main()
