"""What goes wrong with files, in the classes that MXNet's programs expect."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from paramd.errors import FileFailedError, FileMissingError, ParamdError

__all__ = ["file_errors"]


@contextmanager
def file_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turns the system's errors in the block into FileFailedError, which names the file.

    Args:
        path: the file, as its user knows it.

    Raises:
        FileMissingError: where it does not exist. It is a FileNotFoundError.
        FileFailedError: for everything else. It is an OSError; the system's own is its cause.
    """
    try:
        yield
    except ParamdError:
        # A lost connection is one of the system's errors too.
        raise
    except OSError as err:
        cls = FileMissingError if isinstance(err, FileNotFoundError) else FileFailedError
        raise cls(f"{os.fspath(path)}: {err.strerror or err}") from err
