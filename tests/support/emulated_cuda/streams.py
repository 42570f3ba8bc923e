"""Devices, streams and events, as CuPy has them."""

from __future__ import annotations

from typing import Any

from tests.support.emulated_cuda.emulator import current
from tests.support.emulated_cuda.scheduler import Operation, Point

__all__ = ["Device", "Event", "Stream"]


class Device:
    """A device; as a context manager the thread's current one.

    Args:
        device: its number; None for the current one.
    """

    def __init__(self, device: int | None = None) -> None:
        self._emulator = current()
        self.id = self._emulator.device if device is None else device
        self._before: list[int] = []

    def __enter__(self) -> Device:
        self._before.append(self._emulator.device)
        self._emulator.set_device(self.id)
        return self

    def __exit__(self, *_: object) -> None:
        self._emulator.set_device(self._before.pop())

    def synchronize(self) -> None:
        """Not for code that shares its devices with other threads."""
        raise self._emulator.faults.record(
            "Device.synchronize stops all threads: wait for an event"
        )


class Event:
    """A moment in a stream, once it is recorded.

    Args:
        block: as CuPy's; who waits sleeps here anyway.
        disable_timing: must be True, since timing is not emulated.
    """

    def __init__(self, block: bool = False, disable_timing: bool = False) -> None:
        self._emulator = current()
        if not disable_timing:
            raise self._emulator.faults.record(
                "an event that takes times costs more, and none is read"
            )
        self.device = self._emulator.device
        # None before it is recorded: then nobody waits for anything.
        self.point: Point | None = None

    @property
    def done(self) -> bool:
        """Whether all that was in the stream when it was recorded has run."""
        return self.point is None or self._emulator.scheduler.poll(self.point)

    def record(self, stream: Stream) -> None:
        """Makes it the moment after all that is in a stream by now."""
        if stream.device_id != self.device:
            raise self._emulator.faults.record(
                f"an event of device {self.device} is recorded in a stream of device "
                f"{stream.device_id}"
            )
        self.point = self._emulator.scheduler.now(stream.queue)

    def synchronize(self) -> None:
        """Runs all up to it."""
        if self.point is not None:
            self._emulator.scheduler.run(self.point)


class Stream:
    """A stream; as a context manager the thread's current one on the current device.

    Args:
        non_blocking: must be True: no stream waits for the null stream.

    Attributes:
        ptr: its handle.
        device_id: of its device.
    """

    def __init__(self, *, non_blocking: bool = False) -> None:
        self._emulator = current()
        if not non_blocking:
            raise self._emulator.faults.record("a stream that waits for the null stream")
        self._emulator.check_device(self._emulator.device)
        self.device_id = self._emulator.device
        self.queue = self._emulator.scheduler.new_queue(self.device_id)
        self.ptr = self.queue.ptr

    def __enter__(self) -> Stream:
        self._emulator.push_stream(self.device_id, self.ptr)
        return self

    def __exit__(self, *_: object) -> None:
        self._emulator.pop_stream(self.device_id)

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, Stream) and self.ptr == other.ptr

    def __hash__(self) -> int:
        return self.ptr

    @property
    def done(self) -> bool:
        """Whether all that is in it by now has run."""
        return self._emulator.scheduler.poll(self._emulator.scheduler.now(self.queue))

    def synchronize(self) -> None:
        """Runs all that is in it by now."""
        self._emulator.scheduler.run(self._emulator.scheduler.now(self.queue))

    def record(self, event: Event | None = None) -> Event:
        """Records an event, a new one where none is given."""
        recorded = Event(disable_timing=True) if event is None else event
        recorded.record(self)
        return recorded

    def wait_event(self, event: Event) -> None:
        """Lets what comes next wait for what the event means by now."""
        if event.point is not None:
            self._emulator.scheduler.enqueue(self.queue, Operation(_nothing, event.point))


def _nothing() -> None:
    """A wait does no more than that."""
