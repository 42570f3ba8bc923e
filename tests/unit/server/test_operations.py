"""The window of operations: carried out once, forgotten when acknowledged."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest

from paramd.errors import InvalidArgumentError, OperationExpiredError, ShapeMismatchError
from paramd_server.core import operations
from paramd_server.core.operations import Operation, OperationWindow

IDENTITY = b"i" * 16


class Calls:
    """Carries out, counts, and answers."""

    def __init__(self, answer: bytes) -> None:
        self.answer = answer
        self.count = 0

    def __call__(self) -> bytes:
        self.count += 1
        return self.answer


def operation(sequence: int, acknowledged_below: int = 0, identity: bytes = IDENTITY) -> Operation:
    return Operation(identity, sequence, acknowledged_below)


def test_an_operation_is_carried_out_once() -> None:
    window, calls = OperationWindow(), Calls(b"answer")
    for _ in range(3):
        assert window.run(operation(1), calls) == b"answer"
    assert calls.count == 1
    assert window.answered(operation(1)) == b"answer"
    assert window.answered(operation(2)) is None


def test_an_empty_answer_is_an_answer() -> None:
    window, calls = OperationWindow(), Calls(b"")
    for _ in range(2):
        window.run(operation(1), calls)
    assert calls.count == 1


def test_what_failed_is_tried_again() -> None:
    window = OperationWindow()

    def fail() -> bytes:
        raise ShapeMismatchError("no")

    with pytest.raises(ShapeMismatchError):
        window.run(operation(1), fail)
    assert window.run(operation(1), lambda: b"yes") == b"yes"


def test_acknowledged_operations_have_expired() -> None:
    window = OperationWindow()
    for sequence in (1, 2, 3):
        window.run(operation(sequence), lambda: b"")
    window.run(operation(4, acknowledged_below=3), lambda: b"")
    assert window.answered(operation(3)) == b""
    for sequence in (1, 2):
        with pytest.raises(OperationExpiredError):
            window.run(operation(sequence), lambda: b"")
    window.run(operation(5), lambda: b"")
    with pytest.raises(OperationExpiredError):
        window.answered(operation(2))


def test_acknowledging_the_future_forgets_no_operation_to_come() -> None:
    window = OperationWindow()
    window.run(operation(1, acknowledged_below=2**64 - 1), lambda: b"first")
    assert window.answered(operation(1)) == b"first"
    assert window.run(operation(2), lambda: b"second") == b"second"


@pytest.mark.parametrize(
    ("identity", "sequence"), [(b"", 1), (b"x" * 15, 1), (b"x" * 17, 1), (b"x" * 16, 0)]
)
def test_operations_that_identify_nothing(identity: bytes, sequence: int) -> None:
    with pytest.raises(InvalidArgumentError):
        OperationWindow().run(operation(sequence, identity=identity), lambda: b"")


def test_a_session_has_a_bounded_number_of_pending_operations() -> None:
    window = OperationWindow(max_pending=3)
    for sequence in (1, 2, 3):
        window.run(operation(sequence), lambda: b"")
    with pytest.raises(InvalidArgumentError):
        window.run(operation(4), lambda: b"")
    assert window.run(operation(4, acknowledged_below=2), lambda: b"fine") == b"fine"


def test_idle_sessions_are_forgotten_and_busy_ones_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [0.0]
    monkeypatch.setattr(operations, "time", SimpleNamespace(monotonic=lambda: now[0]))
    window = OperationWindow(max_identities=2, min_idle_s=10)
    identities = [bytes([index]) * 16 for index in range(3)]
    for identity in identities:
        window.run(operation(1, identity=identity), lambda: b"old")
    assert window.answered(operation(1, identity=identities[0])) == b"old", "nobody was idle"
    now[0] = 20.0
    window.run(operation(1, identity=identities[0]), lambda: b"new")
    assert window.answered(operation(1, identity=identities[0])) == b"old"
    assert window.answered(operation(1, identity=identities[1])) is None


def test_a_repetition_waits_for_the_first() -> None:
    window = OperationWindow()
    go_on, calls, answers = threading.Event(), [], []

    def slow() -> bytes:
        calls.append(1)
        go_on.wait(10)
        return b"answer"

    threads = [
        threading.Thread(target=lambda: answers.append(window.run(operation(1), slow)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    assert window.run(operation(2), lambda: b"") == b"", "another operation does not wait"
    go_on.set()
    for thread in threads:
        thread.join(10)
    assert calls == [1]
    assert answers == [b"answer"] * 4


def test_a_flood_of_sessions_is_forgotten_before_its_time() -> None:
    window = OperationWindow(max_identities=2)
    for number in range(100):
        window.run(Operation(number.to_bytes(16, "big"), 1, 1), lambda: b"done")
    assert len(window._windows) == 32
