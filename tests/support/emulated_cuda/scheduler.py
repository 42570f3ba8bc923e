"""When queued work runs: as late as CUDA allows, and in no order but what streams and events give.

Work stays in the queue of its stream until somebody waits for it, and then only it runs, with what
it depends on. So a copy without its event gives wrong data each time, not once in a thousand runs.
A seeded choice runs some work early, for other orders that a device may choose as well.
"""

from __future__ import annotations

import itertools
import random
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

__all__ = ["Operation", "Point", "Queue", "Scheduler"]

_FIRST_POINTER = 0x5000_0000
# Nobody polls more often for work that a device would have begun by itself.
_MOST_POLLS = 3


@dataclass(eq=False)
class Queue:
    """The work of one stream. Guarded by the scheduler's lock.

    Attributes:
        device: that the stream belongs to.
        ptr: the stream's handle.
        pending: what has not run.
        enqueued: how many operations there were ever.
        executed: how many of these have run.
    """

    device: int
    ptr: int
    pending: deque[Operation] = field(default_factory=deque)
    enqueued: int = 0
    executed: int = 0


@dataclass(frozen=True)
class Point:
    """A moment in a stream: after its first `position` operations."""

    queue: Queue
    position: int

    @property
    def reached(self) -> bool:
        """Whether all work before has run."""
        return self.queue.executed >= self.position


@dataclass(frozen=True)
class Operation:
    """Work in a stream.

    Attributes:
        run: does it.
        after: what has to have run before, in another stream; None for nothing.
    """

    run: Callable[[], None]
    after: Point | None = None


class Scheduler:
    """Queues of all streams.

    Attributes:
        lock: guards the queues and what memory is in use. Never held while work runs.
        random: guarded by `lock`.
        failures: devices that have failed, and what every call about their streams raises then.
        released: what finalizers want done, which may run wherever Python likes and so take no
            lock; done under `lock` before anything else is.
    """

    def __init__(self, seed: int, eagerness: float) -> None:
        """Makes a scheduler.

        Args:
            seed: of the choices.
            eagerness: the chance that an enqueued operation makes some stream run some of its work.
        """
        self.lock = threading.Lock()
        self.random = random.Random(seed)
        self.failures: dict[int, Exception] = {}
        self.released: deque[Callable[[], None]] = deque()
        self._eagerness = eagerness
        self._executing = threading.Lock()
        self._queues: dict[int, Queue] = {}
        self._pointers = itertools.count(_FIRST_POINTER, 16)
        self._polls: dict[Point, int] = {}

    @contextmanager
    def settled(self) -> Iterator[None]:
        """The lock, with all that was released before done."""
        with self.lock:
            while self.released:
                self.released.popleft()()
            yield

    def new_queue(self, device: int) -> Queue:
        """A stream's."""
        with self.lock:
            queue = Queue(device, next(self._pointers))
            self._queues[queue.ptr] = queue
            return queue

    def queue(self, ptr: int) -> Queue | None:
        """That of a stream's handle."""
        return self._queues.get(ptr)

    def append(self, queue: Queue, operation: Operation) -> None:
        """Adds work to a stream. The lock is held."""
        queue.pending.append(operation)
        queue.enqueued += 1

    def enqueue(self, queue: Queue, operation: Operation) -> None:
        """Adds work to a stream, and runs some now and then."""
        self._check(queue)
        with self.settled():
            self.append(queue, operation)
            point = self._something_to_run()
        if point is not None:
            self.run(point)

    def now(self, queue: Queue) -> Point:
        """The moment after all that is in a stream by now."""
        with self.settled():
            return Point(queue, queue.enqueued)

    def run(self, point: Point) -> None:
        """Runs what leads to a point, and nothing else."""
        self._check(point.queue)
        with self._executing:
            # By hand: chains of streams that wait for each other are longer than Python's stack.
            unfinished = [point]
            while unfinished:
                due = unfinished[-1]
                if due.reached:
                    unfinished.pop()
                    continue
                with self.lock:
                    operation = due.queue.pending[0]
                    if operation.after is None or operation.after.reached:
                        due.queue.pending.popleft()
                    else:
                        unfinished.append(operation.after)
                        continue
                try:
                    operation.run()
                finally:
                    with self.lock:
                        due.queue.executed += 1

    def poll(self, point: Point) -> bool:
        """Whether a point is reached, for one who asks and does not wait.

        By chance not at first, where work is left; asking again and again ends with True.
        """
        self._check(point.queue)
        if point.reached:
            return True
        with self.lock:
            polls = self._polls.get(point, 0) + 1
            if polls < _MOST_POLLS and self.random.random() < 0.5:
                self._polls[point] = polls
                return False
            self._polls.pop(point, None)
        self.run(point)
        return True

    def _check(self, queue: Queue) -> None:
        if queue.device in self.failures:
            raise self.failures[queue.device]

    def _something_to_run(self) -> Point | None:
        """Some work of some stream, by chance."""
        if self.random.random() >= self._eagerness:
            return None
        failed = self.failures
        busy = [
            each for each in self._queues.values() if each.pending and each.device not in failed
        ]
        queue = self.random.choice(busy)
        return Point(queue, self.random.randint(queue.executed + 1, queue.enqueued))
