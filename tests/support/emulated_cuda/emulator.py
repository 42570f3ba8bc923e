"""The machine that is emulated: its devices, and what each thread has made current."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from tests.support.emulated_cuda.device_memory import DeviceMemory
from tests.support.emulated_cuda.errors import (
    ILLEGAL_ADDRESS,
    INVALID_DEVICE,
    NO_DEVICE,
    CUDARuntimeError,
)
from tests.support.emulated_cuda.faults import EmulationFault, Faults
from tests.support.emulated_cuda.pinned_memory import PinnedMemory
from tests.support.emulated_cuda.scheduler import Scheduler

__all__ = ["DEVICE_NAME", "Emulator", "current", "switched_on"]

DEVICE_NAME: Final = "Emulated"
# Taken in turn by the seed: nothing runs before it must, now and then something does, often.
_EAGERNESS: Final = (0.0, 0.1, 0.5)


class _Thread(threading.local):
    """What a thread has made current: its device, and by device its streams, innermost last."""

    def __init__(self) -> None:
        self.device = 0
        self.streams: dict[int, list[int]] = {}


class Emulator:
    """An emulated machine.

    Attributes:
        seed: of all choices.
        on: whether it is the one that the stand-in shows.
        faults: what the code under test did wrongly so far.
        scheduler: of what is queued.
        memories: of the devices.
        pinned: memory of the host.
    """

    def __init__(
        self,
        *,
        num_devices: int = 2,
        memory_bytes: int = 1 << 30,
        pinned_bytes: int = 1 << 30,
        seed: int = 0,
        eagerness: float | None = None,
    ) -> None:
        """Makes a machine.

        Args:
            num_devices: how many there are; may be 0.
            memory_bytes: of each device.
            pinned_bytes: the most that the host lets be pinned.
            seed: of all choices. With a multiple of 3, nothing runs before somebody waits for it.
            eagerness: the chance that an operation makes some stream run early; None: by the seed.
        """
        self.seed = seed
        self.on = False
        self.faults = Faults()
        self.scheduler = Scheduler(
            seed, _EAGERNESS[seed % len(_EAGERNESS)] if eagerness is None else eagerness
        )
        self.memories = [DeviceMemory(device, memory_bytes) for device in range(num_devices)]
        self.pinned = PinnedMemory(pinned_bytes)
        self._thread = _Thread()

    @property
    def device(self) -> int:
        """The thread's current device."""
        return self._thread.device

    def set_device(self, device: int) -> None:
        """Makes a device the thread's current one. Raises CUDARuntimeError."""
        self.check_device(device)
        self._thread.device = device

    def check_device(self, device: int) -> None:
        """Raises CUDARuntimeError where there is no such device."""
        if not self.memories:
            raise CUDARuntimeError(NO_DEVICE)
        if not 0 <= device < len(self.memories):
            raise CUDARuntimeError(INVALID_DEVICE)

    def fail(self, device: int, status: int = ILLEGAL_ADDRESS) -> None:
        """Lets a device fail: from now on its streams only raise a CUDARuntimeError."""
        self.scheduler.failures[device] = CUDARuntimeError(status)

    def current_stream(self) -> int | None:
        """Handle of the thread's current stream on its current device; None for the null stream."""
        streams = self._thread.streams.get(self.device)
        return streams[-1] if streams else None

    def push_stream(self, device: int, stream: int) -> None:
        """Makes a stream of the current device current."""
        if device != self.device:
            raise self.faults.record(
                f"a stream of device {device} is made current while device {self.device} is"
            )
        self._thread.streams.setdefault(device, []).append(stream)

    def pop_stream(self, device: int) -> None:
        """Makes the stream before current again."""
        self._thread.streams[device].pop()


_current: Emulator | None = None


def current() -> Emulator:
    """The machine that the stand-in for CuPy shows now."""
    if _current is None:
        raise RuntimeError("the stand-in for CuPy is used while it is not installed")
    return _current


@contextmanager
def switched_on(emulator: Emulator) -> Iterator[Emulator]:
    """Makes a machine the one that the stand-in shows.

    Raises:
        EmulationFault: at the end, where there are faults, also if somebody swallowed them.
    """
    global _current
    if _current is not None:
        raise RuntimeError("the stand-in for CuPy is installed already")
    _current, emulator.on = emulator, True
    try:
        yield emulator
    except BaseException as err:
        for fault in emulator.faults:
            err.add_note(f"fault: {fault}")
        raise
    finally:
        _current, emulator.on = None, False
    if emulator.faults:
        raise EmulationFault(f"seed {emulator.seed}: " + "; ".join(emulator.faults))
