"""What parameters are on several shards is what they are on one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

import paramd
from paramd import Parameter, ParameterDict, Session, init, nd
from paramd.files import RowSparseRows
from paramd.placement import home_shard
from paramd.spec import Selector
from paramd.transport.calls import Calls, TensorWrite
from tests.support.clusters import small_cluster
from tests.support.contexts import device
from tests.support.proxies import ramp

INITIALIZERS: dict[str, Any] = {
    "uniform": init.Uniform(0.3),
    "normal": init.Normal(2.0),
    "xavier": init.Xavier(),
    "msra": init.MSRAPrelu(),
    "orthogonal": init.Orthogonal(),
    "constant": init.Constant(1.5),
}
# Rows that no number of shards divides; large enough for several blocks of the generator.
SHAPE = (1013, 40)


def _initial_values(target: str) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    with paramd.connect(target) as session:
        paramd.random.seed(11)
        for name, initializer in INITIALIZERS.items():
            for dtype in ("float32", "float16"):
                parameter = Parameter(f"{name}-{dtype}", shape=SHAPE, dtype=dtype)
                parameter.initialize(initializer)
                found[parameter.name] = parameter.data().asnumpy().tobytes()
        table = Parameter("table", shape=SHAPE, stype="row_sparse")
        table.initialize("normal")
        found["table"] = table.row_sparse_data(range(SHAPE[0])).data.asnumpy().tobytes()
        late = Parameter("late", allow_deferred_init=True)
        late.initialize("uniform")
        late.shape = SHAPE
        found["late"] = late.data().asnumpy().tobytes()
        session.delete(list(found))
    return found


def test_initial_values_are_the_same_on_any_number_of_shards() -> None:
    found = []
    for num_shards in (1, 2, 5):
        with small_cluster(num_shards) as target:
            found.append(_initial_values(target))
    for values in found[1:]:
        assert [name for name in values if values[name] != found[0][name]] == []


def test_parts_are_where_placement_says(session: Session, raw: Sequence[Calls]) -> None:
    Parameter("w", shape=(7, 2)).initialize("ones")
    Parameter("t", shape=(7, 2), stype="row_sparse").initialize("ones")
    Parameter("small", shape=(2, 2)).initialize("ones")
    shapes = [
        {info.current.name: info.current.shape for info in calls.list_parameters()} for calls in raw
    ]
    assert [each["w"] for each in shapes] == [(2, 2), (2, 2), (3, 2)]
    assert [each["t"] for each in shapes] == [(3, 2), (2, 2), (2, 2)]
    assert ["small" in each for each in shapes].index(True) == home_shard("small", 3)
    assert sum("small" in each for each in shapes) == 1
    (info,) = session.calls.describe(["w"])
    assert (info.current.shape, info.current.part, info.value_bytes) == ((7, 2), None, 56)


@pytest.mark.parametrize("name", ["ü" * 500, "名前/weight", "a b\n", "x" * 1024])
def test_names_of_any_text(session: Session, name: str) -> None:
    parameter = Parameter(name, shape=(7, 2))
    parameter.initialize("ones")
    parameter.data()[3] = 5
    assert parameter.data().asnumpy().sum() == 22
    assert session.exists(name)
    assert list(session.parameters(name[:3])) == [name]


def test_nothing_asked_for_is_nothing(session: Session) -> None:
    calls = session.calls
    assert calls.get_data([], device(0)) == []
    assert calls.set_data([]) == []
    assert calls.set_grad([], device(0)) == []
    assert calls.describe([]) == []
    assert calls.declare([]) == []
    assert calls.initialize([], [device(0)], force_reinit=False) == []
    for change in (calls.delete, calls.zero_grad):
        change([])
    calls.cast([], np.dtype("f4"))
    calls.reset_ctx([], [device(0)])
    assert ParameterDict().pull() == {}


def test_rows_come_in_the_order_of_their_ids(session: Session) -> None:
    table = Parameter("t", shape=(50, 3), stype="row_sparse", grad_stype="row_sparse")
    table.initialize("zeros")
    table.set_data(ramp(50, 3))
    calls = session.calls
    for ids in ([], [0], [49], [1, 4, 7], [0, 1, 2, 3, 4, 48, 49], list(range(50))):
        wanted = np.array(ids, np.int64)
        out = np.zeros((len(ids), 3), np.float32)
        head, rows = calls.pull_rows("t", wanted, None, device(0), out=out)
        assert rows is out
        assert head.shape == (50, 3)
        np.testing.assert_array_equal(rows, ramp(50, 3)[ids])
        _, again = calls.pull_rows("t", wanted, device(0), device(0))
        np.testing.assert_array_equal(again, rows)
    turned = np.zeros((3, 50), np.float32).T
    calls.pull_rows("t", np.arange(50), None, device(0), out=turned)
    np.testing.assert_array_equal(turned, ramp(50, 3))
    for wrong in ([50], [-1, 3]):
        with pytest.raises(IndexError, match=r"'t'.*0 to 49"):
            calls.pull_rows("t", np.array(wrong), None, device(0))


def test_large_rows_and_many_ids_are_pulled_in_pieces(session: Session) -> None:
    rows = np.random.default_rng(0).normal(size=(7, 300_000)).astype(np.float32)
    wide = Parameter("wide", shape=rows.shape, stype="row_sparse")
    wide.initialize("zeros")
    wide.set_data(rows)
    np.testing.assert_array_equal(wide.row_sparse_data([1, 2, 5]).data.asnumpy(), rows[[1, 2, 5]])
    long = Parameter("long", shape=(100_000, 1), stype="row_sparse")
    long.initialize("zeros")
    long.set_data(ramp(100_000, 1))
    ids = np.flatnonzero(np.random.default_rng(0).random(100_000) < 0.7)
    found = long.row_sparse_data(ids).data.asnumpy()
    np.testing.assert_array_equal(found, ids[:, None].astype(np.float32))


@pytest.mark.parametrize("shape", [(7, 2), (7,), (7, 2, 3)])
def test_values_are_received_in_the_callers_array(session: Session, shape: Any) -> None:
    params = ParameterDict()
    params.get("w", shape=shape).initialize("zeros")
    params.get("small", shape=(3,)).initialize("ones")
    params["w"].set_data(ramp(*shape))
    plain, turned = np.zeros(shape, np.float32), np.zeros(shape[::-1], np.float32).T
    for out in (plain, turned):
        found = params.pull({"w": out, "small": np.zeros(3, np.float32)})
        assert found["w"] is out
        np.testing.assert_array_equal(out, ramp(*shape))
    with pytest.raises(AssertionError, match=rf"'w'.*\({shape[0]},"):
        params.pull({"w": np.zeros((6, *shape[1:]), np.float32)})
    with pytest.raises(AssertionError, match=r"'w'.*float64"):
        params.pull({"w": np.zeros(shape)})


def test_gradients_of_all_kinds(session: Session) -> None:
    for name, stype, grad_stype in (
        ("dd", "default", "default"),
        ("ds", "default", "row_sparse"),
        ("sd", "row_sparse", "default"),
        ("ss", "row_sparse", "row_sparse"),
    ):
        parameter = Parameter(name, shape=(7, 2), stype=stype, grad_stype=grad_stype)
        parameter.grad_req = "add"
        parameter.initialize("zeros")
        params = ParameterDict()
        params.update({name: parameter})
        expected = np.zeros((7, 2), np.float32)
        params.push({name: ([6, 0, 3, 3], np.ones((4, 2)))})
        expected[[0, 6]] += 1
        expected[3] += 2
        params.push({name: ramp(7, 2)})
        expected += ramp(7, 2)
        np.testing.assert_array_equal(parameter.grad().asnumpy(), expected)
        gradient = parameter.grad()
        if grad_stype == "row_sparse":
            assert isinstance(gradient, paramd.RowSparseNDArray)
            assert gradient.indices.asnumpy().tolist() == list(range(7))
            gradient[:] = nd.sparse.row_sparse_array(([[4, 4]], [5]), shape=(7, 2))
            assert gradient.indices.asnumpy().tolist() == [5]
        else:
            gradient[1:6:2] = 9
            expected[1:6:2] = 9
            np.testing.assert_array_equal(gradient[::-1].asnumpy(), expected[::-1])
            gradient -= np.array([1, 2])
            np.testing.assert_array_equal(gradient.asnumpy(), expected - [1, 2])


def test_bad_input_changes_no_shard(session: Session) -> None:
    dense = Parameter("w", shape=(7, 2))
    dense.initialize("zeros")
    calls = session.calls
    wrong = [
        TensorWrite("w", np.ones((6, 2), "f4")),
        TensorWrite("w", np.ones(3, "f4"), mode="add"),
        TensorWrite("w", np.ones((), "f4"), region=((5, 3, 1), (0, 2, 1)), mode="add"),
        TensorWrite("w", np.ones((), "f4"), region=((0, 3, 1),), mode="add"),
        TensorWrite("w", RowSparseRows(np.array([1]), np.ones((1, 2), "f4"), (8, 2)), mode="add"),
    ]
    for write in wrong:
        with pytest.raises((ValueError, AssertionError, IndexError), match=r"\(7, 2\)"):
            calls.set_data([write])
        with pytest.raises((ValueError, AssertionError, IndexError), match=r"\(7, 2\)"):
            calls.set_grad([write], device(0))
    with pytest.raises(ValueError, match="twice"):
        calls.set_data([TensorWrite("w", np.ones((7, 2), "f4"))] * 2)
    assert dense.data().asnumpy().max() == 0
    assert dense.grad().asnumpy().max() == 0
    with pytest.raises(IndexError, match=r"\(7, 2\)"):
        calls.get_data([Selector("w", None, ((6, 2, 1), (0, 2, 1)))], device(0))


def test_a_region_of_a_parameter_that_was_made_anew(session: Session, other: Session) -> None:
    """Every shard has the rows that are asked for by number, and they are other ones by now."""
    dense = Parameter("w", shape=(7, 2), session=session)
    dense.initialize("zeros")
    other.delete(["w"])
    anew = Parameter("w", shape=(10, 2), session=other)
    anew.initialize("zeros")
    expected = np.zeros((10, 2), "f4")
    expected[5] = 5
    session.calls.set_data([TensorWrite("w", np.full((), 5, "f4"), region=((5, 1, 1), (0, 2, 1)))])
    np.testing.assert_array_equal(anew.data().asnumpy(), expected)
    other.delete(["w"])
    anew = Parameter("w", shape=(20, 2), session=other)
    anew.initialize("zeros")
    anew.data()[:] = np.arange(20)[:, None]
    region = ((5, 1, 1), (0, 2, 1))
    ((_, row),) = session.calls.get_data([Selector("w", None, region)], device(0))
    assert isinstance(row, np.ndarray)
    assert row.tolist() == [[5, 5]]
    write = TensorWrite("w", np.ones((), "f4"), region=region, mode="add")
    session.calls.set_grad([write], device(0))
    other.delete(["w"])
    anew = Parameter("w", shape=(7, 2), session=other)
    anew.initialize("zeros")
    session.calls.set_grad([write], device(0))
    assert anew.grad().asnumpy().sum(axis=1).tolist() == [0, 0, 0, 0, 0, 2, 0]
