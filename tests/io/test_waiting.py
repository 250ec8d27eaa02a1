import threading
import time

import pytest

from medseg.io import waiting
from medseg.io.waiting import map_files


class Clocks:
    """A second of the wall for every task, and as much of the processor as is said."""

    def __init__(self, monkeypatch, computed):
        self.wall = self.cpu = 0.0
        self.computed = computed
        self.threads = set()
        monkeypatch.setattr(waiting, "perf_counter", lambda: self.wall)
        monkeypatch.setattr(waiting, "thread_time", lambda: self.cpu)

    def work(self, task):
        self.wall += 1.0
        self.cpu += self.computed(task)
        self.threads.add(threading.get_ident())
        time.sleep(0.001)
        return 2 * task


DOUBLED = [2 * task for task in range(100)]


def test_what_computes_stays_in_one_thread(monkeypatch):
    clocks = Clocks(monkeypatch, lambda task: 0.9)
    assert map_files(clocks.work, range(100)) == DOUBLED
    assert clocks.threads == {threading.get_ident()}


def test_what_waits_is_shared_once_it_does(monkeypatch):
    clocks = Clocks(monkeypatch, lambda task: 0.9 if task < 32 else 0.1)
    first = []

    def work(task):
        if threading.current_thread() is threading.main_thread():
            first.append(task)
        return clocks.work(task)

    assert map_files(work, range(100)) == DOUBLED
    assert first == list(range(48))
    assert len(clocks.threads) > 1


@pytest.mark.parametrize("choices", [{"threads": 1}, {"least": 51}])
def test_few_tasks_or_a_limit_of_one_keep_it_in_one_thread(monkeypatch, choices):
    clocks = Clocks(monkeypatch, lambda task: 0.0)
    assert map_files(clocks.work, range(100), **choices) == DOUBLED
    assert clocks.threads == {threading.get_ident()}


@pytest.mark.parametrize("bad", [3, 90])
def test_the_first_error_is_the_callers(monkeypatch, bad):
    clocks = Clocks(monkeypatch, lambda task: 0.0)

    def work(task):
        if task == bad:
            raise ValueError(task)
        return clocks.work(task)

    with pytest.raises(ValueError, match=str(bad)):
        map_files(work, range(100))
    assert map_files(work, []) == []
