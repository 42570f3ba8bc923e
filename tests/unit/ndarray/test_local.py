"""Dense local arrays: indexing, writing, arithmetic, conversions."""

from __future__ import annotations

import copy
import operator
import pickle
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from paramd import nd
from paramd.context import cpu
from paramd.errors import BroadcastError, InvalidRegionError
from paramd.ndarray import LocalNDArray, NDArray, View, wrap


def _cube() -> NDArray:
    return nd.arange(24).reshape((2, 3, 4))


def _numpy_cube() -> np.ndarray[Any, Any]:
    return np.arange(24, dtype=np.float32).reshape((2, 3, 4))


_KEYS: list[Any] = [
    0,
    -1,
    (0, 1),
    slice(1, 2),
    (slice(None), slice(None, None, 2)),
    (slice(None), slice(None, None, -2)),
    (..., 0),
    (None, 1),
    (slice(None), None, 2),
    (),
    ...,
    slice(5, None),
]


@pytest.mark.parametrize("key", _KEYS)
def test_basic_indexing_shows_and_writes_through(key: Any) -> None:
    array, expected = _cube(), _numpy_cube()
    view = array[key]
    assert view.shape == expected[key].shape
    np.testing.assert_array_equal(view.asnumpy(), expected[key])
    view[:] = -1
    expected[key] = -1
    np.testing.assert_array_equal(array.asnumpy(), expected)


@pytest.mark.parametrize("key", _KEYS)
@pytest.mark.parametrize("update", [operator.iadd, operator.isub, operator.imul, operator.itruediv])
def test_in_place_operators_write_through_views(
    key: Any, update: Callable[[Any, Any], Any]
) -> None:
    array, expected = _cube(), _numpy_cube()
    array[key] = update(array[key], 3)
    expected[key] = update(expected[key], 3)
    np.testing.assert_array_equal(array.asnumpy(), expected)


def test_writing_through_a_chain_of_views_reaches_the_array() -> None:
    array = _cube()
    array[0][1][2] = 100
    array[1, ::-1][0][1:3] += 0.5
    expected = _numpy_cube()
    expected[0, 1, 2] = 100
    expected[1, 2, 1:3] += 0.5
    np.testing.assert_array_equal(array.asnumpy(), expected)


def test_an_index_of_numbers_only_gives_one_axis() -> None:
    element = _cube()[0, 1, 2]
    assert element.shape == (1,)
    assert element[0].shape == (1,)
    assert [one.shape for one in nd.array([1, 2])] == [(1,), (1,)]


def test_assignment_of_an_overlapping_view_takes_the_values_before() -> None:
    array = nd.arange(4)
    array[:] = array[::-1]
    assert array.tolist() == [3, 2, 1, 0]
    array[1:] += array[:-1]
    assert array.tolist() == [3, 5, 3, 1]


@pytest.mark.parametrize("value", [np.ones((4, 3)), np.ones(5), nd.ones((2, 2, 3, 4))])
def test_assignment_of_a_misfit_is_refused_and_changes_nothing(value: Any) -> None:
    array = _cube()
    with pytest.raises(BroadcastError, match=r"\(2, 3, 4\)"):
        array[:] = value
    np.testing.assert_array_equal(array.asnumpy(), _numpy_cube())


def test_an_update_in_place_keeps_the_shape() -> None:
    array = nd.ones((2,))
    with pytest.raises(BroadcastError):
        array += nd.ones((2, 2))
    with pytest.raises(BroadcastError):
        array += nd.ones((1, 2))
    array[:] = nd.zeros((1, 2))
    assert array.tolist() == [0, 0]


@pytest.mark.parametrize("value", ["a", None, [[1, 2], [3]], 1j, {}])
def test_assignment_of_no_numbers_is_refused(value: Any) -> None:
    array = _cube()
    with pytest.raises(TypeError):
        array[0] = value


@pytest.mark.parametrize(
    "key", [[0, 1], ([0, 1], [0, 2]), np.array([1, 0]), np.array([True, False]), ([0], slice(1, 3))]
)
def test_index_arrays_give_a_copy_and_can_be_assigned(key: Any) -> None:
    array, expected = _cube(), _numpy_cube()
    picked = array[key]
    np.testing.assert_array_equal(picked.asnumpy(), expected[key])
    picked[:] = -1
    np.testing.assert_array_equal(array.asnumpy(), expected)
    array[key] = 7
    expected[key] = 7
    np.testing.assert_array_equal(array.asnumpy(), expected)


def test_an_index_array_can_be_an_ndarray_of_floats() -> None:
    assert nd.array([1, 2, 3])[nd.array([0, 2])].tolist() == [1, 3]


def test_a_misfit_through_index_arrays_is_refused() -> None:
    with pytest.raises(BroadcastError):
        _cube()[[0, 1]] = np.ones(7)


@pytest.mark.parametrize("key", [1.5, "a", (0, "a")])
def test_keys_that_are_no_index_are_refused_as_in_mxnet(key: Any) -> None:
    with pytest.raises(ValueError, match="does not support slicing with key"):
        _cube()[key]
    with pytest.raises(ValueError, match="does not support slicing with key"):
        _cube()[key] = 1


class _Handle(NDArray):
    """The smallest subclass: it counts what the base asks of it."""

    def __init__(self, values: np.ndarray[Any, Any], view: View, log: list[Any]) -> None:
        self.values, self.view, self.log = values, view, log

    dtype = property(lambda self: self.values.dtype)
    context = property(lambda self: cpu(1))
    _layout = property(lambda self: self.view)

    def _fetch(self) -> Any:
        self.log.append("fetch")
        return np.array(self.view.of(self.values))

    def _store(self, view: View, value: Any, mode: Any) -> None:
        self.log.append((view.part_shape, view.align(value).shape, mode))

    def _view(self, view: View) -> NDArray:
        return _Handle(self.values, view, self.log)

    def _is_part(self, view: View, other: NDArray) -> bool:
        return isinstance(other, _Handle) and other.values is self.values and other.view == view


def _handle() -> _Handle:
    return _Handle(_numpy_cube(), View.whole((2, 3, 4)), [])


def test_writing_to_a_handle_fetches_nothing_and_stores_once() -> None:
    handle = _handle()
    handle[0][:] = 5
    handle[1:, ::2] += np.ones(4)
    handle[...] *= 2
    other: Any = handle
    other /= 4
    assert handle.log == [
        ((1, 3, 4), (1, 1, 1), "assign"),
        ((1, 2, 4), (1, 1, 4), "add"),
        ((2, 3, 4), (1, 1, 1), "multiply"),
        ((2, 3, 4), (1, 1, 1), "divide"),
    ]


def test_an_empty_part_of_a_handle_is_not_stored() -> None:
    handle = _handle()
    handle[5:] = 1
    handle[None][1:] = 1
    assert handle.log == []


def test_a_handle_refuses_to_be_written_through_index_arrays() -> None:
    handle = _handle()
    with pytest.raises(InvalidRegionError, match="asnumpy"):
        handle[[0, 1]] = 5
    assert handle.log == []
    assert handle[[0, 1], 0].shape == (2, 4)


def test_what_is_computed_from_a_handle_is_local_with_its_context() -> None:
    handle = _handle()
    total = handle + nd.ones((4,), cpu(3))
    assert isinstance(total, LocalNDArray)
    assert total.context == cpu(1)
    assert (2 * handle).context == cpu(1)
    assert copy.deepcopy(handle).context == cpu(1)


def test_a_handle_does_not_lend_its_storage() -> None:
    with pytest.raises(ValueError, match="copy=False"):
        np.asarray(_handle(), copy=False)
    with pytest.raises(BufferError):
        _handle().__dlpack__(copy=False)


def test_numpy_operands_work_on_both_sides() -> None:
    array = nd.array([1, 2])
    for result in (np.ones(2) + array, array + np.ones(2)):
        assert isinstance(result, LocalNDArray)
        assert result.dtype == np.float64
        assert result.tolist() == [2, 3]
    assert (np.float64(2) * array).dtype == np.float32
    assert (np.ones(2) == array).tolist() == [1, 0]
    np.testing.assert_array_equal(np.sqrt(nd.array([4, 9])), [2, 3])
    np.testing.assert_array_equal(np.concatenate([array, array]), [1, 2, 1, 2])


def test_numpy_arrays_can_be_updated_in_place_with_an_array() -> None:
    values = np.ones(2, np.float32)
    np.add(values, nd.array([1, 2]), out=values)
    assert values.tolist() == [2, 3]


@pytest.mark.parametrize("operand", [None, "a", [1, 2], 1j])
def test_operands_that_are_no_numbers_are_refused(operand: Any) -> None:
    with pytest.raises(TypeError):
        nd.array([1, 2]) + operand
    with pytest.raises(TypeError):
        assert nd.array([1, 2]) == operand


def test_operands_that_do_not_broadcast_are_refused() -> None:
    with pytest.raises(BroadcastError, match=r"\(2,\) and \(3,\)"):
        nd.ones((2,)) + nd.ones((3,))


def test_integers_divided_by_zero_raise() -> None:
    array = nd.array([1, 2], dtype="int32")
    with pytest.raises(ZeroDivisionError):
        array / 0
    with pytest.raises(ZeroDivisionError):
        array /= nd.array([1, 0], dtype="int32")
    assert array.tolist() == [1, 2]


def test_arrays_of_two_dtypes_promote_as_in_numpy_to_what_a_parameter_can_be() -> None:
    half, single = nd.ones((2,), dtype="bfloat16"), nd.ones((2,))
    assert (half + single).dtype == np.float32
    mixed = nd.array([200], dtype="uint8") + nd.array([-1], dtype="int8")
    assert mixed.dtype == np.int32
    assert mixed.tolist() == [199]


def test_bfloat16_keeps_its_dtype() -> None:
    array = nd.array([1, 2.5], dtype="bfloat16")
    assert array.dtype == ml_dtypes.bfloat16
    for result in (array + 1.5, array * array, -array, array.sum(), array.norm(), array % 2):
        assert result.dtype == ml_dtypes.bfloat16
    assert (array * 2).tolist() == [2, 5]


def test_an_array_of_one_element_is_a_number() -> None:
    assert float(nd.array([2.5])) == 2.5
    assert int(nd.array([[2.5]])) == 2
    assert nd.array([3]).item() == 3
    assert isinstance(nd.array([3]).asscalar(), np.float32)
    assert [10, 11][nd.array([1], dtype="int32")] == 11
    assert bool(nd.array([0])) is False
    assert bool(nd.array([])) is False


def test_an_array_of_more_elements_is_no_number() -> None:
    array = nd.array([1, 2])
    with pytest.raises(TypeError):
        float(array)
    with pytest.raises(ValueError, match="not a scalar"):
        array.asscalar()
    with pytest.raises(ValueError, match="ambiguous"):
        bool(array)
    with pytest.raises(TypeError):
        operator.index(nd.array([1.0]))


def test_membership_compares_the_elements() -> None:
    assert 2 in nd.array([1, 2])
    assert 3 not in nd.array([1, 2])


def test_arrays_hash_by_identity() -> None:
    array = nd.array([1])
    assert {array: 1}[array] == 1
    assert hash(array) == hash(array)


def test_wrap_shares_memory_both_ways() -> None:
    values = np.zeros(3, np.float32)
    array = wrap(values, cpu())
    array[:] = 3
    assert values.tolist() == [3, 3, 3]
    values[0] = 1
    assert array.tolist() == [1, 3, 3]
    assert np.shares_memory(np.asarray(array), values)


@pytest.mark.parametrize("values", [np.zeros(2, np.complex64), np.zeros(2, np.int16)])
def test_wrap_refuses_dtypes_that_no_parameter_has(values: np.ndarray[Any, Any]) -> None:
    with pytest.raises(TypeError, match="dtype"):
        wrap(values, cpu())


def test_asnumpy_is_a_copy() -> None:
    array = nd.array([1, 2])
    array.asnumpy()[:] = 9
    assert array.tolist() == [1, 2]
    assert array.T.asnumpy().base is None or not np.shares_memory(array.T._read(), array._read())


def test_array_protocol_casts_and_copies_as_asked() -> None:
    array = nd.array([1, 2])
    assert np.asarray(array, dtype="int32").dtype == np.int32
    assert not np.shares_memory(np.array(array, copy=True), np.asarray(array))
    with pytest.raises(ValueError, match="copy=False"):
        array.__array__(np.int32, copy=False)


def test_copyto_an_array_writes_it_and_returns_it() -> None:
    target = nd.zeros((2, 2), cpu(1), "int32")
    assert nd.full((2, 2), 1.7).copyto(target) is target
    assert target.tolist() == [[1, 1], [1, 1]]
    with pytest.raises(BroadcastError, match="equal shapes"):
        nd.ones((2,)).copyto(target)
    with pytest.raises(TypeError):
        nd.ones((2,)).copyto(3)  # type: ignore[arg-type]


def test_contexts_are_labels_that_change_with_a_copy() -> None:
    array = nd.array([1], cpu(1))
    assert array.as_in_context(cpu(1)) is array
    for moved in (array.as_in_ctx(cpu(2)), array.to_device(cpu(2)), array.copyto(cpu(2))):
        assert moved.ctx == moved.device == cpu(2)
        moved[:] = 5
    assert array.tolist() == [1]
    with cpu(4):
        assert nd.zeros(1).context == cpu(4)


def test_astype_copies_unless_told_not_to() -> None:
    array = nd.array([1.6])
    assert array.astype("int32").tolist() == [1]
    assert array.astype("float32") is not array
    assert array.astype("float32", copy=False) is array


def test_detach_shares_the_storage() -> None:
    array = nd.array([1, 2])
    array.detach()[:] = 0
    assert array.tolist() == [0, 0]


def test_reshape_shares_the_elements_and_knows_mxnets_codes() -> None:
    array = _cube()
    array.reshape(24)[0] = 100
    assert array[0, 0, 0].item() == 100
    assert array.reshape((0, -1, 1)).shape == (2, 12, 1)
    assert array.reshape((-2,)).shape == (2, 3, 4)
    assert array.reshape((-3, 0)).shape == (6, 4)
    assert array.reshape((-4, 1, -1, -2)).shape == (1, 2, 3, 4)


@pytest.mark.parametrize("shape", [(5,), (-1, -1), (2, 5, -1), (-5,), (3, 0), (-4, 3, 2, -2)])
def test_reshape_to_a_misfit_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="reshape"):
        nd.ones((2, 6)).reshape(shape)


def test_pickle_and_copy_keep_values_dtype_and_context() -> None:
    array = nd.array([1, 2], cpu(1), "bfloat16")[1:]
    for other in (pickle.loads(pickle.dumps(array)), copy.copy(array), copy.deepcopy(array)):
        assert other.tolist() == [2]
        assert other.dtype == array.dtype
        assert other.context == cpu(1)


def test_len_and_iteration_go_over_the_first_axis() -> None:
    array = _cube()
    assert len(array) == 2
    for row in array:
        row[:] = 1
    assert array.sum().item() == 24
    with pytest.raises(TypeError):
        len(nd.array(5))


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (nd.array([[1, 2], [3, 4]]), "\n[[1. 2.]\n [3. 4.]]\n<NDArray 2x2 @cpu(0)>"),
        (nd.array(5, cpu(2)), "\n5.0\n<NDArray  @cpu(2)>"),
        (nd.array(np.zeros((0, 3))), "\n[]\n<NDArray 0x3 @cpu(0)>"),
        (nd.array([1, 2], dtype="int8"), "\n[1 2]\n<NDArray 2 @cpu(0)>"),
    ],
)
def test_repr_is_mxnets(source: NDArray, text: str) -> None:
    assert repr(source) == text
