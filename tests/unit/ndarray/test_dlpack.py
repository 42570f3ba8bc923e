"""`NDArray.__dlpack__`: what consumers may ask for, and what they get."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from paramd import NDArray, cpu, nd
from paramd.dlpack import _managed, host_array
from paramd.ndarray import wrap

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
VERSIONS = [None, (0, 8), (1, 0)]
READ_ONLY, IS_COPIED = 1, 2  # dlpack.h


class Asked:
    """An array whose consumer asks for more than NumPy does."""

    def __init__(self, array: NDArray, **options: Any) -> None:
        self.array = array
        self.options = options

    def __dlpack__(self, **asked: Any) -> Any:
        return self.array.__dlpack__(**(asked | self.options))

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.array.__dlpack_device__()


def exported(array: NDArray, **options: Any) -> np.ndarray[Any, Any]:
    return host_array(Asked(array, **options))


def read_only() -> NDArray:
    values = np.ones(3, np.float32)
    values.flags.writeable = False
    return wrap(values, cpu())


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bool", "int64", "bfloat16"])
def test_local_values_are_shared(dtype: str, version: Any) -> None:
    whole = nd.array(np.arange(12).reshape(3, 4), dtype=dtype)
    for array in (whole, whole[1:, ::2], whole[:, 1], whole[5:], whole[:, None]):
        values = exported(array, max_version=version)
        assert (values.shape, values.dtype) == (array.shape, array.dtype)
        np.testing.assert_array_equal(values, array.asnumpy())
        assert np.shares_memory(values, np.asarray(array)) == bool(array.size)


def test_numpy_takes_it_as_it_is() -> None:
    array = nd.array([1, 2])
    assert np.shares_memory(np.from_dlpack(array), np.asarray(array))
    assert not np.shares_memory(np.from_dlpack(array, copy=True), np.asarray(array))
    assert array.__dlpack_device__() == (1, 0)


@pytest.mark.parametrize("device", [None, (1, 0)])
def test_the_host_is_where_values_are(device: Any) -> None:
    array = nd.array([1, 2])
    assert np.shares_memory(exported(array, dl_device=device), np.asarray(array))


@pytest.mark.parametrize("device", [(2, 0), (3, 0), (1, 1), (13, 0)])
def test_another_device_is_refused_with_a_way_there(device: tuple[int, int]) -> None:
    with pytest.raises(BufferError, match=rf"dl_device is \({device[0]}, {device[1]}\).*\.to\("):
        nd.ones((2,)).__dlpack__(dl_device=device)


@pytest.mark.parametrize("stream", [1, -1, 0])
def test_streams_are_refused(stream: int) -> None:
    with pytest.raises(BufferError, match=f"stream is {stream}"):
        nd.ones((2,)).__dlpack__(stream=stream)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_copies_are_the_consumer_s_own(dtype: str) -> None:
    array = nd.array([1, 2], dtype=dtype)
    copied = exported(array, copy=True)
    assert not np.shares_memory(copied, np.asarray(array))
    capsule = array.__dlpack__(copy=True, max_version=(1, 0))
    assert _managed(capsule).flags == IS_COPIED
    assert _managed(array.__dlpack__(max_version=(1, 0))).flags == 0
    assert np.shares_memory(exported(array, copy=False), np.asarray(array))


def test_read_only_values_are_shared_where_the_consumer_is_told() -> None:
    array = read_only()
    assert _managed(array.__dlpack__(max_version=(1, 0))).flags == READ_ONLY
    values = exported(array, max_version=(1, 0))
    assert np.shares_memory(values, np.asarray(array))
    assert not values.flags.writeable


def test_read_only_values_are_copied_for_consumers_that_cannot_be_told() -> None:
    array = read_only()
    assert not np.shares_memory(exported(array, max_version=None), np.asarray(array))
    with pytest.raises(BufferError, match="readonly"):
        array.__dlpack__(copy=False)


def test_values_in_reverse_order_are_copied() -> None:
    array = nd.array([1, 2, 3])[::-1]
    assert exported(array).tolist() == [3, 2, 1]
    assert not np.shares_memory(exported(array), np.asarray(array))
    with pytest.raises(BufferError, match="reverse order"):
        array.__dlpack__(copy=False)


def test_a_row_sparse_array_is_exported_dense() -> None:
    sparse = nd.sparse.row_sparse_array(([[1.0, 2.0]], [1]), shape=(3, 2))
    np.testing.assert_array_equal(np.from_dlpack(sparse), sparse.asnumpy())
    assert _managed(sparse.__dlpack__(max_version=(1, 0))).flags == IS_COPIED
    with pytest.raises(BufferError, match=r"RowSparseNDArray.*copy=False"):
        sparse.__dlpack__(copy=False)


def test_the_memory_outlives_the_array() -> None:
    values = np.arange(3, dtype=np.float32)
    gone = weakref.ref(values)
    array = wrap(values, cpu())
    consumer = np.from_dlpack(array)
    del values, array
    gc.collect()
    assert consumer.tolist() == [0, 1, 2]
    assert gone() is not None
    del consumer
    gc.collect()
    assert gone() is None
