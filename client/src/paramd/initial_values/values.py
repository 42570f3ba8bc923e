"""Values that are computed in parts, by element index."""

from __future__ import annotations

import abc
import hashlib
import math
from typing import Any, Final

import numpy as np

__all__ = ["BLOCK", "Bilinear", "Filled", "InitialValues", "Orthogonal", "Random", "stream_key"]

BLOCK: Final = 65_536

_Array = np.ndarray[Any, np.dtype[Any]]


class InitialValues(abc.ABC):
    """The values that an initializer gives to one parameter, readable in parts.

    An object keeps what it computed last, so it belongs to one thread.
    """

    @property
    def workspace_bytes(self) -> int:
        """About the memory that reading takes at its peak, beside the array that is filled."""
        return 16 * BLOCK

    @abc.abstractmethod
    def read(self, begin: int, out: _Array) -> None:
        """Computes a range of the values.

        Args:
            begin: index in C order of the first element.
            out: one dimension, contiguous, of the parameter's dtype; overwritten.
        """


def stream_key(seed: int, draw: int, name: str) -> int:
    """The 128-bit Philox key of a tensor."""
    text = seed.to_bytes(8, "little") + draw.to_bytes(8, "little") + name.encode()
    digest = hashlib.blake2b(text, digest_size=16, person=b"paramd initial 1").digest()
    return int.from_bytes(digest, "little")


class Filled(InitialValues):
    """One value everywhere, except in a range of axis 0 that may have another."""

    def __init__(self, value: _Array, other: _Array, other_begin: int, other_end: int) -> None:
        self._value = value
        self._other = other
        self._other_begin = other_begin
        self._other_end = other_end

    def read(self, begin: int, out: _Array) -> None:
        """Computes a range of the values."""
        out[...] = self._value
        first = min(max(self._other_begin - begin, 0), out.size)
        last = min(max(self._other_end - begin, 0), out.size)
        out[first:last] = self._other


class Bilinear(InitialValues):
    """The kernel of bilinear upsampling, by index in C order.

    With W the size of axis 3, H that of axis 2, f = ceil(W / 2) and
    c = (2f - 1 - f mod 2) / (2f), element i is (1 - |x/f - c|) (1 - |y/f - c|), where
    x = i mod W and y = floor(i / W) mod H: the formula that MXNet and Caffe's `BilinearFiller`
    share, computed in float64 and rounded to float32.
    """

    def __init__(self, height: int, width: int) -> None:
        self._height = height
        self._width = width
        self._factor = math.ceil(self._width / 2)
        self._center = (2 * self._factor - 1 - self._factor % 2) / (2 * self._factor)

    @property
    def workspace_bytes(self) -> int:
        """About the memory that reading takes at its peak."""
        return 8 * 8 * BLOCK

    def read(self, begin: int, out: _Array) -> None:
        """Computes a range of the values."""
        for position in range(0, out.size, BLOCK):
            part = out[position : position + BLOCK]
            index = np.arange(begin + position, begin + position + part.size)
            column = self._tent(index % self._width)
            values = column * self._tent(index // self._width % self._height)
            values = values.astype(np.float32)
            if out.dtype.kind in "iu":
                # From float to unsigned, negative numbers are undefined; through int64 they wrap.
                values = values.astype(np.int64)
            np.copyto(part, values, casting="unsafe")

    def _tent(self, position: _Array) -> _Array:
        tent: _Array = 1 - np.abs(position / self._factor - self._center)
        return tent


class Random(InitialValues):
    """Independent draws: uniform in [-scale, scale], or normal with deviation `scale`."""

    def __init__(
        self,
        scale: float,
        key: int,
        *,
        is_uniform: bool,
        size: int,
        drawn_dtype: np.dtype[Any],
    ) -> None:
        self._is_uniform = is_uniform
        self._scale = scale
        self._key = key
        self._size = size
        self.dtype = drawn_dtype
        self._last: tuple[int, _Array] | None = None

    def read(self, begin: int, out: _Array) -> None:
        """Computes a range of the values."""
        position = 0
        while position < out.size:
            block, offset = divmod(begin + position, BLOCK)
            part = out[position : position + BLOCK - offset]
            if part.size == self._block_size(block) and part.dtype == self.dtype:
                self._draw(block, part)
            else:
                end = offset + part.size
                with np.errstate(over="ignore"):
                    # Without a name for it, the block goes when the next one comes.
                    np.copyto(part, self._block(block)[offset:end], casting="unsafe")
            position += part.size

    def _block(self, block: int) -> _Array:
        """The values of a block; the last one is kept, for parts that come one by one."""
        if self._last is None or self._last[0] != block:
            self._last = None  # Before the next one takes memory.
            values = np.empty(self._block_size(block), self.dtype)
            self._draw(block, values)
            self._last = (block, values)
        return self._last[1]

    def _block_size(self, block: int) -> int:
        return min(BLOCK, self._size - block * BLOCK)

    def _draw(self, block: int, out: _Array) -> None:
        """All values of a block, in place."""
        # The counter has 256 bits: the block in the highest 64 leaves 2**192 draws to each.
        generator = np.random.Generator(np.random.Philox(key=self._key, counter=block << 192))
        if self._is_uniform:
            generator.random(dtype=self.dtype.type, out=out)
            # From [0, 1) to [-1, 1) exactly; scaling last cannot overflow.
            out *= 2
            out -= 1
        else:
            generator.standard_normal(dtype=self.dtype.type, out=out)
        with np.errstate(over="ignore"):
            out *= self._scale


class Orthogonal(InitialValues):
    """A matrix with orthonormal rows or columns, whichever are fewer, times `scale`.

    Saxe et al., "Exact solutions to the nonlinear dynamics of learning in deep linear neural
    networks" (arXiv:1312.6120). The Q of a QR decomposition with R's diagonal made positive is
    distributed evenly (Mezzadri, "How to generate random matrices from the classical compact
    groups", 2007), and takes a third of the time of MXNet's singular value decomposition.
    """

    def __init__(self, rows: int, columns: int, entries: Random, scale: float) -> None:
        self._rows = rows
        self._columns = columns
        self._entries = entries
        self._dtype = entries.dtype
        self._scale = scale
        self._matrix: _Array | None = None

    @property
    def workspace_bytes(self) -> int:
        """About the memory that reading takes at its peak."""
        # The entries, NumPy's copies on the way into and out of LAPACK, Q, and R; and half a MiB
        # for what differs between versions of NumPy and Python.
        smaller = min(self._rows, self._columns)
        elements = 6 * self._rows * self._columns + 2 * smaller**2
        return elements * self._dtype.itemsize + (1 << 19) + super().workspace_bytes

    def read(self, begin: int, out: _Array) -> None:
        """Computes a range of the values."""
        if self._matrix is None:
            self._matrix = self._compute()
        with np.errstate(over="ignore"):
            np.copyto(out, self._matrix[begin : begin + out.size], casting="unsafe")

    def _compute(self) -> _Array:
        entries = np.empty(self._rows * self._columns, self._dtype)
        self._entries.read(0, entries)
        matrix = entries.reshape(self._rows, self._columns)
        wide = self._rows < self._columns
        factor, triangle = np.linalg.qr(matrix.T if wide else matrix)
        factor *= np.where(np.diagonal(triangle) < 0, -self._scale, self._scale).astype(self._dtype)
        result: _Array = np.ascontiguousarray(factor.T if wide else factor).reshape(-1)
        return result
