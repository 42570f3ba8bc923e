"""Large pieces of compiled work, which needs no interpreter, on several processors at a time."""

from __future__ import annotations

import _thread
import os
from collections import deque
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Final

__all__ = ["in_pieces"]

# More gain little: a few processors use all of the memory's bandwidth.
_MAX_THREADS: Final = 4
# Pieces for each thread, so that one that starts late, or is held up, does less than the others.
_PIECES_A_THREAD: Final = 4


def in_pieces(work: Callable[[int, int], None], count: int, *, least: int) -> None:
    """Does work on a range, in pieces that several threads take in turn where it is large.

    The calling thread takes pieces like the others, and waits in the end only for those that others
    have begun: where no processor, or not the GIL, is free for them, it does everything itself.

    Args:
        work: called with the begin and the end of each piece, in any order, and from any thread;
            it lets go of the GIL.
        count: the range is from 0 to it.
        least: the smallest piece that is worth a thread, which takes 50 us to start.

    Raises:
        What `work` raises first.
    """
    worth = count // max(least, 1)
    threads = 1 if worth < 2 else min(_MAX_THREADS, len(os.sched_getaffinity(0)))
    num_pieces = min(threads * _PIECES_A_THREAD, worth)
    if threads < 2:
        work(0, count)
        return
    bounds = [count * index // num_pieces for index in range(num_pieces + 1)]
    pieces = iter(list(pairwise(bounds)))
    helpers = [_Helper(work, pieces) for _ in range(min(threads, num_pieces) - 1)]
    try:
        for begin, end in pieces:
            work(begin, end)
    finally:
        deque(pieces, maxlen=0)  # After an error nobody goes on.
        for helper in helpers:
            helper.join()
    for helper in helpers:
        if helper.failure is not None:
            raise helper.failure


class _Helper:
    """A thread that takes pieces, as long as there are any.

    `threading.Thread` would have the caller wait until it runs, for 5 ms or more while another
    thread has the GIL.
    """

    def __init__(self, work: Callable[[int, int], None], pieces: Iterator[tuple[int, int]]) -> None:
        self.failure: BaseException | None = None
        self._work = work
        self._pieces = pieces
        self._done = _thread.allocate_lock()
        self._done.acquire()
        try:
            _thread.start_new_thread(self._run, ())
        except RuntimeError:
            self._done.release()  # The system has no thread: the others do its part.

    def join(self) -> None:
        self._done.acquire()

    def _run(self) -> None:
        try:
            for begin, end in self._pieces:
                self._work(begin, end)
        except BaseException as err:
            self.failure = err
        finally:
            self._done.release()
