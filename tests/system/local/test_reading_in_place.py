"""Values read in the server's memory: without a call, and the same as over gRPC."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import ml_dtypes
import numpy as np
import pytest

import paramd
from paramd import cpu
from paramd.errors import ParamdError
from paramd.session import Session
from paramd.spec import ParameterSpec, Region, Selector, TensorHead
from paramd.transport.connection import Connection
from paramd.transport.records import TensorWrite
from tests.support.cluster_process import cluster_of_processes
from tests.support.server_process import ServerProcess
from tests.system.local.conftest import halted

pytestmark = pytest.mark.real_devices

Array = np.ndarray[Any, Any]
Read = Callable[[Session], Any]
SHAPE: Final = (6, 7)
VALUE: Final = np.arange(42, dtype="f4").reshape(SHAPE)
TABLE: Final = np.arange(150, dtype="f4").reshape(50, 3)
NAME: Final = "gewicht/Größe ✓ 重み"
CPU: Final = cpu(0)
DTYPES: Final = {name: np.dtype(name) for name in ("f8", "f2", "i8", "i4", "i1", "u1", "?")} | {
    "bfloat16": np.dtype(ml_dtypes.bfloat16)
}


@pytest.fixture(scope="module", autouse=True)
def world(server: ServerProcess) -> None:
    """Parameters of every kind, each with another value in each copy."""
    with paramd.connect(server.address) as session:
        fill(session, NAME, VALUE)
        fill(session, "two", VALUE, contexts=[cpu(0), cpu(1)])
        session.calls.set_data([TensorWrite("two", VALUE + 100, context=cpu(1))])
        fill(session, "table", TABLE, stype="row_sparse", grad_stype="row_sparse")
        # Above what shares a segment with others.
        fill(session, "large", np.arange(1 << 18, dtype="f4"))
        for name, dtype in DTYPES.items():
            fill(session, name, VALUE.astype(dtype), dtype=dtype)
        for number in range(40):
            fill(session, f"many-{number}", np.full(number + 1, number, "f4"))
        session.calls.declare([(ParameterSpec("declared", shape=SHAPE), frozenset())])


def fill(session: Session, name: str, value: Array, **spec: Any) -> None:
    """A parameter with a value."""
    contexts = spec.pop("contexts", [CPU])
    session.calls.declare([(ParameterSpec(name, value.shape, **spec), frozenset())])
    session.calls.set_data([TensorWrite(name, value)], initialize=True, contexts=contexts)


def get(*names: str, out: Any = None, region: Region | None = None, **selector: Any) -> Read:
    """Reads values with their heads; into arrays that `out` makes."""
    current = selector.pop("current", CPU)
    selectors = [Selector(name, region=region, **selector) for name in names]

    def read(session: Session) -> Any:
        given = None if out is None else [out() for _ in names]
        found = session.calls.get_data(selectors, current, out=given)
        if given is not None:
            assert all(value is into for (_, value), into in zip(found, given, strict=True))
        return found

    return read


def values(*names: str, out: Any = None) -> Read:
    """Reads values."""
    selectors = [Selector(name) for name in names]

    def read(session: Session) -> Any:
        given = None if out is None else [out() for _ in names]
        return session.calls.get_values(selectors, CPU, out=given)

    return read


def rows(ids: Any, *, name: str = "table", out: Any = None, **selector: Any) -> Read:
    """Reads rows."""
    wanted, context = np.array(ids), selector.pop("context", None)

    def read(session: Session) -> Any:
        into = None if out is None else out()
        head, found = session.calls.pull_rows(name, wanted, context, CPU, out=into)
        assert into is None or found is into
        return head, found

    return read


def every_other() -> Array:
    return np.zeros((12, 7), "f4")[::2]


def transposed() -> Array:
    return np.zeros((7, 6), "f4").T


def read_only() -> Array:
    array = np.zeros(SHAPE, "f4")
    array.flags.writeable = False
    return array


IDS: Final = np.array([0, 3, 4, 49])
IN_PLACE: Final[dict[str, Read]] = {
    "whole": get(NAME),
    "large": get("large"),
    **{f"of {name}": get(name) for name in DTYPES},
    "without its head": values(NAME),
    "one context": get("two", context=cpu(1)),
    "the current context": get("two", current=cpu(1)),
    "one row": get(NAME, region=((2, 1, 1), (0, 7, 1))),
    "every other column, backwards": get(NAME, region=((1, 4, 1), (6, 4, -2))),
    "one element": get(NAME, region=((5, 1, 1), (6, 1, 1))),
    "no element": get(NAME, region=((5, 0, 1), (6, 1, 1))),
    "into an array": get(NAME, out=lambda: np.zeros(SHAPE, "f4")),
    "into every other row": get(NAME, out=every_other),
    "into a transposed array": get(NAME, out=transposed),
    "a region into an array": get(
        NAME, region=((2, 1, 1), (0, 3, 3)), out=lambda: np.zeros((1, 3), "f4")
    ),
    "two": get(NAME, "two"),
    "one twice": get(NAME, "large", NAME),
    "many": values(*(f"many-{number}" for number in range(40))),
    "rows": rows(IDS),
    "no rows": rows(np.empty(0, np.int64)),
    "all rows": rows(np.arange(50)),
    "rows into an array": rows(IDS, out=lambda: np.zeros((4, 3), "f4")),
    "rows into every other row": rows(IDS, out=lambda: np.zeros((8, 3), "f4")[::2]),
    "rows of a context": rows(IDS, context=CPU),
}
WRONG: Final[dict[str, Read]] = {
    "an unknown name": get("none"),
    "one unknown name of two": get(NAME, "none"),
    "no value": get("declared"),
    "no such context": get("two", context=cpu(7)),
    "no current context": get("two", current=cpu(7)),
    "rows read densely": get("table"),
    "a region that is too long": get(NAME, region=((2, 9, 1), (0, 7, 1))),
    "a region of other dimensions": get(NAME, region=((2, 1, 1),)),
    "into another shape": get(NAME, out=lambda: np.zeros((7, 6), "f4")),
    "into another dtype": get(NAME, out=lambda: np.zeros(SHAPE, "f8")),
    "into what is read-only": get(NAME, out=read_only),
    "into a list": get(NAME, out=lambda: [0.0] * 42),
    "a region into all": get(NAME, region=((2, 1, 1), (0, 7, 1)), out=lambda: np.zeros(SHAPE)),
    "rows of what is dense": rows(IDS, name=NAME),
    "unsorted rows": rows([3, 1]),
    "a row twice": rows([3, 3]),
    "a negative row": rows([-1, 3]),
    "rows that are not there": rows([3, 50]),
    "rows that are no numbers": rows([0.5, 1.0]),
    "rows in two dimensions": rows([[1, 2]]),
    "rows into another shape": rows(IDS, out=lambda: np.zeros((4, 4), "f4")),
    "rows into another dtype": rows(IDS, out=lambda: np.zeros((4, 3), "f8")),
    "rows into what is read-only": rows(IDS, out=read_only),
    "rows of no such context": rows(IDS, context=cpu(7)),
    "rows of an unknown name": rows(IDS, name="none"),
}


def plain(result: Any) -> Any:
    """A result as what can be compared."""
    if isinstance(result, np.ndarray):
        return result.dtype, result.shape, result.tobytes()
    if isinstance(result, list | tuple):
        return [plain(each) for each in result]
    assert isinstance(result, TensorHead)
    return result


def refusal(read: Read, session: Session) -> tuple[type[ParamdError], str, object]:
    try:
        read(session)
    except ParamdError as err:
        return type(err), str(err), err.parameter
    raise AssertionError("nothing is wrong with it")


@pytest.fixture
def no_calls(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From when it is called on, whatever makes a call fails."""

    def refuse(_connection: Connection, method: str, *_arguments: Any) -> None:
        raise AssertionError(f"{method} was called")

    return lambda: monkeypatch.setattr(Connection, "_run", refuse)


@pytest.mark.parametrize("read", IN_PLACE)
def test_what_is_read_in_place_is_what_a_call_brings(
    in_place: Session, calling: Session, no_calls: Callable[[], None], read: str
) -> None:
    expected = plain(IN_PLACE[read](calling))
    assert plain(IN_PLACE[read](in_place)) == expected
    no_calls()
    assert plain(IN_PLACE[read](in_place)) == expected


@pytest.mark.parametrize("read", WRONG)
def test_bad_input_gets_the_error_that_a_call_gets(
    in_place: Session, calling: Session, read: str
) -> None:
    expected = refusal(WRONG[read], calling)
    for _ in range(2):
        assert refusal(WRONG[read], in_place) == expected
    # And what is right is read as before.
    assert plain(get(NAME)(in_place)) == plain(get(NAME)(calling))


def test_reads_are_answered_while_the_server_stands_still(
    server: ServerProcess, in_place: Session
) -> None:
    with in_place:
        weight = paramd.Parameter(NAME, shape=SHAPE)
        table = paramd.Parameter("table", shape=TABLE.shape, stype="row_sparse")
        both = paramd.ParameterDict()
        names = ["two", "large"]
        both.update({name: in_place.parameters()[name] for name in names})
        handle = weight.data()
        expected = [handle.asnumpy(), *both.pull(ctx=CPU).values()]
        table.row_sparse_data(IDS)
        with halted(server):
            for _ in range(3):
                np.testing.assert_array_equal(handle.asnumpy(), expected[0])
                np.testing.assert_array_equal(handle[1:3, 2].asnumpy(), expected[0][1:3, 2])
                found = table.row_sparse_data(IDS)
                np.testing.assert_array_equal(found.data.asnumpy(), TABLE[IDS])
                for name, value in zip(names, both.pull(ctx=CPU).values(), strict=True):
                    np.testing.assert_array_equal(value, expected[1 + names.index(name)])


def test_what_was_read_is_the_callers_own(in_place: Session) -> None:
    """Nobody gets a view of the server's memory."""
    ((_, value),) = get(NAME)(in_place)
    value[...] = -1
    in_place.calls.set_data([TensorWrite(NAME, VALUE + 1)])
    assert (value == -1).all()
    np.testing.assert_array_equal(values(NAME)(in_place)[0], VALUE + 1)
    in_place.calls.set_data([TensorWrite(NAME, VALUE)])


def test_a_write_is_seen_by_the_next_read(in_place: Session, calling: Session) -> None:
    fill(calling, "seen", VALUE)
    for number in range(50):
        writer = (in_place, calling)[number % 2]
        (version,) = writer.calls.set_data([TensorWrite("seen", VALUE + number)])
        ((head, value),) = get("seen")(in_place)
        np.testing.assert_array_equal(value, VALUE + number)
        assert head.version == version


def test_one_copy_is_not_taken_for_another(in_place: Session, calling: Session) -> None:
    reads = [
        get("two", context=cpu(0)),
        get("two", context=cpu(1)),
        get("two", current=cpu(0)),
        get("two", current=cpu(1)),
        get("two", context=cpu(0), current=cpu(1)),
    ]
    for _ in range(2):
        for read in reads:
            assert plain(read(in_place)) == plain(read(calling))


@pytest.mark.parametrize("first", ["itself", "another"])
def test_values_are_found_wherever_they_go(
    server: ServerProcess, in_place: Session, calling: Session, first: str
) -> None:
    """After each change the next reads are right, whoever has the value shared again."""
    fill(calling, "goes", VALUE)
    changes: list[Callable[[], Any]] = [
        lambda: calling.calls.cast(["goes"], np.dtype("f8")),
        lambda: calling.calls.set_data([TensorWrite("goes", VALUE * 2)]),
        lambda: calling.calls.reset_ctx(["goes"], [cpu(2), cpu(3)]),
        lambda: calling.calls.set_data([TensorWrite("goes", VALUE * 3, context=cpu(3))]),
        lambda: calling.calls.reset_ctx(["goes"], [cpu(3)]),
        lambda: calling.calls.delete(["goes"]),
        lambda: fill(calling, "goes", np.ones((2, 2), "f4")),
        lambda: calling.calls.set_data([TensorWrite("goes", np.zeros((2, 2), "f4"))]),
    ]
    read = get("goes", current=cpu(3))
    with paramd.connect(server.address, transport="shm") as another:
        assert plain(read(in_place)) == plain(read(another)) == plain(read(calling))
        for change in changes:
            change()
            try:
                expected = plain(read(calling))
            except ParamdError:
                assert refusal(read, in_place) == refusal(read, calling)
            else:
                for session in (another, in_place) if first == "another" else (in_place, another):
                    assert plain(read(session)) == expected
    calling.calls.delete(["goes"])


def test_a_value_that_is_made_later_is_found(
    in_place: Session, calling: Session, no_calls: Callable[[], None]
) -> None:
    read = get("later")
    assert refusal(read, in_place) == refusal(read, calling)
    fill(calling, "later", VALUE)
    # The first reads may be calls.
    for _ in range(100):
        assert plain(read(in_place)) == plain(read(calling))
    no_calls()
    read(in_place)


def test_parameters_on_two_shards_are_read_in_place(
    tmp_path: Path, no_calls: Callable[[], None]
) -> None:
    with (
        cluster_of_processes(tmp_path, snapshots=False) as cluster,
        paramd.connect(cluster.target, transport="tcp") as calling,
        paramd.connect(cluster.target, transport="shm") as in_place,
    ):
        with calling:
            params = paramd.ParameterDict()
            params.get("w", shape=SHAPE, init=paramd.init.Uniform())
            params.get("b", shape=(3,), init=paramd.init.Uniform())
            params.initialize(ctx=CPU)
            trainer = paramd.Trainer(params, "sgd", {"learning_rate": 0.1})
            for _ in range(3):
                trainer.step(1, grads={"w": VALUE, "b": np.ones(3, "f4")})
        reads = [
            get("w", "b"),
            get("w", out=lambda: np.zeros(SHAPE, "f4")),
            get("w", region=((1, 4, 1), (0, 4, 2))),
        ]
        expected = [plain(read(calling)) for read in reads]
        assert [plain(read(in_place)) for read in reads] == expected
        for head, _ in get("w", "b")(in_place):
            assert head.step is not None
            assert head.step[1] == 3
        no_calls()
        assert [plain(read(in_place)) for read in reads] == expected
