"""Live handles of values and gradients, against a real server, and clusters that split them."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import paramd
from paramd import NDArray, Parameter, Session, nd
from tests.support.clusters import NUM_SHARDS, ids_of, small_cluster
from tests.support.contexts import device, named


@pytest.fixture(scope="module", params=NUM_SHARDS, ids=ids_of)
def session(request: pytest.FixtureRequest) -> Iterator[Session]:
    with small_cluster(request.param) as target, paramd.connect(target) as opened:
        yield opened


@pytest.fixture
def weight(session: Session) -> Iterator[Parameter]:
    parameter = Parameter("w", shape=(4, 3), session=session)
    parameter.initialize("zeros", ctx=[device(0), device(1)])
    parameter.set_data(stored())
    yield parameter
    session.delete("w")


def stored() -> np.ndarray[Any, Any]:
    return np.arange(12, dtype=np.float32).reshape(4, 3)


KEYS: list[Any] = [
    0,
    -1,
    slice(None),
    slice(1, 3),
    slice(None, None, 2),
    slice(None, None, -1),
    slice(3, 0, -2),
    slice(2, 2),
    (1, 2),
    (slice(None), 1),
    (slice(1, None), slice(None, None, 2)),
    (..., 0),
    None,
    (2, None, slice(0, 2)),
    ...,
    (),
]


@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("key", KEYS, ids=str)
def test_views_read_and_write_what_numpy_does(weight: Parameter, key: Any, gradient: bool) -> None:
    handle = weight.grad(device(1)) if gradient else weight.data(device(1))
    handle[:] = stored()
    expected = stored()
    view, part = handle[key], expected[key]
    np.testing.assert_array_equal(view.asnumpy().reshape(part.shape), part)
    view[:] = 100
    expected[key] = 100
    np.testing.assert_array_equal(handle.asnumpy(), expected)
    view += 1
    expected[key] += 1
    np.testing.assert_array_equal(handle.asnumpy(), expected)
    handle[key] = part * 2
    expected[key] = part * 2
    np.testing.assert_array_equal(handle.asnumpy(), expected)
    other = weight.grad(device(0)) if gradient else weight.data(device(0))
    np.testing.assert_array_equal(other.asnumpy(), 0 if gradient else stored())


def test_chained_views_reach_the_parameter(weight: Parameter) -> None:
    weight.data(device(0))[1:][::2][0][1:] = 9
    expected = stored()
    expected[1, 1:] = 9
    np.testing.assert_array_equal(weight.data(device(0)).asnumpy(), expected)


@pytest.mark.parametrize(
    "value",
    [7, 2.5, [1, 2, 3], np.ones((4, 1)), np.ones((1, 4, 3)), nd.ones((3,)), np.int16(3)],
    ids=str,
)
def test_assignment_broadcasts(weight: Parameter, value: Any) -> None:
    handle = weight.data(device(0))
    handle[:] = value
    plain = value.asnumpy() if isinstance(value, NDArray) else value
    expected = np.zeros((4, 3), np.float32)
    expected[:] = plain
    np.testing.assert_array_equal(handle.asnumpy(), expected)


@pytest.mark.parametrize("value", [[1, 2], np.ones((2, 4, 3)), np.ones((3, 4))])
def test_what_does_not_broadcast_changes_nothing(weight: Parameter, value: Any) -> None:
    with pytest.raises(ValueError, match=r"broadcast"):
        weight.data(device(0))[:] = value
    with pytest.raises(TypeError):
        weight.data(device(0))[:] = "abc"
    np.testing.assert_array_equal(weight.data(device(0)).asnumpy(), stored())


def test_index_out_of_range(weight: Parameter) -> None:
    with pytest.raises(IndexError, match=r"4.*axis 0.*size 4"):
        weight.data(device(0))[4]
    with pytest.raises(IndexError):
        weight.data(device(0))[0, 0, 0]


def test_index_arrays_read_and_do_not_write(weight: Parameter) -> None:
    handle = weight.data(device(0))
    np.testing.assert_array_equal(handle[[0, 2]].asnumpy(), stored()[[0, 2]])
    with pytest.raises(IndexError, match=r"asnumpy"):
        handle[[0, 2]] = 1


def test_fetched_values_are_copies(weight: Parameter) -> None:
    handle = weight.data(device(0))
    fetched = handle.asnumpy()
    fetched[:] = -1
    np.asarray(handle)[:] = -1
    handle.copy()[:] = -1
    copy.deepcopy(handle)[:] = -1
    handle.copyto(device(1))[:] = -1
    np.testing.assert_array_equal(handle.asnumpy(), stored())


def test_arithmetic_gives_local_arrays(weight: Parameter) -> None:
    handle = weight.data(device(1))
    result = handle * 2 + np.ones((4, 3), np.float32)
    assert type(result).__name__ == "LocalNDArray"
    assert result.context == device(1)
    np.testing.assert_array_equal(result.asnumpy(), stored() * 2 + 1)
    assert float(handle[1, 1]) == 4.0
    assert handle.sum().asscalar() == 66
    np.testing.assert_array_equal(handle.asnumpy(), stored())


def test_in_place_operators_are_the_servers(weight: Parameter) -> None:
    handle = weight.grad(device(0))
    handle[:] = 6
    handle += np.ones(3)
    handle -= 3
    handle *= 4
    handle /= 2
    np.testing.assert_array_equal(handle.asnumpy(), np.full((4, 3), 8))
    assert handle.context == device(0)


def test_additions_of_many_threads_all_count(weight: Parameter) -> None:
    weight.set_data(np.zeros((4, 3)))
    gate = threading.Barrier(4)

    def add() -> None:
        handle = weight.data(device(0))
        gate.wait()
        for _ in range(50):
            handle += 1

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    np.testing.assert_array_equal(weight.data(device(0)).asnumpy(), np.full((4, 3), 200))


def test_numbers_take_the_dtype_of_the_array_first(weight: Parameter) -> None:
    weight.cast("int32")
    handle = weight.data(device(0))
    handle[:] = -3
    handle += 2.7
    assert handle.asnumpy().max() == -1
    handle[:] = 2.7
    assert handle.asnumpy().max() == 2
    with pytest.raises(ZeroDivisionError):
        handle /= 0


def test_integers_are_exact(session: Session) -> None:
    big = Parameter("n", shape=(2,), dtype="int64", session=session)
    big.initialize("zeros")
    big.data()[:] = 2**53 + 1
    big.data()[0] += 2**60
    assert big.data().asnumpy().tolist() == [2**53 + 1 + 2**60, 2**53 + 1]
    session.delete("n")


def test_handles_follow_a_cast(weight: Parameter) -> None:
    handle = weight.data(device(0))
    weight.cast("float64")
    assert handle.dtype == np.float64
    handle[:] = 0.1
    assert handle.asnumpy()[0, 0] == 0.1
    handle += 0.1
    assert handle.asnumpy()[0, 0] == 0.2


def test_handles_raise_where_the_copy_is_gone(weight: Parameter) -> None:
    handle, gradient = weight.data(device(1)), weight.grad(device(0))
    weight.reset_ctx(device(0))
    with pytest.raises(RuntimeError, match=rf"'w'.*{named(1)}.*{named(0)}"):
        handle.asnumpy()
    with pytest.raises(RuntimeError, match=rf"'w'.*{named(1)}"):
        handle[:] = 1
    weight.grad_req = "null"
    with pytest.raises(RuntimeError, match=r"'w'.*null"):
        gradient.asnumpy()
    with pytest.raises(RuntimeError, match=r"'w'.*null"):
        gradient += 1


def test_what_a_handle_is(weight: Parameter) -> None:
    handle = weight.data(device(1))
    assert isinstance(handle, NDArray)
    assert handle.shape == (4, 3)
    assert (handle.size, handle.ndim, len(handle)) == (12, 2, 4)
    assert handle.context == handle.ctx == handle.device == device(1)
    assert handle.stype == "default"
    assert handle.dtype == np.float32
    handle.wait_to_read()
    assert repr(handle) == f"\n{stored()}\n<NDArray 4x3 @{device(1)}>"
    assert handle.tostype("row_sparse").stype == "row_sparse"
    np.testing.assert_array_equal(np.from_dlpack(handle), stored())
    np.testing.assert_array_equal(handle.astype("float64").asnumpy(), stored())


def test_copyto_writes_between_handles(weight: Parameter) -> None:
    target = weight.grad(device(0))
    assert weight.data(device(1)).copyto(target) is target
    np.testing.assert_array_equal(weight.grad(device(0)).asnumpy(), stored())
    with pytest.raises(ValueError, match=r"shape"):
        weight.data(device(1)).copyto(target[0])


def test_a_part_moves_only_its_rows(
    weight: Parameter, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    get_data = session.calls.get_data

    def recorded(selectors: Any, context: Any, **options: Any) -> Any:
        seen.extend(selector.region for selector in selectors)
        return get_data(selectors, context, **options)

    handle = weight.data(device(0))
    monkeypatch.setattr(session.calls, "get_data", recorded)
    handle[2:4][:, 1:] = 5
    handle[0] += 1
    assert seen == []
    assert handle[2:4].asnumpy().shape == (2, 3)
    assert handle.asnumpy().shape == (4, 3)
    assert seen == [((2, 2, 1), (0, 3, 1)), None]


def test_closed_session_says_so() -> None:
    with paramd.connect("local") as opened:
        parameter = Parameter("w", shape=(2,), session=opened)
        parameter.initialize()
        handle = parameter.data()
    with pytest.raises(paramd.errors.SessionClosedError):
        handle.asnumpy()
