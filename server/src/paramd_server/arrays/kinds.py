"""Kinds of devices beside main memory, as `Devices` looks for them and opens them.

Those of CUDA are always among them (see `devices`); a further one is registered here. A kind costs
nothing until somebody asks for one of its contexts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from paramd_server.arrays.backend import ArrayBackend, DeviceStatus
from paramd_server.arrays.memory import MemoryAccount, SpareBuffers

__all__ = [
    "BackendKind",
    "DeviceError",
    "Found",
    "HostMemory",
    "register_kind",
    "registered_kinds",
    "unregister_kind",
]


@dataclass(frozen=True)
class HostMemory:
    """What backends share of the host.

    Attributes:
        account: counts what they take of main memory.
        spares: where freed host buffers wait.
        gpu_memory_limit: the most bytes that buffers take on each GPU; 0 for nine tenths of it.
    """

    account: MemoryAccount
    spares: SpareBuffers
    gpu_memory_limit: int = 0


@dataclass(frozen=True)
class Found:
    """What a look at the machine found.

    Attributes:
        count: how many contexts of a kind there are; None where any number stands for the same.
        devices: those that have a name and a size, with nothing in use.
        why_none: where `count` is 0, why, for people; else ''.
    """

    count: int | None
    devices: Sequence[DeviceStatus] = ()
    why_none: str = ""


class DeviceError(Exception):
    """A device that seemed to be there cannot be used; the message says why, for people."""


class BackendKind(Protocol):
    """One kind of device."""

    @property
    def device_type(self) -> str:
        """Of its contexts."""

    def look(self, memory: HostMemory) -> Found:
        """Looks what the machine has, without loading anything large. Never raises."""

    def open(self, memory: HostMemory) -> ArrayBackend:
        """Makes the backend. Called once, when one of its contexts is asked for first.

        Raises:
            DeviceError: where it cannot be made.
        """


_registered: dict[str, BackendKind] = {}


def register_kind(kind: BackendKind) -> None:
    """Adds a kind, for the servers that start from now on; another one of its type goes."""
    _registered[kind.device_type] = kind


def registered_kinds() -> tuple[BackendKind, ...]:
    """What `register_kind` was given."""
    return tuple(_registered.values())


def unregister_kind(device_type: str) -> None:
    """Takes a kind away again, where there is one."""
    _registered.pop(device_type, None)
