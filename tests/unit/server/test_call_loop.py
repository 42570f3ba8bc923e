"""What a stream of calls sends, and when."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from paramd.wire.calls import READY, Answer, decode_response, encode_opening
from paramd.wire.envelope import Payload
from paramd_server.rpc.call_streams import CallLoop
from paramd_server.rpc.methods import FLUSH
from paramd_server.rpc.running_calls import RunningCalls


class Steps:
    """A dispatcher whose calls answer twice, and note how far they have come."""

    def __init__(self, *, flushes: bool) -> None:
        self.calls = RunningCalls()
        self.reached = 0
        self._flushes = flushes

    def run(self, _path: str, requests: Iterator[Payload], _context: Any) -> Iterator[Payload]:
        assert list(requests) == [b"asked"]
        yield b"first"
        if self._flushes:
            yield FLUSH
        self.reached = 1
        yield b"second"


def responses(steps: Any) -> Iterator[bytes]:
    request = encode_opening("/a/B", [b"asked"], complete=True)
    return CallLoop(steps, None).responses(iter([request]))  # type: ignore[arg-type]


def messages(response: bytes) -> tuple[list[bytes], bool]:
    answer = decode_response(response)
    assert isinstance(answer, Answer)
    return [bytes(each) for each in answer.messages], answer.status is not None


@pytest.mark.timeout(20)
def test_what_is_flushed_is_sent_before_the_call_goes_on() -> None:
    steps = Steps(flushes=True)
    sent = responses(steps)
    assert next(sent) == READY
    assert messages(next(sent)) == ([b"first"], False)
    assert steps.reached == 0
    assert messages(next(sent)) == ([b"second"], True)
    assert list(sent) == []


def test_other_answers_go_with_the_status() -> None:
    steps = Steps(flushes=False)
    sent = responses(steps)
    assert next(sent) == READY
    assert messages(next(sent)) == ([b"first", b"second"], True)
    assert list(sent) == []
