"""What the workers of test_devices.py do; apart from the tests, which take long to import."""

import functools
import os
import signal
import threading
import time

from medseg.errors import ConfigError, FormatError
from medseg.events import Cancelled


def build(place, folder=None):
    if folder is not None:
        (folder / f"built-{os.getpid()}").touch()
    return functools.partial(process, place, folder)


def process(place, folder, case, listener):
    """A case is a tuple: what to do, and what with."""
    verb, *rest = case
    if verb == "place":
        return place
    if verb == "wait for":
        _wait_for(folder, *rest)
    if verb == "make":
        (folder / rest[0]).touch()
    if verb == "die":
        os.kill(os.getpid(), rest[0])
    if verb == "refuse":
        raise FormatError("x.nii", expected="an image", found="text", remedy="look", code="no")
    if verb == "unpicklable":
        return threading.Lock()
    if verb == "windows":
        listener.started("windows", 2)
        listener.advanced("windows", 1)
        listener.measured("seconds", 0.5)
        listener.noted("padded")
        listener.advanced("windows", 2)
    if verb == "until cancelled":
        try:
            listener.noted("at work")
            while not listener.cancelled():
                time.sleep(0.01)
            raise Cancelled
        finally:
            (folder / f"cleaned-{os.getpid()}").touch()
    if verb == "deaf":
        try:
            (folder / f"at-work-{os.getpid()}").touch()
            listener.noted("at work")
            time.sleep(60)
        finally:
            (folder / f"cleaned-{os.getpid()}").touch()
    return os.getpid()


def _wait_for(folder, pattern, count):
    ends = time.monotonic() + 60
    while len(list(folder.glob(pattern))) < count:
        assert time.monotonic() < ends
        time.sleep(0.01)


def build_nothing(place):
    raise ConfigError(
        "device", expected="a GPU", found=place.device, remedy="none", code="device-missing"
    )


def build_wrongly(place):
    raise ZeroDivisionError("Jane Doe")


def build_once(place, folder):
    # exactly one process can make the folder
    try:
        (folder / "first").mkdir()
    except FileExistsError:
        build_nothing(place)
    return build(place)


def build_slowly(place, folder):
    (folder / f"building-{os.getpid()}").touch()
    time.sleep(60)


def die_while_building(place):
    os.kill(os.getpid(), signal.SIGKILL)
