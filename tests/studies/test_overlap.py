"""Reading, working and writing overlap, within bounds, and no case spoils another."""

import threading
import time

import pytest

from medseg.errors import FormatError
from medseg.events import Cancelled, Silent
from medseg.studies.flight import Flight
from medseg.studies.overlap import run_overlapped


class Line:
    """Numbers go through; a step in ``fails`` fails for the numbers it names."""

    def __init__(self, count, flight, fails=None, settled=(), alone=()):
        self.left = list(range(count))
        self.flight = flight
        self.fails = fails or {}
        self.settled, self.alone = settled, alone
        self.lock = threading.Lock()
        self.log, self.inside, self.most = [], set(), 0
        self.given_back = []
        self.hooks = {}

    def step(self, name, number):
        with self.lock:
            self.log.append((name, number))
        if name in self.hooks:
            self.hooks[name](number)
        if number in self.fails.get(name, ()):
            raise FormatError(str(number), expected="a", found="b", remedy="c", code=f"{name}-code")

    def claim(self):
        return self.left.pop(0) if self.left else None

    def admit(self, number):
        let_in = self.flight.enter(number, 10, alone=number in self.alone)
        if let_in:
            with self.lock:
                self.inside.add(number)
                self.most = max(self.most, len(self.inside))
                assert not (self.inside & set(self.alone)) or len(self.inside) == 1
        return let_in

    def read(self, number):
        self.step("read", number)
        if number in self.settled:
            return None
        self.flight.move(number, "ready", 10)
        return f"read {number}"

    def work(self, number, read):
        assert read == f"read {number}"
        self.flight.move(number, "working", 10)
        self.step("work", number)
        return f"worked {number}"

    def write(self, number, worked):
        assert worked == f"worked {number}"
        self.flight.move(number, "writing", 10)
        self.step("write", number)
        return f"wrote {number}"

    def ended(self, outcome):
        self.step("ended", outcome.case)
        self.leave(outcome.case)

    def give_back(self, number, _content):
        self.given_back.append(number)
        self.leave(number)

    def leave(self, number):
        with self.lock:
            self.inside.discard(number)
        self.flight.leave(number)


def through(line, listener=None, jobs=1):
    return list(
        run_overlapped(line, line.flight, readers=jobs, writers=jobs, listener=listener or Silent())
    )


@pytest.mark.parametrize("jobs", [1, 3])
def test_every_case_has_one_outcome_whatever_step_fails(jobs):
    line = Line(
        20, Flight(1 + 2 * jobs, 1000),
        fails={"read": {2}, "work": {3, 19}, "write": {5}}, settled={7},
    )  # fmt: skip
    outcomes = {outcome.case: outcome for outcome in through(line, jobs=jobs)}
    assert sorted(outcomes) == list(range(20))
    codes = {case: outcome.code for case, outcome in outcomes.items() if not outcome.done}
    assert codes == {2: "read-code", 3: "work-code", 19: "work-code", 5: "write-code"}
    assert outcomes[7].result is None
    assert outcomes[8].result == "wrote 8"
    assert line.inside == set()
    assert line.given_back == []
    assert line.most <= 1 + 2 * jobs


def test_the_next_is_read_and_the_one_before_written_while_one_is_worked_on():
    line = Line(3, Flight(3, 1000))
    together = threading.Barrier(3, timeout=20)
    meets = {("write", 0), ("work", 1), ("read", 2)}
    for name in ("read", "work", "write"):
        line.hooks[name] = lambda n, name=name: together.wait() if (name, n) in meets else None
    assert [outcome.result for outcome in through(line)] == ["wrote 0", "wrote 1", "wrote 2"]


def test_bytes_bound_what_is_let_in_but_one_always_is():
    line = Line(6, Flight(9, 25))
    through(line, jobs=4)
    assert line.most == 1  # 20 bytes each while they are read
    line = Line(6, Flight(9, 1))
    assert len(through(line, jobs=4)) == 6


def test_a_dangerous_case_has_the_line_for_itself():
    line = Line(9, Flight(7, 1000), alone={4, 5})
    assert len(through(line, jobs=3)) == 9


def test_a_wish_to_stop_finishes_what_is_being_written_and_gives_the_rest_back():
    class Stops(Silent):
        wish = False

        def cancelled(self):
            return self.wish

    listener, line = Stops(), Line(50, Flight(3, 1000))
    writing = threading.Event()

    def slow_write(number):
        writing.set()
        time.sleep(0.05)

    def stop_later(number):
        if number == 1:
            writing.wait(20)
            listener.wish = True
            raise Cancelled

    line.hooks = {"write": slow_write, "work": stop_later}
    with pytest.raises(Cancelled):
        through(line, listener)
    assert ("ended", 0) in line.log
    assert line.inside == set()
    assert 1 in line.given_back
    assert len(line.left) >= 46


@pytest.mark.parametrize("step", ["read", "work", "write", "ended"])
def test_ctrl_c_and_errors_of_the_ledger_end_the_line_from_any_thread(step):
    line = Line(50, Flight(3, 1000))

    def interrupt(number):
        if number == 2:
            raise KeyboardInterrupt

    line.hooks = {step: interrupt}
    with pytest.raises(KeyboardInterrupt):
        through(line)
    assert len(line.left) > 40


def test_leaving_early_ends_the_threads():
    line = Line(50, Flight(3, 1000))
    before = threading.active_count()
    outcomes = run_overlapped(line, line.flight, readers=2, writers=2, listener=Silent())
    next(outcomes)
    outcomes.close()
    assert threading.active_count() == before
    assert line.inside == set()


def test_a_plan_is_promised_what_the_others_may_hold_and_they_keep_to_it():
    flight = Flight(5, 1000)
    assert flight.enter("a", 50)
    flight.move("a", "working", 60)
    assert flight.promise("a") == (0, 400)
    assert flight.enter("b", 150)  # 300 while it is read
    entered = threading.Thread(target=flight.enter, args=("c", 100), daemon=True)
    entered.start()
    entered.join(0.05)
    assert entered.is_alive()
    assert flight.promise("a") == (300, 1000)  # made again, for the larger ones known by now
    flight.leave("b")
    entered.join(20)
    assert not entered.is_alive()
    flight.last()
    assert flight.promise("a") == (200, 200)


def test_quiet_waits_for_readers_and_writers_and_lets_nobody_in():
    flight = Flight(5, 1000)
    for case, stage in (("a", "working"), ("b", "reading"), ("c", "writing")):
        flight.enter(case, 10)
        flight.move(case, stage, 10)
    reached = threading.Event()

    def hush():
        with flight.quiet():
            assert flight.promise("a") == (10, 10)
            reached.set()

    thread = threading.Thread(target=hush, daemon=True)
    thread.start()
    assert not reached.wait(0.05)
    flight.move("b", "ready", 10)
    flight.leave("c")
    assert reached.wait(20)
    thread.join()
    flight.leave("a")
    assert flight.enter("d", 10)
    flight.close()
    assert not flight.enter("e", 10)
