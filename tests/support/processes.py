"""Children of tests."""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Callable
from typing import Final

__all__ = ["forked", "status_of"]

_SECONDS: Final = 60


def forked(body: Callable[[], None]) -> int:
    """Runs a function in a forked child, which is killed where it hangs; gives its id."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        signal.alarm(_SECONDS)
        body()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def status_of(pid: int) -> int:
    """Waits for a child's end: its exit status, or minus the signal that has ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
