"""Contexts: where on the server a copy of a parameter lives.

A context names a place on the server, so a client needs no GPU to speak of `gpu(0)`.
"""

from __future__ import annotations

import re
import threading
from types import TracebackType
from typing import ClassVar

__all__ = ["Context", "Device", "cpu", "cpu_pinned", "current_context", "current_device", "gpu"]

_current = threading.local()


class Context:
    """A device of the server: `cpu(0)`, `gpu(1)`, `cpu_pinned(0)`.

    Used in a `with` block it is the current context of the thread, which `data()`, `initialize()`
    and the like use where none is given.

    Args:
        device_type: 'cpu', 'gpu', 'cpu_pinned', 'cpu_shared', or a context to copy.
        device_id: number of the device, not negative.

    Raises:
        KeyError: for an unknown device type, as in MXNet.
        ValueError: for a negative device id.
    """

    devtype2str: ClassVar[dict[int, str]] = {1: "cpu", 2: "gpu", 3: "cpu_pinned", 5: "cpu_shared"}
    devstr2type: ClassVar[dict[str, int]] = {"cpu": 1, "gpu": 2, "cpu_pinned": 3, "cpu_shared": 5}

    __slots__ = ("device_id", "device_typeid")

    def __init__(self, device_type: str | Context, device_id: int = 0) -> None:
        if isinstance(device_type, Context):
            self.device_typeid: int = device_type.device_typeid
            self.device_id: int = device_type.device_id
        else:
            self.device_typeid = self.devstr2type[device_type]
            if device_id < 0:
                raise ValueError(f"device_id must not be negative, but got {device_id}")
            self.device_id = int(device_id)

    @classmethod
    def from_string(cls, text: str) -> Context:
        """Reads 'gpu(1)', or 'gpu' for `gpu(0)`.

        Raises:
            ValueError: where the text is no context.
        """
        match = re.fullmatch(r"\s*([a-z_]+)(?:\((\d+)\))?\s*", text)
        if match is None or match[1] not in cls.devstr2type:
            raise ValueError(f"expected a context such as 'cpu(0)' or 'gpu(1)', but got {text!r}")
        return cls(match[1], int(match[2] or 0))

    @property
    def device_type(self) -> str:
        """The device type as a word, such as 'cpu'."""
        return self.devtype2str[self.device_typeid]

    @classmethod
    def default_ctx(cls) -> Context:
        """The current context of this thread."""
        return current_context()

    def empty_cache(self) -> None:
        """Does nothing: memory of the server's devices is the server's to manage.

        It exists because programs written for MXNet call it.
        """

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Context):
            return NotImplemented
        return (self.device_typeid, self.device_id) == (other.device_typeid, other.device_id)

    def __hash__(self) -> int:
        return hash((self.device_typeid, self.device_id))

    def __str__(self) -> str:
        return f"{self.device_type}({self.device_id})"

    __repr__ = __str__

    def __reduce__(self) -> tuple[type[Context], tuple[str, int]]:
        return (Context, (self.device_type, self.device_id))

    def __enter__(self) -> Context:
        # The same object may be entered again inside its own block, and by several threads.
        _stack().append(self)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        _stack().pop()


Device = Context


def _stack() -> list[Context]:
    stack: list[Context] | None = getattr(_current, "stack", None)
    if stack is None:
        stack = _current.stack = []
    return stack


def cpu(device_id: int = 0) -> Context:
    """The server's CPU context of that number. All of them are its main memory."""
    return Context("cpu", device_id)


def cpu_pinned(device_id: int = 0) -> Context:
    """Page-locked main memory of the server, where it has CUDA."""
    return Context("cpu_pinned", device_id)


def gpu(device_id: int = 0) -> Context:
    """The server's GPU of that number."""
    return Context("gpu", device_id)


def current_context() -> Context:
    """The context of the innermost `with` block of this thread, else `cpu(0)`."""
    stack = _stack()
    return stack[-1] if stack else Context("cpu", 0)


current_device = current_context
