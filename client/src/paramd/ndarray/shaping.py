"""The shapes that `reshape` takes, with MXNet's codes for axes."""

from __future__ import annotations

import math
import operator
from typing import Any

__all__ = ["resolve_shape"]

Shape = tuple[int, ...]


def resolve_shape(shape: Shape, asked: tuple[Any, ...]) -> Shape:
    """The shape that a request means.

    The codes are those of MXNet's reshape operator
    (https://mxnet.apache.org/versions/1.9.1/api/python/docs/api/ndarray/ndarray.html).

    Args:
        shape: what is reshaped.
        asked: sizes, or 0 (keep the axis), -1 (what is left over), -2 (keep all further axes),
            -3 (the product of two axes), -4 (split an axis into the two sizes that follow).

    Raises:
        ValueError: where the elements do not fit, or the codes and the axes do not.
    """
    codes = [operator.index(code) for code in asked]
    sizes: list[int] = []
    source = list(shape)
    while codes:
        code = codes.pop(0)
        if code == -2:
            sizes.extend(source)
            source.clear()
        elif code == -3:
            sizes.append(_take(source, shape, asked) * _take(source, shape, asked))
        elif code == -4:
            sizes.extend(_split(_take(source, shape, asked), codes, shape, asked))
        elif code == 0:
            # An axis of no elements is asked for by its size, where nothing is left to keep.
            sizes.append(_take(source, shape, asked) if source else 0)
        elif code >= -1:
            sizes.append(code)
            del source[:1]
        else:
            raise ValueError(f"reshape has no code {code}, but the shape asked for is {asked}")
    return _infer(shape, sizes, asked)


def _take(source: list[int], shape: Shape, asked: tuple[Any, ...]) -> int:
    if not source:
        raise _misfit(shape, asked)
    return source.pop(0)


def _split(size: int, codes: list[int], shape: Shape, asked: tuple[Any, ...]) -> Shape:
    if len(codes) < 2:
        raise ValueError(f"in reshape two sizes follow -4, but the shape asked for is {asked}")
    left, right = codes.pop(0), codes.pop(0)
    if left == -1 and right > 0:
        left = size // right
    elif right == -1 and left > 0:
        right = size // left
    if left * right != size or left < 0:
        raise _misfit(shape, asked)
    return left, right


def _infer(shape: Shape, sizes: list[int], asked: tuple[Any, ...]) -> Shape:
    total = math.prod(shape)
    if sizes.count(-1) > 1:
        raise ValueError(f"reshape infers one axis only, but the shape asked for is {asked}")
    if -1 in sizes:
        known = math.prod(size for size in sizes if size != -1)
        sizes[sizes.index(-1)] = total // known if known else 0
    if math.prod(sizes) != total:
        raise _misfit(shape, asked)
    return tuple(sizes)


def _misfit(shape: Shape, asked: tuple[Any, ...]) -> ValueError:
    return ValueError(f"cannot reshape an array of the shape {shape} into {asked}")
