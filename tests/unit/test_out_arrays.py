"""What `out=` takes: where values are received, and when they are copied on."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from paramd import nd
from paramd.errors import InvalidArgumentError
from paramd.out_arrays import OutArrays
from tests.support.device_arrays import CupyArray, DeviceArray, HostArray, HostTensor, TorchTensor

VALUES = np.arange(6, dtype=np.float32).reshape(2, 3)


def receive(out: Any, values: np.ndarray[Any, Any] = VALUES) -> Any:
    into = OutArrays({"w": out})
    into.hosts["w"][...] = values
    delivered = into.deliver({"w": into.hosts["w"], "v": values})
    assert delivered["v"] is values
    return delivered["w"]


def test_host_memory_is_received_into_directly() -> None:
    array, tensor = np.zeros((2, 3), np.float32), HostTensor(np.zeros((2, 3), np.float32))
    local = nd.zeros((2, 3))
    into = OutArrays({"a": array, "t": tensor, "l": local})
    assert into.hosts["a"] is array
    assert np.shares_memory(into.hosts["t"], tensor.memory)
    assert np.shares_memory(into.hosts["l"], np.asarray(local))
    into.hosts["l"][...] = VALUES
    delivered = into.deliver(into.hosts)
    assert delivered["a"] is array
    assert delivered["t"] is tensor
    assert delivered["l"] is local
    np.testing.assert_array_equal(local.asnumpy(), VALUES)


@pytest.mark.parametrize(
    ("out", "call"),
    [
        (CupyArray(np.zeros((2, 3), np.float32)), "set"),
        (CupyArray(np.zeros((2, 3), np.float32, order="F")), "set"),
        (CupyArray(np.zeros((2, 3), ml_dtypes.bfloat16)), "set"),
        (TorchTensor(np.zeros((2, 3), np.float32)), "copy_"),
        (TorchTensor(np.zeros((2, 3), ml_dtypes.bfloat16)), "copy_"),
        (TorchTensor(np.zeros((2, 3), np.float32), requires_grad=True), "copy_"),
    ],
)
def test_a_device_array_gets_its_values_by_one_copy_of_its_library(
    out: DeviceArray, call: str
) -> None:
    assert receive(out) is out
    np.testing.assert_array_equal(out.memory, VALUES)
    assert out.calls[-1] == call
    assert out.crossed == ["to device"]


def test_nothing_is_copied_before_all_is_received() -> None:
    out = CupyArray(np.zeros((2, 3), np.float32))
    OutArrays({"w": out}).hosts["w"][...] = VALUES
    assert out.crossed == []


def strided() -> CupyArray:
    out = CupyArray(0)
    out.memory = np.zeros((4, 6), np.float32)[::2, ::2]
    return out


class Immutable(HostArray):
    """As JAX's arrays are: exported for reading."""

    def __init__(self) -> None:
        memory = VALUES.copy()
        memory.flags.writeable = False
        super().__init__(memory)


@pytest.mark.parametrize(
    ("out", "match"),
    [
        ([0.0] * 6, "takes arrays, but got list"),
        (strided(), r"contiguous arrays of CupyArray.*strides \(48, 8\)"),
        (Immutable(), "Immutable.*cannot be written to"),
        (DeviceArray(VALUES), "takes arrays, but got DeviceArray"),
        (nd.sparse.zeros("row_sparse", (2, 3)), "RowSparseNDArray.*cannot be written to"),
    ],
)
def test_what_cannot_be_written_to_is_refused_at_once(out: Any, match: str) -> None:
    with pytest.raises(InvalidArgumentError, match=rf"'w'.*{match}"):
        OutArrays({"w": out})
