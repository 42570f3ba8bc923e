"""Arrays of other libraries as values: how they come to host memory, and what is refused."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from paramd import NDArray, nd
from paramd.dlpack import capsule_of, host_array, in_host_memory, shared_array
from paramd.files import RowSparseRows
from paramd.initializer import Constant, InitDesc, Load
from paramd.tensor_values import dense_value, gradient_value, ids_of, to_write
from tests.support.device_arrays import (
    CUDA,
    CarelessArray,
    CupyArray,
    DeviceArray,
    HostArray,
    HostTensor,
    OldCupyArray,
    OldHostTensor,
    TorchTensor,
)

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
VALUES = np.arange(6, dtype=np.float32).reshape(2, 3)
PAGE_LOCKED = (3, 0)
HOST = "__dlpack__ to (1, 0)"


def in_all_layouts(dtype: Any) -> list[np.ndarray[Any, Any]]:
    whole = np.arange(24).reshape(4, 6).astype(dtype)
    return [whole, whole.T, whole[::2, 1::2], whole[:0], whole[0, 0:1].reshape(()), whole[:1, :1]]


@pytest.mark.parametrize("device", [(1, 0), PAGE_LOCKED, (11, 0)])
def test_memory_of_the_host_is_taken_as_it_is(device: tuple[int, int]) -> None:
    tensor = HostTensor(VALUES.copy(), device)
    array = host_array(tensor)
    assert np.shares_memory(array, tensor.memory)
    np.testing.assert_array_equal(array, VALUES)
    assert tensor.asked == [{"dl_device": None, "copy": None}]
    assert np.shares_memory(dense_value("w", tensor), tensor.memory)


@pytest.mark.parametrize(
    "dtype", ["f4", "f8", "f2", "u1", "i1", "i4", "i8", "?", BFLOAT16], ids=str
)
def test_host_arrays_of_each_dtype_and_layout_are_shared(dtype: Any) -> None:
    for memory in in_all_layouts(dtype):
        array = host_array(HostTensor(memory))
        assert (array.dtype, array.shape) == (memory.dtype, memory.shape)
        np.testing.assert_array_equal(array, memory)
        assert array.ctypes.data == memory.ctypes.data


def test_read_only_memory_stays_read_only() -> None:
    memory = VALUES.copy()
    memory.flags.writeable = False
    array = host_array(HostTensor(memory))
    assert not array.flags.writeable
    assert np.shares_memory(array, memory)


@pytest.mark.parametrize("device", [CUDA, (2, 3), (10, 0), (13, 0), (14, 1)])
@pytest.mark.parametrize("kind", [CupyArray, TorchTensor])
def test_a_device_array_is_asked_for_host_memory_once(
    kind: Callable[..., DeviceArray], device: tuple[int, int]
) -> None:
    array = kind(VALUES, device)
    np.testing.assert_array_equal(host_array(array), VALUES)
    assert array.calls == [HOST]
    assert array.crossed == ["to host"]


@pytest.mark.parametrize("kind", [OldCupyArray, CarelessArray])
def test_a_library_that_exports_its_device_only_copies_in_its_own_words(
    kind: Callable[..., DeviceArray],
) -> None:
    array = kind(VALUES)
    np.testing.assert_array_equal(host_array(array), VALUES)
    assert array.calls[-1] == "get"
    assert array.crossed == ["to host"]


def test_a_tensor_of_another_device_than_the_current_one_is_copied() -> None:
    tensor = TorchTensor(VALUES, (2, 1), current_device=False)
    np.testing.assert_array_equal(host_array(tensor), VALUES)
    assert tensor.calls == [HOST, "cpu"]
    assert tensor.crossed == ["to host"]


def test_a_tensor_that_requires_a_gradient_is_detached() -> None:
    tensor = TorchTensor(VALUES, requires_grad=True)
    np.testing.assert_array_equal(host_array(tensor), VALUES)
    assert tensor.calls == ["detach", HOST]


@pytest.mark.parametrize("kind", [CupyArray, TorchTensor, OldCupyArray])
def test_bfloat16_comes_from_a_device(kind: Callable[..., DeviceArray]) -> None:
    for memory in in_all_layouts(BFLOAT16):
        array = host_array(kind(memory))
        assert array.dtype == BFLOAT16
        np.testing.assert_array_equal(array, memory)


class Sealed(DeviceArray):
    """Gives no copy by any name."""

    def __dlpack__(self, **options: Any) -> Any:
        raise BufferError("no export today")


@pytest.mark.parametrize(
    ("device", "place"),
    [((2, 1), "CUDA device 1"), ((10, 0), "ROCm device 0"), ((99, 4), "type 99, number 4")],
)
def test_what_gives_no_copy_is_named_with_its_device(device: tuple[int, int], place: str) -> None:
    sealed = Sealed(VALUES, device)
    with pytest.raises(TypeError, match=rf"'w'.*tests\.Sealed on .*{place} gives no copy in host"):
        dense_value("w", sealed)
    with pytest.raises(TypeError, match=rf"row ids of parameter 'w'.*{place}"):
        ids_of("w", sealed, 3)
    with pytest.raises(TypeError, match=place):
        nd.array(sealed)
    assert sealed.crossed == []


def test_a_failing_device_is_not_a_wrong_type() -> None:
    class Failing(OldCupyArray):
        def get(self) -> Any:
            raise RuntimeError("an illegal memory access was encountered")

    with pytest.raises(RuntimeError, match="illegal memory access"):
        dense_value("w", Failing(VALUES))


def test_an_export_that_fails_leaves_the_conversion() -> None:
    class Narrow(HostTensor):
        """Of a dtype that has no number in DLPack, as JAX's int4 was."""

        def __dlpack__(self, **options: Any) -> Any:
            raise BufferError("no such dtype")

        def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray[Any, Any]:
            return self.memory

    memory = VALUES.copy()
    assert host_array(Narrow(memory)) is memory


def test_an_export_without_a_conversion_says_why_it_fails() -> None:
    class Unexported(HostTensor):
        def __dlpack__(self, **options: Any) -> Any:
            raise BufferError("sparse layout")

    with pytest.raises(TypeError, match=r"'w'.*Unexported is not exported: sparse layout"):
        dense_value("w", Unexported(VALUES))


def test_all_values_may_come_from_a_device() -> None:
    """Rows and their ids, gradients, new arrays, parts of arrays, operands, initial values."""
    ids, rows = CupyArray(np.array([2, 0])), TorchTensor(VALUES)
    pushed = gradient_value("e", (ids, rows), (4, 3))
    assert isinstance(pushed, RowSparseRows)
    np.testing.assert_array_equal(pushed.ids, [0, 2])
    np.testing.assert_array_equal(pushed.rows, VALUES[::-1])
    np.testing.assert_array_equal(gradient_value("w", rows, (2, 3)), VALUES)
    np.testing.assert_array_equal(to_write("w", CupyArray(VALUES), dense=True).value, VALUES)
    array = nd.array(CupyArray(VALUES))
    np.testing.assert_array_equal(array.asnumpy(), VALUES)
    array[1] = TorchTensor(np.array([7.0, 8.0, 9.0], np.float32))
    assert array[1].asnumpy().tolist() == [7, 8, 9]
    array[CupyArray(np.array([0]))] = 1
    assert (array + CupyArray(VALUES))[0].asnumpy().tolist() == [1, 2, 3]
    sparse = nd.sparse.row_sparse_array((rows, ids), shape=(4, 3))
    np.testing.assert_array_equal(sparse.asnumpy()[2], VALUES[0])
    np.testing.assert_array_equal(Load({"w": rows}).value("w", (2, 3)), VALUES)
    filled = nd.zeros((2, 3))
    Constant(rows)(InitDesc("w_weight"), filled)
    np.testing.assert_array_equal(filled.asnumpy(), VALUES)


def test_the_memory_to_write_to_is_the_array_s_own() -> None:
    tensor = HostTensor(VALUES.copy())
    shared = shared_array(tensor)
    assert shared is not None
    shared[:] = 5
    assert (tensor.memory == 5).all()
    assert tensor.asked == [{"dl_device": None, "copy": False}]


def test_read_only_memory_is_not_lent_to_write_to() -> None:
    memory = VALUES.copy()
    memory.flags.writeable = False
    assert shared_array(HostArray(memory)) is None


@pytest.mark.parametrize("dtype", ["f4", "?", BFLOAT16], ids=str)
def test_tensors_whose_capsules_say_nothing_are_lent_to_write_to(dtype: Any) -> None:
    for memory in in_all_layouts(dtype):
        shared = shared_array(OldHostTensor(memory))
        assert shared is not None
        assert (shared.dtype, shared.shape) == (memory.dtype, memory.shape)
        shared[...] = 1
        assert (memory == 1).all()


def test_memory_that_is_lent_is_kept() -> None:
    memory = VALUES.copy()
    gone = weakref.ref(memory)
    shared = shared_array(OldHostTensor(memory))
    del memory
    gc.collect()
    np.testing.assert_array_equal(shared, VALUES)
    assert gone() is not None
    del shared
    gc.collect()
    assert gone() is None


def test_tensors_that_show_other_signs_are_not_lent_to_write_to() -> None:
    class Negated(HostTensor):
        def is_neg(self) -> bool:
            return True

    assert shared_array(Negated(VALUES.copy())) is None


def test_what_is_in_host_memory() -> None:
    assert in_host_memory(VALUES)
    assert in_host_memory(HostTensor(VALUES, PAGE_LOCKED))
    assert not in_host_memory(CupyArray(VALUES))
    # The kernels that write it are not waited for.
    assert not in_host_memory(CupyArray(VALUES, (13, 0)))
    assert not in_host_memory([1, 2])


# Capsules.


class Exported:
    """Gives one capsule away."""

    def __init__(self, capsule: Any) -> None:
        self._capsule = capsule

    def __dlpack__(self, **options: Any) -> Any:
        return self._capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)


@pytest.mark.parametrize("version", [None, (0, 8), (1, 0), (1, 3)])
@pytest.mark.parametrize("dtype", ["f4", BFLOAT16], ids=str)
def test_a_capsule_keeps_the_memory_until_its_consumer_is_gone(
    version: tuple[int, int] | None, dtype: Any
) -> None:
    array = np.arange(6).astype(dtype)
    expected = array.copy()
    gone = weakref.ref(array)
    capsule = capsule_of(array, version)
    name = "dltensor" if version is None or version[0] < 1 else "dltensor_versioned"
    assert f'"{name}"' in repr(capsule)
    consumer = host_array(Exported(capsule))
    del array
    gc.collect()
    np.testing.assert_array_equal(consumer, expected)
    assert gone() is not None
    assert f'"used_{name}"' in repr(capsule)
    del consumer, capsule
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("version", [None, (1, 0)])
@pytest.mark.parametrize("dtype", ["f4", BFLOAT16], ids=str)
def test_a_capsule_that_nobody_consumes_frees_the_memory(version: Any, dtype: Any) -> None:
    array = np.zeros(6, dtype)
    gone = weakref.ref(array)
    capsule = capsule_of(array, version)
    del array
    gc.collect()
    assert gone() is not None
    del capsule
    gc.collect()
    assert gone() is None


def test_a_capsule_is_consumed_once() -> None:
    exported = Exported(capsule_of(np.zeros(2, BFLOAT16), (1, 0)))
    assert host_array(exported).tolist() == [0, 0]
    with pytest.raises(TypeError, match="Exported"):
        host_array(exported)


def test_elements_in_reverse_order_are_not_exported() -> None:
    with pytest.raises(BufferError, match="reverse order"):
        capsule_of(VALUES[::-1])


def test_values_of_an_ndarray_are_its_memory() -> None:
    array: NDArray = nd.array([1, 2], dtype="bfloat16")
    assert np.shares_memory(host_array(array), np.asarray(array))
