"""Changes, and moments between them."""

from __future__ import annotations

import threading
from contextlib import contextmanager

import pytest

from paramd_server.core.gate import Gate
from paramd_server.core.operations import Operation, OperationWindow

WAIT_S = 10.0


@contextmanager
def running(*targets):  # type: ignore[no-untyped-def]
    threads = [threading.Thread(target=target, daemon=True) for target in targets]
    for thread in threads:
        thread.start()
    yield threads
    for thread in threads:
        thread.join(WAIT_S)
        assert not thread.is_alive()


def test_moment_waits_for_changes_under_way_and_lets_no_other_one_in() -> None:
    gate = Gate()
    inside, end, waiting = threading.Event(), threading.Event(), threading.Event()
    seen: list[str] = []

    def change() -> None:
        with gate.shared(), gate.shared():
            inside.set()
            assert end.wait(WAIT_S)
            seen.append("change")

    def moment() -> None:
        waiting.set()
        # The thread itself may go on with what others may not.
        with gate.exclusive(), gate.shared():
            seen.append("moment")

    def late() -> None:
        with gate.shared():
            seen.append("late")

    with running(change):
        assert inside.wait(WAIT_S)
        with running(moment):
            assert waiting.wait(WAIT_S)
            while gate._owner is None:
                pass
            with running(late):
                assert seen == []
                end.set()
    assert seen == ["change", "moment", "late"]


def test_thread_that_changes_something_cannot_wait_for_itself() -> None:
    gate = Gate()
    with gate.shared(), pytest.raises(RuntimeError, match="its own end"), gate.exclusive():
        pass
    with gate.exclusive(), pytest.raises(RuntimeError), gate.exclusive():
        pass
    with gate.shared():
        pass


def test_failure_inside_leaves_it_open() -> None:
    gate = Gate()
    for way in (gate.shared, gate.exclusive):
        with pytest.raises(ZeroDivisionError), way():
            raise ZeroDivisionError
    with gate.exclusive():
        pass


def test_many_threads_pass_and_no_moment_sees_half_a_change() -> None:
    gate, lock = Gate(), threading.Lock()
    values = {"left": 0, "right": 0}

    def change() -> None:
        for _ in range(300):
            with gate.shared():
                with lock:
                    values["left"] += 1
                with lock:
                    values["right"] += 1

    def look() -> None:
        for _ in range(100):
            with gate.exclusive():
                assert values["left"] == values["right"]

    with running(change, change, change, look, look):
        pass
    assert values == {"left": 900, "right": 900}


def test_effect_of_an_operation_and_its_answer_are_on_one_side_of_every_moment() -> None:
    window = OperationWindow()
    effects: list[int] = []
    between, go_on = threading.Event(), threading.Event()

    def carry_out() -> bytes:
        effects.append(1)
        between.set()
        assert go_on.wait(WAIT_S)
        return b"answer"

    seen: list[tuple[int, int]] = []

    def moment() -> None:
        with window.gate.exclusive():
            answers = sum(len(each.answers) for each in window.saved())
            seen.append((len(effects), answers))

    with running(lambda: window.run(Operation(b"a" * 16, 1, 0), carry_out)):
        assert between.wait(WAIT_S)
        with running(moment):
            while window.gate._owner is None:
                pass
            assert seen == []
            go_on.set()
    assert seen == [(1, 1)]
