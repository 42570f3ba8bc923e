"""Arrays of any library: their values in host memory, and host memory for them.

Both ways are DLPack's (https://dmlc.github.io/dlpack/latest/python_spec.html), with NumPy as the
other side. NumPy does not exchange bfloat16, which crosses as 16-bit integers: the type in the
capsule is changed before NumPy reads it, or after NumPy wrote it.
"""

from __future__ import annotations

import ctypes
from typing import Any, Final

import numpy as np

from paramd.wire.dtypes import BFLOAT16

__all__ = [
    "HOST_DEVICE",
    "capsule_of",
    "check_request",
    "host_array",
    "in_host_memory",
    "shared_array",
]

Array = np.ndarray[Any, np.dtype[Any]]

HOST_DEVICE: Final = (1, 0)  # kDLCPU

_PLACES: Final = {
    2: "CUDA device",
    8: "Metal device",
    10: "ROCm device",
    13: "CUDA device (managed memory)",
    14: "oneAPI device",
}
# Memory of the host that nothing has to be waited for. Managed memory is read by the host too, but
# only its producer can wait for the kernels that write it.
_HOST_TYPES: Final = frozenset({1, 3, 11})  # kDLCPU, and page-locked: kDLCUDAHost, kDLROCMHost

_UINT: Final = 1  # kDLUInt
_BFLOAT: Final = 4  # kDLBfloat
_IS_COPIED: Final = 2  # DLPACK_FLAG_BITMASK_IS_COPIED
# NumPy before 2.1 knows neither versioned capsules nor the arguments that ask for them.
_KNOWS_VERSIONS: Final = np.lib.NumpyVersion(np.__version__) >= "2.1.0"
# What exports and imports raise for what they cannot do: BufferError by the standard.
_REFUSALS: Final = (
    BufferError,
    TypeError,
    ValueError,
    RuntimeError,
    AttributeError,
    AssertionError,
)


def host_array(value: Any) -> Array:
    """The values of an array of any library, in host memory.

    Args:
        value: an array on any device, a number or nested lists.

    Returns:
        A NumPy array: the memory of `value` itself where that is the host's, else a copy that its
        library has completed. It may be read-only and of any layout.

    Raises:
        TypeError: where it is no array, or its library gives no copy in host memory.
        ValueError: for lists of no regular shape.
    """
    if isinstance(value, np.ndarray):
        return value
    value = _resolved(value)
    if not hasattr(value, "__dlpack__"):
        return _converted(value)
    try:
        device = _device_of(value)
    except _REFUSALS as err:
        # Of a kind that DLPack has no number for, or on several devices.
        return _copied(value, err)
    if device[0] not in _HOST_TYPES:
        try:
            return _imported(value, dl_device=HOST_DEVICE)
        except _REFUSALS as err:
            return _copied(value, err, device)
    try:
        return _imported(value)
    except _REFUSALS as err:
        return _converted(value, err)


def in_host_memory(value: Any) -> bool:
    """Whether an array of any library is in memory that the host reads and writes."""
    try:
        return isinstance(value, np.ndarray) or _device_of(value)[0] in _HOST_TYPES
    except _REFUSALS:
        return False


def shared_array(value: Any) -> Array | None:
    """The memory of an array of any library, to be written to.

    Args:
        value: for which `in_host_memory` holds.

    Returns:
        A NumPy array; None where the memory cannot be lent so.
    """
    if isinstance(value, np.ndarray):
        return value
    if hasattr(value, "is_neg") and value.is_neg():
        return None  # A tensor of PyTorch whose memory holds other signs than it shows.
    if hasattr(value, "detach"):
        value = value.detach()
    try:
        try:
            array = _imported(value, copy=False)
        except TypeError:
            array = _imported(value)  # Before there was `copy`, exports never made one.
    except _REFUSALS:
        return None
    if not array.flags.writeable and hasattr(value, "copy_"):
        # All of PyTorch's tensors can be written to; its capsules without a version cannot say so.
        array = _unlocked(array)
    return array if array.flags.writeable else None


def check_request(stream: Any, dl_device: tuple[int, int] | None) -> None:
    """Checks where a consumer wants values to be that are in host memory.

    Raises:
        BufferError: where that is another device, or `stream` is one.
    """
    if dl_device is not None and (int(dl_device[0]), int(dl_device[1])) != HOST_DEVICE:
        raise BufferError(
            f"the values are exported in host memory, {HOST_DEVICE}, but dl_device is "
            f"({int(dl_device[0])}, {int(dl_device[1])}): let the consumer copy them, as "
            "torch.from_dlpack(x).to('cuda') and cupy.asarray(numpy.asarray(x)) do"
        )
    if stream is not None:
        raise BufferError(f"host memory has no streams, but stream is {stream!r}")


def capsule_of(
    array: Array, max_version: tuple[int, int] | None = None, *, copied: bool = False
) -> Any:
    """A DLPack capsule that shares an array's memory, and keeps it as long as it is used.

    Args:
        array: of a dtype that parameters can have.
        max_version: the latest version that the consumer knows; None for those before 1.0.
        copied: whether nothing else refers to the memory.

    Raises:
        BufferError: where the capsule cannot say what the array is: read-only before version 1.0,
            bytes between elements that are no multiple of theirs.
    """
    if any(stride < 0 for stride in array.strides):
        # PyTorch ends the process for it.
        raise BufferError("elements in reverse order of memory are not exported without a copy")
    is_bfloat16 = array.dtype == BFLOAT16
    exported = array.view(np.uint16) if is_bfloat16 else array
    capsule: Any
    if _KNOWS_VERSIONS:
        capsule = exported.__dlpack__(max_version=max_version)
    else:
        capsule = exported.__dlpack__()
    if is_bfloat16:
        _retype(capsule, _UINT, _BFLOAT)
    if copied and _is(capsule, _VERSIONED):
        _managed(capsule).flags |= _IS_COPIED
    return capsule


class _Producer:
    """An array of another library as NumPy is to get it.

    Args:
        array: exports itself.
        options: asked of the array besides what NumPy asks.

    Attributes:
        is_bfloat16: whether NumPy got 16-bit integers in place of bfloat16.
    """

    def __init__(self, array: Any, options: dict[str, Any]) -> None:
        self._array = array
        self._options = options
        self.is_bfloat16 = False

    def __dlpack__(self, **asked: Any) -> Any:
        given = {key: value for key, value in asked.items() if value is not None}
        capsule = self._array.__dlpack__(**given, **self._options)
        self.is_bfloat16 = _retype(capsule, _BFLOAT, _UINT)
        return capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        return HOST_DEVICE


def _imported(array: Any, **options: Any) -> Array:
    """What an array exports in host memory. By the standard a copy to there is complete."""
    producer = _Producer(array, options)
    values: Array = np.from_dlpack(producer)
    return values.view(BFLOAT16) if producer.is_bfloat16 else values


class _Memory:
    """Memory of an array that NumPy took for read-only."""

    def __init__(self, array: Array) -> None:
        self._array = array
        address, _ = array.__array_interface__["data"]
        self.__array_interface__ = array.__array_interface__ | {"data": (address, False)}


def _unlocked(array: Array) -> Array:
    plain = array.view(np.uint16) if array.dtype == BFLOAT16 else array
    return np.asarray(_Memory(plain)).view(array.dtype)


def _resolved(value: Any) -> Any:
    """A tensor of PyTorch without its graph, and with the signs in memory that it shows."""
    if getattr(value, "requires_grad", False) and hasattr(value, "detach"):
        value = value.detach()
    for name in ("resolve_conj", "resolve_neg"):
        resolve = getattr(value, name, None)
        if resolve is not None:
            value = resolve()
    return value


def _device_of(value: Any) -> tuple[int, int]:
    kind, index = value.__dlpack_device__()
    return int(kind), int(index)


def _copied(value: Any, refusal: BaseException, device: tuple[int, int] | None = None) -> Array:
    """The copy that a library makes in its own words, where it makes none in DLPack's."""
    for name in ("cpu", "get"):  # PyTorch's and CuPy's; both wait until it is complete.
        method = getattr(value, name, None)
        if not callable(method):
            continue
        try:
            host = method()
        except (NotImplementedError, TypeError) as err:
            refusal = err
            continue
        if isinstance(host, np.ndarray) or in_host_memory(host):
            return host_array(host)
    try:
        return _converted(value, refusal)
    except TypeError as err:
        if device is None:
            raise
        place = _PLACES.get(device[0], f"device of DLPack type {device[0]}, number")
        raise TypeError(
            f"{_name_of(value)} on {place} {device[1]} gives no copy in host memory: copy it there "
            f"first ({err})"
        ) from err


def _converted(value: Any, refusal: BaseException | None = None) -> Array:
    """What NumPy makes of a value by itself.

    Args:
        value: an array or lists.
        refusal: why it is not imported; None where it has no such protocol.

    Raises:
        TypeError, ValueError: where it makes nothing of it.
    """
    if refusal is not None and not hasattr(value, "__array__"):
        raise TypeError(f"{_name_of(value)} is not exported: {refusal}") from refusal
    try:
        return np.asarray(value)
    except (TypeError, RuntimeError, BufferError) as err:
        raise TypeError(f"{_name_of(value)} is no array: {err}") from err


def _name_of(value: Any) -> str:
    kind = type(value)
    if kind.__module__ == "builtins":
        return kind.__qualname__
    return f"{kind.__module__.partition('.')[0]}.{kind.__qualname__}"


# The structures of dlpack.h, as far as they are read and changed here.

_UNVERSIONED: Final = b"dltensor"
_VERSIONED: Final = b"dltensor_versioned"


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("byte_offset", ctypes.c_uint64),
    )


class _Managed(ctypes.Structure):
    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("manager_ctx", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", _Tensor),
    )


_is_valid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_IsValid", ctypes.pythonapi)
)
_pointer_of = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)


def _is(capsule: Any, name: bytes) -> bool:
    return bool(_is_valid(capsule, name))


def _managed(capsule: Any) -> _Managed:
    return _Managed.from_address(_pointer_of(capsule, _VERSIONED))


def _retype(capsule: Any, old: int, new: int) -> bool:
    """Changes the type code of 16-bit elements in a capsule that nobody has consumed.

    Returns:
        Whether the elements were of the old one.
    """
    if _is(capsule, _VERSIONED):
        tensor = _managed(capsule).tensor
    elif _is(capsule, _UNVERSIONED):
        tensor = _Tensor.from_address(_pointer_of(capsule, _UNVERSIONED))
    else:
        return False  # NumPy says what is wrong with it.
    if (tensor.code, tensor.bits, tensor.lanes) != (old, 16, 1):
        return False
    tensor.code = new
    return True
