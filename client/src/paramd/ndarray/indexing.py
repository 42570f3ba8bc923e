"""Basic indexing as data: which part of an array a view shows, and in which shape.

A view of a view is again one region of the stored array, so that a chain such as `x[2:8][::2][1]`
ends as one range for each stored axis, whatever is stored where. The rules are NumPy's
(https://numpy.org/doc/stable/user/basics.indexing.html).
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from types import EllipsisType
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from paramd.errors import BroadcastError, InvalidRegionError

__all__ = ["EMPTY_AXIS", "NEW_AXIS", "Range", "View", "broadcast_source", "is_basic"]

Shape = tuple[int, ...]

# Axes of a view that no stored axis is behind: of size 1, and of size 0 after slicing.
NEW_AXIS: Final = -1
EMPTY_AXIS: Final = -2


@dataclass(frozen=True, slots=True)
class Range:
    """Indices of one stored axis: begin, begin + step, ..., `count` of them.

    Attributes:
        begin: the first index; 0 where count is 0.
        count: how many, not negative.
        step: distance between two, not 0, may be negative; 1 where count is below 2.
    """

    begin: int
    count: int
    step: int

    def pick(self, index: int) -> Range:
        """The single one that is at `index`, from 0 to count - 1."""
        return Range(self.begin + index * self.step, 1, 1)

    def narrow(self, key: slice) -> Range:
        """Those that a slice of this range leaves."""
        begin, end, step = key.indices(self.count)
        count = len(range(begin, end, step))
        if count == 0:
            return Range(0, 0, 1)
        return Range(self.begin + begin * self.step, count, step * self.step if count > 1 else 1)

    def to_slice(self) -> slice:
        """The slice of the stored axis that selects these indices."""
        end = self.begin + self.count * self.step
        return slice(self.begin, end if end >= 0 else None, self.step)


@dataclass(frozen=True, slots=True)
class View:
    """A rectangular part of a stored array, and the axes that it shows.

    Attributes:
        stored_shape: shape of the stored array.
        ranges: the part: one range for each stored axis.
        axes: for each axis of the view the stored axis that it runs over, in ascending order, or
            NEW_AXIS or EMPTY_AXIS. A stored axis that is missing was indexed by a number.
    """

    stored_shape: Shape
    ranges: tuple[Range, ...]
    axes: tuple[int, ...]

    @classmethod
    def whole(cls, shape: Shape) -> View:
        """All of an array of that shape, as it is."""
        return cls(shape, tuple(Range(0, size, 1) for size in shape), tuple(range(len(shape))))

    @property
    def shape(self) -> Shape:
        """Shape of the view."""
        return tuple(self._range(axis).count for axis in self.axes)

    @property
    def size(self) -> int:
        """Number of elements in the view."""
        return math.prod(self.shape)

    @property
    def part_shape(self) -> Shape:
        """Shape of the part with every stored axis in it, those indexed by a number included."""
        return tuple(chosen.count for chosen in self.ranges)

    @property
    def is_whole(self) -> bool:
        """Whether the view shows the whole stored array, in whatever shape."""
        return self.size > 0 and all(
            chosen == Range(0, size, 1)
            for chosen, size in zip(self.ranges, self.stored_shape, strict=True)
        )

    def index(self, key: Any) -> View:
        """The view that basic indexing of this view gives.

        Args:
            key: something for which `is_basic` holds.

        Raises:
            InvalidRegionError: for a number out of bounds, too many indices, or two ellipses.
            ValueError: for a slice with step 0.
        """
        ranges = list(self.ranges)
        axes: list[int] = []
        position = 0
        for item in self._expand(key if isinstance(key, tuple) else (key,)):
            if item is None:
                axes.append(NEW_AXIS)
                continue
            axis = self.axes[position]
            current = self._range(axis)
            if isinstance(item, slice):
                chosen = current.narrow(item)
                axes.append(axis if axis >= 0 else (NEW_AXIS if chosen.count else EMPTY_AXIS))
            else:
                chosen = current.pick(_bounded(item, current.count, position))
            if axis >= 0:
                ranges[axis] = chosen
            position += 1
        return View(self.stored_shape, tuple(ranges), tuple(axes))

    def with_new_axis(self) -> View:
        """This view with one more axis, of size 1, at the end."""
        return View(self.stored_shape, self.ranges, (*self.axes, NEW_AXIS))

    def of(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Applies the view to an array of `stored_shape`.

        Returns:
            A NumPy view of the array, of `shape`, also where it has no axes.
        """
        items: list[int | slice | EllipsisType | None] = []
        stored = 0
        for axis in self.axes:
            if axis < 0:
                items.append(None)
                continue
            items.extend(self.ranges[index].begin for index in range(stored, axis))
            items.append(self.ranges[axis].to_slice())
            stored = axis + 1
        items.extend(self.ranges[index].begin for index in range(stored, len(self.ranges)))
        emptied = (slice(0 if axis == EMPTY_AXIS else None) for axis in self.axes)
        return array[(*items, ...)][(*emptied, ...)]

    def align(self, value: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Reshapes a value for the view into one for the part of the stored array.

        Args:
            value: broadcasts to `shape`, of one element or more; axes of size 1 in front of it may
                be more than the view has.

        Returns:
            The value, which broadcasts to `part_shape` in the same way. It is not broadcast yet.

        Raises:
            BroadcastError: where it does not broadcast.
        """
        sizes = dict(zip(self.axes, broadcast_source(value.shape, self.shape), strict=True))
        return value.reshape([sizes.get(axis, 1) for axis in range(len(self.ranges))])

    def _range(self, axis: int) -> Range:
        if axis >= 0:
            return self.ranges[axis]
        return Range(0, 1 if axis == NEW_AXIS else 0, 1)

    def _expand(self, items: tuple[Any, ...]) -> list[int | slice | None]:
        """The items with the ellipsis written out, which is at the end if there is none."""
        ellipses = sum(item is Ellipsis for item in items)
        if ellipses > 1:
            raise InvalidRegionError("an index can hold one ellipsis ('...') only")
        used = sum(item is not None and item is not Ellipsis for item in items)
        missing = len(self.axes) - used
        if missing < 0:
            raise InvalidRegionError(
                f"too many indices ({used}) for array with {len(self.axes)} dimensions"
            )
        expanded: list[int | slice | None] = []
        for item in items if ellipses else (*items, ...):
            if item is Ellipsis:
                expanded.extend([slice(None)] * missing)
            elif item is None or isinstance(item, slice):
                expanded.append(item)
            else:
                expanded.append(operator.index(item))
        return expanded


def is_basic(key: Any) -> bool:
    """Whether an index is of whole numbers, slices, Ellipsis and None only, and so gives a view."""
    return all(_is_basic_item(item) for item in (key if isinstance(key, tuple) else (key,)))


def broadcast_source(source: Shape, target: Shape) -> Shape:
    """The shape of a value that is assigned, with as many axes as the target.

    Args:
        source: shape of the value.
        target: shape of what it is assigned to.

    Returns:
        The source without axes of size 1 in front that the target lacks, or with more of them.

    Raises:
        BroadcastError: where it does not broadcast to the target.
    """
    extra = max(len(source) - len(target), 0)
    aligned = (1,) * (len(target) - len(source)) + source[extra:]
    fits = all(one in (1, other) for one, other in zip(aligned, target, strict=True))
    if not fits or any(size != 1 for size in source[:extra]):
        raise BroadcastError(
            f"a value of the shape {source} does not broadcast to the shape {target}"
        )
    return aligned


def _is_basic_item(item: Any) -> bool:
    if item is None or item is Ellipsis or isinstance(item, (slice, int, np.integer)):
        return True
    # Arrays of one number may have __index__ too, and are still index arrays.
    return hasattr(item, "__index__") and not hasattr(item, "__array__")


def _bounded(index: int, count: int, axis: int) -> int:
    if not -count <= index < count:
        raise InvalidRegionError(
            f"index {index} is out of bounds for axis {axis} with size {count}"
        )
    return index + count if index < 0 else index
