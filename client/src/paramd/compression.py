"""Gradient compression: two bits for each element, what is lost is carried to the next push.

The numbers and the residual are those of MXNet's '2bit' type, after Seide, Fu, Droppo, Li & Yu,
"1-Bit Stochastic Gradient Descent and its Application to Data-Parallel Distributed Training of
Speech DNNs" (2014), and Strom, "Scalable Distributed DNN Training Using Commodity GPU Cloud
Computing" (2015).

Layout: four elements a byte, in C order, the first one in the two highest bits; 0b11 is
+threshold, 0b10 is -threshold, 0b00 is 0, 0b01 is nothing. The last byte is filled up with zeros.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from paramd.hyperparameter import check_fields, check_names, real
from paramd.wire.dtypes import BFLOAT16

__all__ = ["TwoBit", "expand", "packed_size", "parse_compression_params", "residual_dtype"]

Packed = npt.NDArray[np.uint8]

_THRESHOLD: Final = 0.5
# Elements at a time: the temporaries stay in the cache. A multiple of 4.
_BLOCK: Final = 32_768
_CODES_A_BYTE: Final = 4


@dataclass(frozen=True)
class TwoBit:
    """Two bits for each element.

    Args:
        threshold: above 0; what each element that is sent stands for.

    Raises:
        TypeError: where it is no number.
        ValueError: where it is not positive and finite.
    """

    threshold: float = field(default=_THRESHOLD, metadata=real(above=0.0))

    def __post_init__(self) -> None:
        check_fields(self)

    def compress(
        self, gradient: npt.NDArray[Any], residual: npt.NDArray[Any] | None = None
    ) -> tuple[Packed, npt.NDArray[Any]]:
        """Compresses a gradient.

        r = residual + gradient; an element becomes +threshold where r >= threshold, -threshold
        where r <= -threshold, else 0; what is sent is subtracted from r, which is the new residual.
        Nothing is modified, so a push that fails can keep its old residual.

        Args:
            gradient: of dtype float16, bfloat16, float32 or float64, any shape.
            residual: what the last call gave, None for zeros. Of the gradient's shape and
                `residual_dtype`.

        Returns:
            `packed_size` bytes, and the new residual. NaN stays in the residual, and so does
            infinity: check gradients before.

        Raises:
            TypeError: for another dtype.
            ValueError: for a residual of another shape, or a threshold that the dtype cannot hold.
        """
        dtype = residual_dtype(gradient.dtype)
        step = _step(self.threshold, gradient.dtype).astype(dtype)
        if residual is not None and residual.dtype != dtype:
            raise TypeError(f"residual: expected dtype {dtype}, but got {residual.dtype}")
        if residual is not None and residual.shape != gradient.shape:
            raise ValueError(f"residual: expected shape {gradient.shape}, but got {residual.shape}")
        left = np.empty(gradient.shape, dtype)
        packed = np.empty(packed_size(gradient.size), np.uint8)
        flat_gradient = gradient.reshape(-1)
        flat_residual = None if residual is None else residual.reshape(-1)
        flat_left = left.reshape(-1)
        for begin in range(0, gradient.size, _BLOCK):
            here = slice(begin, begin + _BLOCK)
            block = flat_left[here]
            block[:] = flat_gradient[here]
            first = begin // _CODES_A_BYTE
            with np.errstate(over="ignore", invalid="ignore"):
                if flat_residual is not None:
                    block += flat_residual[here]
                _compress_block(block, step, packed[first : first + _BLOCK // _CODES_A_BYTE])
        return packed, left


def _compress_block(block: npt.NDArray[Any], step: Any, packed: Packed) -> None:
    """Replaces sums by what is left of them, and writes the codes."""
    positive = block >= step
    negative = block <= -step
    # One byte each; 3 is positive, 2 is negative.
    codes = np.zeros(packed.size * _CODES_A_BYTE, np.uint8)
    used = codes[: block.size]
    np.multiply(positive, np.uint8(3), out=used)
    used |= negative.view(np.uint8) << np.uint8(1)
    sent = np.subtract(positive.view(np.int8), negative.view(np.int8)).astype(block.dtype)
    sent *= step
    block -= sent
    # The product gathers four bytes of two bits in the highest one: no two of its terms share a
    # bit, so nothing carries.
    gathered = codes.view("<u4") * np.uint32(1 << 30 | 1 << 20 | 1 << 10 | 1)
    packed[:] = gathered >> np.uint32(24)


def expand(
    packed: Packed, shape: tuple[int, ...], dtype: npt.DTypeLike, threshold: float
) -> npt.NDArray[Any]:
    """Makes a gradient of what `TwoBit.compress` gave.

    Args:
        packed: the bytes, of one dimension.
        shape: of the gradient.
        dtype: of the gradient: float16, bfloat16, float32 or float64.
        threshold: the one that it was compressed with.

    Returns:
        An array of -threshold, 0 and +threshold.

    Raises:
        TypeError: for another dtype.
        ValueError: where the bytes are too few or too many, or hold what `compress` never gives;
            for a shape with negative dimensions, or a threshold that the dtype cannot hold.
    """
    step = _step(TwoBit(threshold).threshold, np.dtype(dtype))
    if any(dimension < 0 for dimension in shape):
        raise ValueError(f"shape: expected dimensions >= 0, but got {shape}")
    size = math.prod(shape)
    if packed.dtype != np.uint8 or packed.shape != (packed_size(size),):
        raise ValueError(
            f"packed: expected {packed_size(size)} bytes for shape {shape}, but got "
            f"{packed.dtype} of shape {packed.shape}"
        )
    padding = -size % _CODES_A_BYTE
    if padding and packed[-1] & ((1 << 2 * padding) - 1):
        raise ValueError(f"packed: expected zeros after {size} elements")
    table = _table(step)
    gradient = np.empty(packed.size * _CODES_A_BYTE, step.dtype)
    by_byte = gradient.reshape(-1, _CODES_A_BYTE)
    for begin in range(0, packed.size, _BLOCK):
        block = packed[begin : begin + _BLOCK]
        if np.any(block & ~(block >> np.uint8(1)) & np.uint8(0x55)):
            raise ValueError("packed: expected elements 0b00, 0b10 and 0b11, but got a 0b01")
        # No byte is out of the table's range: 'clip' only spares a buffer.
        table.take(block, axis=0, out=by_byte[begin : begin + _BLOCK], mode="clip")
    return gradient[:size].reshape(shape)


def packed_size(size: int) -> int:
    """How many bytes so many elements become."""
    return -(-size // _CODES_A_BYTE)


def residual_dtype(dtype: npt.DTypeLike) -> np.dtype[Any]:
    """The dtype of the residual of gradients: float64 for float64, else float32.

    MXNet compresses float32 only. A residual of 16 bits would lose what it is there to keep.

    Raises:
        TypeError: for a dtype that is not float16, bfloat16, float32 or float64.
    """
    known = np.dtype(dtype)
    if known == np.dtype(np.float64):
        return known
    if known in (np.dtype(np.float32), np.dtype(np.float16), BFLOAT16):
        return np.dtype(np.float32)
    raise TypeError(
        f"compression takes gradients of float16, bfloat16, float32 and float64, but got {known}"
    )


def parse_compression_params(params: Mapping[str, Any] | None) -> TwoBit | None:
    """Reads a trainer's `compression_params`.

    Args:
        params: {'type': '2bit', 'threshold': number}, the threshold 0.5 if it is missing; or None,
            or nothing in it, for no compression.

    Returns:
        The compression, or None for none.

    Raises:
        TypeError: where it is no mapping, has no type, or has keys or values that are no such.
        ValueError: for another type, or a threshold that is not positive.
    """
    if params is None:
        return None
    given: object = params  # by users without a type checker
    if not isinstance(given, Mapping):
        raise TypeError(
            "compression_params: expected {'type': '2bit', 'threshold': number} or None, but got "
            f"{type(params).__name__}"
        )
    if not params:
        return None
    check_names("compression_params", ["type", "threshold"], params)
    if "type" not in params:
        raise TypeError("compression_params: expected a 'type', '2bit', but got none")
    if params["type"] != "2bit":
        raise ValueError(
            f"compression_params: type: expected '2bit', but got {str(params['type'])[:80]!r}"
        )
    return TwoBit(params.get("threshold", _THRESHOLD))


def _step(threshold: float, dtype: np.dtype[Any]) -> Any:
    """The threshold as an element, which is what is sent and what is subtracted."""
    residual_dtype(dtype)
    with np.errstate(over="ignore", under="ignore"):
        step = np.asarray(threshold).astype(dtype)
    if not 0 < float(step) < math.inf:
        raise ValueError(f"threshold: {threshold!r} is beyond the range of {dtype}")
    return step


def _table(step: Any) -> npt.NDArray[Any]:
    """The four elements of each byte."""
    codes = np.arange(256)[:, None] >> np.array([6, 4, 2, 0]) & 3
    elements = np.array([0, 0, -1, 1]).astype(step.dtype) * step
    table: npt.NDArray[Any] = elements.astype(step.dtype)[codes]
    return table
