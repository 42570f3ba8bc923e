"""Reads values in the memory that a server of the same host shares: no call, no round trip.

Every copy has a sequence in the server's table of places, which is odd while somebody changes the
copy. What is read counts where the sequences of all copies were even before, and are the same
afterwards: then all of it is of one moment. Otherwise it is read again, a few times; whoever has no
luck asks the server, like a client on any other host.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np

from paramd.context import Context
from paramd.errors import ParamdError
from paramd.spec import Part, Selector, TensorHead, Version, check_region, region_slices
from paramd.transport.local.places import Located, Places
from paramd.transport.receiving import Out, OutArray, Place
from paramd.transport.records import TensorValue
from paramd.wire.directory import NO_STEP, SlotWord

__all__ = ["LocalValues"]

_log = logging.getLogger(__name__)

_TRIES: Final = 3
# How many reads go by before the server is asked again for a copy that it could not share.
_READS_WITHOUT: Final = 64

_SEGMENT: Final = int(SlotWord.SEGMENT)
_OFFSET: Final = int(SlotWord.OFFSET)
_LAYOUT: Final = int(SlotWord.LAYOUT)
_COUNTER: Final = int(SlotWord.COUNTER)
_TRAINER: Final = int(SlotWord.STEP_TRAINER)
_STEP: Final = int(SlotWord.STEP_NUMBER)

Array = np.ndarray[Any, Any]
Key = tuple[str, Context | None, Part | None, Context]


class LocalValues:
    """The values of one server, as one process reads them. Thread-safe.

    Args:
        places: the server's memory.
    """

    def __init__(self, places: Places) -> None:
        self._places = places
        self._words = places.words
        # The thread that listens to the server keeps the places, also of a session that nobody has
        # closed.
        weakref.finalize(self, places.close).atexit = False
        # Entries come and go by single operations, so that no lock is needed.
        self._located: dict[Key, Located] = {}
        # Of copies that cannot be shared: how many reads go by before the server is asked again.
        self._without: dict[Key, int] = {}

    @property
    def usable(self) -> bool:
        """Whether the server lives, and this is the process that it let in."""
        return self._places.usable

    def close(self) -> None:
        """Lets go of the memory. Closing twice is the same."""
        self._places.close()

    def finds(self, selectors: Sequence[Selector], current_context: Context) -> bool:
        """Whether `get` is likely to read dense values."""
        return self._find(selectors, current_context, "default") is not None

    def head(self, selector: Selector, current_context: Context) -> TensorHead | None:
        """The header of a dense value as it is now, without its version; None as of `get`."""
        found = self._find([selector], current_context, "default")
        return None if found is None or self._begin(found[0]) is None else found[0].head

    def get(
        self,
        selectors: Sequence[Selector],
        current_context: Context,
        out: Sequence[Out | Place] | None,
    ) -> list[TensorValue] | None:
        """Reads dense values; None where the server is to be asked.

        Args:
            selectors: the arrays.
            current_context: for selectors without a context.
            out: for each selector where it is received to, or None for a new array.

        Raises:
            ShapeMismatchError, DTypeMismatchError, InvalidArgumentError: for what does not fit, or
                cannot be written to, in `out`.
            InvalidRegionError: for a region that the value does not have.
        """
        read = self._read(selectors, current_context, out, with_heads=False)
        return None if read is None else read[0]

    def get_data(
        self,
        selectors: Sequence[Selector],
        current_context: Context,
        out: Sequence[Out | Place] | None,
    ) -> list[tuple[TensorHead, TensorValue]] | None:
        """As `get`, each with its header."""
        read = self._read(selectors, current_context, out, with_heads=True)
        if read is None:
            return None
        values, heads = read
        return [
            (replace(head, shape=value.shape), value)
            for head, value in zip(heads, values, strict=True)
        ]

    def take_rows(
        self, selector: Selector, ids: Array, current_context: Context, out: Out
    ) -> tuple[TensorHead, Array] | None:
        """Gathers rows of a row_sparse parameter; None where the server is to be asked.

        Args:
            selector: the copy, without a region.
            ids: sorted and unique, shape (n,).
            current_context: for a selector without a context.
            out: array of shape (n, *shape[1:]) to receive into, or None for a new one.

        Raises:
            ShapeMismatchError, DTypeMismatchError, InvalidArgumentError: as `get`.
        """
        array = OutArray(selector.name, out)
        for _ in range(_TRIES):
            found = self._find([selector], current_context, "row_sparse")
            # Of wrong ids the server says what is wrong with them.
            if found is None or not _are_ids(ids, found[0].head.shape[0]):
                return None
            (located,) = found
            begun = self._begin(located)
            if begun is None:
                continue
            sequence, source = begun
            array.open((len(ids), *located.head.shape[1:]), located.head.dtype)
            head = self._head(located)
            # mode='clip' spares a buffer and a second check of every id.
            np.take(source, ids, axis=0, out=array.target, mode="clip")
            if self._words[located.first] == sequence:
                return head, array.complete()
        return None

    def _read(
        self,
        selectors: Sequence[Selector],
        current_context: Context,
        out: Sequence[Out | Place] | None,
        *,
        with_heads: bool,
    ) -> tuple[list[TensorValue], list[TensorHead]] | None:
        words, heads = self._words, []
        for _ in range(_TRIES):
            found = self._find(selectors, current_context, "default")
            if found is None:
                return None
            begun = [self._begin(located) for located in found]
            if with_heads:
                heads = [self._head(located) for located in found]
            sequences, targets = [], []
            for index, each in enumerate(begun):
                if each is None:
                    break
                into = None if out is None else out[index]
                sequences.append(each[0])
                targets.append(_copy(selectors[index], each[1], into))
            else:
                if [words[located.first] for located in found] == sequences:
                    return [_complete(target) for target in targets], heads
        return None

    def _find(
        self, selectors: Sequence[Selector], current_context: Context, stype: str
    ) -> list[Located] | None:
        """The copies; None where one cannot be read here."""
        if not self._places.usable:
            return None
        keys = [(each.name, each.context, each.part, current_context) for each in selectors]
        found = [self._located.get(key) for key in keys]
        if None in found:
            missing = {
                key: selector
                for key, selector, located in zip(keys, selectors, found, strict=True)
                if located is None
            }
            if not self._locate(missing, current_context):
                return None
            found = [self._located.get(key) for key in keys]
        copies = [each for each in found if each is not None and each.head.stype == stype]
        return copies if len(copies) == len(selectors) else None

    def _locate(self, missing: dict[Key, Selector], current_context: Context) -> bool:
        """Asks the server for copies; False where one of them cannot be read here."""
        for key in missing:
            left = self._without.get(key, 0)
            if left:
                self._without[key] = left - 1
                return False
        try:
            found = self._places.locate(
                [replace(selector, region=None) for selector in missing.values()], current_context
            )
        except ParamdError as err:
            _log.debug("values are asked for over gRPC: %s", err)
            return False
        for key, located in zip(missing, found, strict=True):
            if located is None:
                self._without[key] = _READS_WITHOUT
            else:
                self._without.pop(key, None)
                located.key = key
                self._located[key] = located
        return None not in found

    def _begin(self, located: Located) -> tuple[int, Array] | None:
        """The sequence of a copy, and its array of that moment; None where it is being changed."""
        words, first = self._words, located.first
        sequence: int = words[first]
        if sequence & 1:
            return None
        segment, offset = words[first + _SEGMENT], words[first + _OFFSET]
        if words[first + _LAYOUT] != located.layout or not segment:
            # Another shape or dtype, or not in shared memory any more: the server is asked anew.
            self._forget(located)
            return None
        seen = located.seen
        if seen is None or seen.segment != segment or seen.offset != offset:
            try:
                seen = self._places.move(located, segment, offset)
            except ParamdError as err:
                _log.debug("values are asked for over gRPC: %s", err)
                return None
            if seen is None:
                return None
        return sequence, seen.source

    def _forget(self, located: Located) -> None:
        self._places.forget(located)
        if self._located.get(located.key) is located:
            self._located.pop(located.key, None)

    def _head(self, located: Located) -> TensorHead:
        """What goes with the values; right where the sequence turns out to be the same."""
        words, first = self._words, located.first
        trainer = words[first + _TRAINER]
        return replace(
            located.head,
            version=Version(self._places.epoch, words[first + _COUNTER]),
            step=None if trainer == NO_STEP else (trainer, words[first + _STEP]),
        )


def _copy(selector: Selector, source: Array, out: Out | Place) -> Array | OutArray | Place:
    """Copies a value to where it is to go.

    Returns:
        An array that is complete, or what `_complete` completes.
    """
    if selector.region is not None:
        check_region(selector.name, selector.region, source.shape)
        source = source[region_slices(selector.region)]
    if out is None:
        target = np.empty(source.shape, source.dtype)
    elif isinstance(out, np.ndarray):
        if out.shape != source.shape or out.dtype != source.dtype or not out.flags.writeable:
            # Raises what is wrong.
            OutArray(selector.name, out).open(source.shape, source.dtype)
        target = out
    else:
        # What else a user may give has no such methods, and is refused.
        given: Any = out
        place = given if isinstance(given, Place) else OutArray(selector.name, given)
        memory = place.open(source.shape, source.dtype)
        if source.size:
            np.copyto(np.frombuffer(memory, source.dtype).reshape(source.shape), source)
        return place
    np.copyto(target, source)
    return target


def _complete(target: Array | OutArray | Place) -> Array:
    return target if isinstance(target, np.ndarray) else target.complete()


def _are_ids(ids: Array, num_rows: int) -> bool:
    """Whether row ids are sorted, unique and in range."""
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        return False
    if not len(ids):
        return True
    return bool(ids[0] >= 0 and ids[-1] < num_rows and (ids[1:] > ids[:-1]).all())
