"""What a server knows of its sessions, as sections of a snapshot.

The operations carried out and their answers, the claims that are done, the counts of the workers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from paramd.spec import check_name
from paramd_server.arrays.backend import HostArray
from paramd_server.core.coordination import Claims
from paramd_server.core.held_buffers import BufferHolds
from paramd_server.core.operations import IDENTITY_BYTES, OperationWindow, SavedWindow
from paramd_server.core.snapshot import (
    ArraysReader,
    SavedSection,
    load_array,
    whole_array,
)
from paramd_server.core.workers import WorkerCounts, Workers

__all__ = ["ClaimsSection", "OperationsSection", "WorkersSection"]


class OperationsSection:
    """The window of operations, so that a call of before the stop is not carried out again.

    All of it is in arrays, since a window may hold the answers of very many calls.

    Args:
        operations: of the server.
    """

    name = "operations"

    def __init__(self, operations: OperationWindow) -> None:
        self._operations = operations

    def capture(self, holds: BufferHolds) -> Callable[[], SavedSection]:
        """See Section."""
        windows = self._operations.saved()
        return lambda: _saved_windows(windows)

    def restore(self, document: Mapping[str, Any], arrays: ArraysReader) -> None:
        """See Section."""
        identities = load_array(arrays, "identities").tobytes()
        floors = _list(load_array(arrays, "floors"))
        counts = _list(load_array(arrays, "counts"))
        sequences = _list(load_array(arrays, "sequences"))
        sizes = _list(load_array(arrays, "sizes"))
        answers = load_array(arrays, "answers").tobytes()
        if not (
            len(identities) == len(floors) * IDENTITY_BYTES
            and len(counts) == len(floors)
            and sum(counts) == len(sequences) == len(sizes)
            and sum(sizes) == len(answers)
        ):
            raise ValueError("the lists of the window do not fit one another")
        windows, entry, position = [], 0, 0
        for index, (floor, count) in enumerate(zip(floors, counts, strict=True)):
            held = {}
            for sequence, size in zip(
                sequences[entry : entry + count], sizes[entry : entry + count], strict=True
            ):
                held[sequence] = answers[position : position + size]
                position += size
            entry += count
            identity = identities[index * IDENTITY_BYTES : (index + 1) * IDENTITY_BYTES]
            windows.append(SavedWindow(identity, floor, held))
        self._operations.take_up(windows)


class ClaimsSection:
    """The claims that are done. One that is not is dropped: the work goes to who asks next.

    Args:
        claims: of the server.
    """

    name = "claims"

    def __init__(self, claims: Claims) -> None:
        self._claims = claims

    def capture(self, holds: BufferHolds) -> Callable[[], SavedSection]:
        """See Section."""
        claims = self._claims.done()

        def finish() -> SavedSection:
            done = [
                [name, identity.hex(), sequence] for name, (identity, sequence) in claims.items()
            ]
            return SavedSection({"done": done}, blank=not done)

        return finish

    def restore(self, document: Mapping[str, Any], arrays: ArraysReader) -> None:
        """See Section."""
        self._claims.take_up(
            {
                check_name(name): (bytes.fromhex(identity), int(sequence))
                for name, identity, sequence in document["done"]
            }
        )


class WorkersSection:
    """The names of the sessions, and how much came from each.

    Args:
        workers: of the server.
    """

    name = "workers"

    def __init__(self, workers: Workers) -> None:
        self._workers = workers

    def capture(self, holds: BufferHolds) -> Callable[[], SavedSection]:
        """See Section."""
        counts = self._workers.all()

        def finish() -> SavedSection:
            document = [
                [each.identity.hex(), each.worker, each.num_pushes, each.num_pushed_tensors]
                for each in counts
            ]
            # A session that came and did nothing is nothing to keep.
            blank = not any(each.num_pushes for each in counts)
            return SavedSection({"workers": document}, blank=blank)

        return finish

    def restore(self, document: Mapping[str, Any], arrays: ArraysReader) -> None:
        """See Section."""
        self._workers.take_up(
            [
                WorkerCounts(bytes.fromhex(identity), worker, int(pushes), int(tensors))
                for identity, worker, pushes, tensors in document["workers"]
            ]
        )


def _saved_windows(windows: list[SavedWindow]) -> SavedSection:
    answers = [answer for window in windows for answer in window.answers.values()]
    sequences = [sequence for window in windows for sequence in window.answers]
    arrays = [
        whole_array("identities", _bytes(b"".join(window.identity for window in windows))),
        whole_array("floors", _numbers([window.floor for window in windows])),
        whole_array("counts", _numbers([len(window.answers) for window in windows])),
        whole_array("sequences", _numbers(sequences)),
        whole_array("sizes", _numbers([len(answer) for answer in answers])),
        whole_array("answers", _bytes(b"".join(answers))),
    ]
    return SavedSection({}, arrays, blank=not windows)


def _numbers(values: list[int]) -> HostArray:
    # Sequences are uint64, which is no dtype of a parameter: the same bits as int64.
    return np.array(values, np.uint64).view(np.int64)


def _list(array: HostArray) -> list[int]:
    values: list[int] = array.view(np.uint64).tolist()
    return values


def _bytes(data: bytes) -> HostArray:
    return np.frombuffer(data, np.uint8)
