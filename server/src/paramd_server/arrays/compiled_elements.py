"""Elements of arrays inside compiled kernels: 16-bit floats are computed with in float32.

Numba has no 16-bit floats on a CPU, so that their bits stand in for them: uint16 for float16,
int16 for bfloat16. Conversions give NumPy's bits (round half to even); a NaN stays a NaN. Those of
float16 are the processor's own where it has them: integer arithmetic takes two to ten times as
long, the most where numbers are subnormal.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar, cast

import numba
import numpy as np
from numba.core.cgutils import ir  # type: ignore[attr-defined]  # llvmlite's, as Numba has it.
from numba.core.codegen import get_host_cpu_features
from numba.extending import intrinsic, overload

from paramd.wire.dtypes import BFLOAT16
from paramd_server.arrays.backend import HostArray

__all__ = [
    "clipped",
    "compiled",
    "half_conversions",
    "load",
    "processor_has_halves",
    "row_of",
    "stand_in_array",
    "store",
]

_Function = TypeVar("_Function", bound=Callable[..., Any])
_Implementation = Callable[..., Any]

_STAND_INS: Final[dict[np.dtype[Any], type]] = {
    np.dtype(np.float16): np.uint16,
    BFLOAT16: np.int16,
}


def compiled(function: _Function) -> _Function:
    """Compiles a function when it is first called with arguments of new types.

    Compiled code keeps IEEE arithmetic, operation by operation: no reassociation and no fused
    multiply-add, so that blocks and alignment do not change a bit. It runs without the GIL. No
    code is kept on disk, where the compiler would unpickle it.
    """
    compile_ = numba.njit(nogil=True, error_model="numpy", fastmath=False, boundscheck=False)
    return cast(_Function, compile_(function))


def processor_has_halves() -> bool:
    """Whether kernels are compiled for a processor that converts float16 in one instruction.

    Without, LLVM would call functions that only a C compiler's own library has.
    """
    config: Any = numba.config  # Filled from the environment as Numba is loaded.
    features: str | None = config.CPU_FEATURES
    if features is None:
        features = get_host_cpu_features()  # type: ignore[no-untyped-call]
    return {"+f16c", "+avx"} <= set((features or "").split(","))


def half_conversions(*, by_processor: bool) -> tuple[_Implementation, _Implementation]:
    """How `load` and `store` convert the bits of float16, for kernels.

    Args:
        by_processor: by its instructions; else by integer arithmetic, which any processor has.

    Returns:
        What takes an array and an index and gives a float32; and what takes an array, an index and
        a number, and writes it there.
    """
    return (_load_half, _store_half) if by_processor else (_load_bits, _store_bits)


def stand_in_array(array: HostArray) -> HostArray:
    """The array as kernels take it: 16-bit floats as their bits."""
    stand_in = _STAND_INS.get(array.dtype)
    return array if stand_in is None else array.view(stand_in)


def row_of(array: HostArray | None, index: int) -> Any:
    """Inside a kernel: a row of an array, where there is one."""
    raise NotImplementedError("only for kernels")


def load(array: HostArray, index: int) -> Any:
    """Inside a kernel: an element, as the number to compute with."""
    raise NotImplementedError("only for kernels")


def store(array: HostArray | None, index: int, value: Any) -> None:
    """Inside a kernel: rounds a number to the array's dtype and writes it, where there is one."""
    raise NotImplementedError("only for kernels")


def clipped(value: Any, bound: Any) -> Any:
    """Inside a kernel: the value within -bound to bound; a NaN stays one."""
    raise NotImplementedError("only for kernels")


@overload(clipped)
def _clipped(value: Any, bound: Any) -> _Implementation:
    def clip(value: Any, bound: Any) -> Any:
        if value > bound:
            return bound
        if value < -bound:
            return -bound
        return value

    return clip


@overload(row_of)
def _row_of(array: Any, index: Any) -> _Implementation:
    return _no_row if isinstance(array, numba.types.NoneType) else _load_wide


@overload(load)
def _load(array: Any, index: Any) -> _Implementation:
    if array.dtype == numba.uint16:
        return half_conversions(by_processor=processor_has_halves())[0]
    if array.dtype == numba.int16:
        return _load_bfloat
    return _load_wide


@overload(store)
def _store(array: Any, index: Any, value: Any) -> _Implementation:
    if isinstance(array, numba.types.NoneType):
        return _store_nothing
    if array.dtype == numba.uint16:
        return half_conversions(by_processor=processor_has_halves())[1]
    if array.dtype == numba.int16:
        return _store_bfloat
    return _store_wide


def _no_row(array: Any, index: Any) -> Any:
    return None


def _store_nothing(array: Any, index: Any, value: Any) -> None:
    pass


def _load_wide(array: Any, index: Any) -> Any:
    return array[index]


def _store_wide(array: Any, index: Any, value: Any) -> None:
    array[index] = value


@intrinsic
def _widened(_typing: Any, bits: Any) -> Any:
    """float32 of the bits of a float16."""

    def generate(_context: Any, builder: Any, _signature: Any, values: Any) -> Any:
        half = builder.bitcast(values[0], ir.HalfType())
        return builder.fpext(half, ir.FloatType())

    return numba.float32(numba.uint16), generate


@intrinsic
def _narrowed(_typing: Any, value: Any) -> Any:
    """The bits of the float16 that is nearest to a float32."""

    def generate(_context: Any, builder: Any, _signature: Any, values: Any) -> Any:
        half = builder.fptrunc(values[0], ir.HalfType())
        return builder.bitcast(half, ir.IntType(16))

    return numba.uint16(numba.float32), generate


def _load_half(array: Any, index: Any) -> Any:
    return _widened(array[index])  # type: ignore[call-arg]  # Numba gives the first.


def _store_half(array: Any, index: Any, value: Any) -> None:
    array[index] = _narrowed(np.float32(value))  # type: ignore[call-arg]


def _load_bits(array: Any, index: Any) -> Any:
    bits = np.uint32(array[index])
    # Exponent and mantissa in the places of float32; the factor mends the exponent's bias, of
    # subnormal numbers too.
    magnitude = np.uint32(np.uint32(bits & np.uint32(0x7FFF)) << np.uint32(13))
    scaled = np.float32(magnitude.view(np.float32) * np.float32(2.0**112))
    wide = scaled.view(np.uint32)
    if magnitude >= np.uint32(0x7C00 << 13):
        wide = np.uint32(wide | np.uint32(0x7F800000))
    sign = np.uint32(np.uint32(bits & np.uint32(0x8000)) << np.uint32(16))
    return np.uint32(wide | sign).view(np.float32)


def _store_bits(array: Any, index: Any, value: Any) -> None:
    bits = np.float32(value).view(np.uint32)
    magnitude = np.uint32(bits & np.uint32(0x7FFFFFFF))
    # Round half to even: add just under a half, and one more where the kept part is odd.
    odd = np.uint32(np.uint32(magnitude >> np.uint32(13)) & np.uint32(1))
    # 0xC8000FFF: the exponent's bias goes from 127 to 15, and 0xFFF for the rounding.
    half = np.uint32(np.uint32(magnitude + np.uint32(0xC8000FFF) + odd) >> np.uint32(13))
    # Below the smallest normal number the addition of 0.5 puts the last kept bit in its place.
    aligned = np.float32(magnitude.view(np.float32) + np.float32(0.5))
    if magnitude < np.uint32(113 << 23):
        half = np.uint32(aligned.view(np.uint32) - np.uint32(0x3F000000))
    if magnitude >= np.uint32(143 << 23):
        half = np.uint32(0x7C00)
    if magnitude > np.uint32(0x7F800000):
        half = np.uint32(0x7E00)
    sign = np.uint32(np.uint32(bits >> np.uint32(16)) & np.uint32(0x8000))
    array[index] = np.uint16(half | sign)


def _load_bfloat(array: Any, index: Any) -> Any:
    return np.uint32(np.uint32(np.uint16(array[index])) << np.uint32(16)).view(np.float32)


def _store_bfloat(array: Any, index: Any, value: Any) -> None:
    bits = np.float32(value).view(np.uint32)
    odd = np.uint32(np.uint32(bits >> np.uint32(16)) & np.uint32(1))
    short = np.uint32(np.uint32(bits + np.uint32(0x7FFF) + odd) >> np.uint32(16))
    if np.uint32(bits & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000):
        # Rounding could carry a NaN over into infinity.
        short = np.uint32(np.uint32(bits >> np.uint32(16)) | np.uint32(0x40))
    array[index] = np.int16(np.uint16(short))
