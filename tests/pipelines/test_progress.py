"""Progress on a terminal, and Ctrl-C as a wish."""

import io
import os
import signal
import threading

import pytest
from rich.console import Console
from rich.progress import Progress, TextColumn

from medseg.events import Silent
from pipelines.interrupt import Interruptible, until_interrupted
from pipelines.progress import ConsoleListener, console_listener


def drawn():
    console = Console(file=io.StringIO(), width=120, force_terminal=False)
    columns = [
        TextColumn("{task.description}|{task.completed}/{task.total}|{task.fields[figures]}")
    ]
    progress = Progress(*columns, console=console)
    return ConsoleListener(progress), progress


def test_bars_show_their_stage_and_the_latest_figures():
    listener, progress = drawn()
    listener.started("training", 10)
    listener.advanced("training", 4)
    listener.measured("loss", 0.5)
    listener.measured("loss", 0.25)
    listener.measured("dice", 0.875)
    task = progress.tasks[0]
    assert (task.description, task.completed, task.total) == ("training", 4, 10)
    assert task.fields["figures"] == "loss 0.250  dice 0.875"


def test_a_stage_that_begins_again_reuses_its_bar():
    listener, progress = drawn()
    for total in (3, 5):
        listener.started("validation", total)
        listener.advanced("validation", total)
    assert [(task.completed, task.total) for task in progress.tasks] == [(5, 5)]


def test_figures_go_to_the_first_unfinished_bar_and_unknown_stages_are_ignored():
    listener, progress = drawn()
    listener.measured("loss", 1.0)
    listener.advanced("never started", 1)
    for stage in ("reading", "training"):
        listener.started(stage, 1)
    listener.advanced("reading", 1)
    listener.measured("loss", 0.5)
    assert [task.fields["figures"] for task in progress.tasks] == ["", "loss 0.500"]


def test_notes_are_plain_lines_on_stderr_and_nothing_goes_to_stdout(capsys):
    with console_listener() as listener:
        listener.noted("read [bold]plainly[/bold]")
        assert not listener.cancelled()
    captured = capsys.readouterr()
    assert "read [bold]plainly[/bold]" in captured.err
    assert captured.out == ""


def test_where_there_are_no_bars_a_line_tells_the_time_left_until_the_last_is_done(
    capsys, monkeypatch
):
    monkeypatch.setattr("pipelines.progress._LINE_EVERY_S", -1.0)
    clock = [0.0]
    monkeypatch.setattr("pipelines.progress.time.monotonic", lambda: clock[0])
    with console_listener() as listener:
        listener.started("reading", 6)
        # the first step takes 50 s, the others 2 s each
        for done, now in enumerate((50.0, 52.0, 54.0, 56.0, 58.0, 60.0), start=1):
            clock[0] = now
            listener.advanced("reading", done)
    assert capsys.readouterr().err.splitlines() == [
        "reading: 1 of 6, measuring how long it takes",
        "reading: 2 of 6, measuring how long it takes",
        "reading: 3 of 6, measuring how long it takes",
        "reading: 4 of 6, about 4 s left",
        "reading: 5 of 6, about 2 s left",
    ]


class Hears(Silent):
    def __init__(self):
        self.calls = []

    def started(self, stage, total):
        self.calls.append(("started", stage, total))

    def advanced(self, stage, done):
        self.calls.append(("advanced", stage, done))

    def measured(self, name, value):
        self.calls.append(("measured", name, value))

    def noted(self, message):
        self.calls.append(("noted", message))


def test_an_interruptible_listener_passes_everything_on():
    inner = Hears()
    listener = Interruptible(inner)
    listener.started("a", 2)
    listener.advanced("a", 1)
    listener.measured("loss", 0.5)
    listener.noted("line")
    assert inner.calls == [
        ("started", "a", 2),
        ("advanced", "a", 1),
        ("measured", "loss", 0.5),
        ("noted", "line"),
    ]


def test_the_first_ctrl_c_is_a_wish_and_the_second_an_interrupt():
    before = signal.getsignal(signal.SIGINT)
    with until_interrupted(Silent()) as listener:
        assert not listener.cancelled()
        os.kill(os.getpid(), signal.SIGINT)
        assert listener.cancelled()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_outside_the_main_thread_no_signal_handler_is_touched():
    seen = []

    def work():
        with until_interrupted(Silent()) as listener:
            seen.append((signal.getsignal(signal.SIGINT), listener.cancelled()))

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(before, False)]


def test_sigterm_counts_as_ctrl_c_where_it_was_asked_for():
    before = signal.getsignal(signal.SIGTERM)
    with until_interrupted(Silent(), or_terminated=True) as listener:
        os.kill(os.getpid(), signal.SIGTERM)
        assert listener.cancelled()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before
