"""The module `cupy` that code under test imports, made of this package.

It is one object for the life of the process, so that modules may keep what they imported; the
machine behind it is another one each time that it is installed.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, Final

from tests.support.emulated_cuda.device_pool import MemoryPointer, MemoryPool, OutOfMemoryError
from tests.support.emulated_cuda.emulator import Emulator, current, switched_on
from tests.support.emulated_cuda.pinned_pool import PinnedMemoryPool
from tests.support.emulated_cuda.raw_module import RawKernel, RawModule
from tests.support.emulated_cuda.runtime import FUNCTIONS
from tests.support.emulated_cuda.streams import Device, Event, Stream

__all__ = ["VERSION", "install"]

VERSION: Final = "14.0.0"
_PACKAGES: Final = ("cupy", "cupyx", "cupy_backends")


@contextmanager
def install(
    *,
    num_devices: int = 2,
    memory_bytes: int = 1 << 30,
    pinned_bytes: int = 1 << 30,
    seed: int = 0,
    eagerness: float | None = None,
) -> Iterator[Emulator]:
    """Makes `import cupy` give the stand-in; afterwards it gives what it gave before.

    Args:
        num_devices: how many devices there are; may be 0.
        memory_bytes: of each device.
        pinned_bytes: the most that the host lets be pinned.
        seed: of all choices. With a multiple of 3, nothing runs before somebody waits for it.
        eagerness: the chance that an operation makes some stream run early; None: by the seed.

    Yields:
        The machine. Its `faults` are for tests that make some: they take them out again.

    Raises:
        EmulationFault: at the end, where there are faults, also if somebody swallowed them.
        RuntimeError: where it is installed already.
    """
    emulator = Emulator(
        num_devices=num_devices,
        memory_bytes=memory_bytes,
        pinned_bytes=pinned_bytes,
        seed=seed,
        eagerness=eagerness,
    )
    with switched_on(emulator), _in_place_of(_modules()):
        yield emulator


@contextmanager
def _in_place_of(modules: dict[str, ModuleType]) -> Iterator[None]:
    set_aside = _take_out()
    sys.modules.update(modules)
    try:
        yield
    finally:
        _take_out()
        sys.modules.update(set_aside)


def _take_out() -> dict[str, ModuleType]:
    names = [name for name in sys.modules if name.partition(".")[0] in _PACKAGES]
    return {name: sys.modules.pop(name) for name in names}


@functools.cache
def _modules() -> dict[str, ModuleType]:
    """By their names."""
    memory = _module(
        "cupy.cuda.memory",
        MemoryPool=MemoryPool,
        MemoryPointer=MemoryPointer,
        OutOfMemoryError=OutOfMemoryError,
    )
    runtime = _module("cupy.cuda.runtime", **FUNCTIONS)
    cuda = _module(
        "cupy.cuda",
        Device=Device,
        Event=Event,
        MemoryPool=MemoryPool,
        MemoryPointer=MemoryPointer,
        PinnedMemoryPool=PinnedMemoryPool,
        Stream=Stream,
        alloc_pinned_memory=_alloc_pinned_memory,
        memory=memory,
        runtime=runtime,
    )
    cupy = _module("cupy", __version__=VERSION, RawKernel=RawKernel, RawModule=RawModule, cuda=cuda)
    return {module.__name__: module for module in (cupy, cuda, memory, runtime)}


def _module(name: str, **members: Any) -> ModuleType:
    module = ModuleType(name)
    is_package = name in ("cupy", "cupy.cuda")
    module.__spec__ = ModuleSpec(name, None, is_package=is_package)
    if is_package:
        module.__path__ = []
    vars(module).update(members)
    return module


def _alloc_pinned_memory(size: int) -> Any:
    """From a pool that all callers share."""
    return _shared_pool(current()).malloc(size)


@functools.lru_cache(maxsize=1)
def _shared_pool(emulator: Emulator) -> PinnedMemoryPool:
    # For the machine that is the current one.
    return PinnedMemoryPool()
