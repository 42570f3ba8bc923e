"""What a client left half done that died between the home shard and the others.

The client of these tests calls each shard by itself, and stops where another one would go on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from paramd import DeferredInitializationError, Parameter, Session
from paramd.errors import PermissionDeniedError
from paramd.placement import Layout, home_shard, layout_of
from paramd.spec import InitializeEntry, InitializerSpec, ParameterSpec, Selector
from paramd.transport.calls import Calls, TensorWrite
from tests.support.contexts import device
from tests.support.proxies import Ramp, ramp

SHAPE = (7, 2)
UNIFORM = InitializerSpec("uniform", {"scale": 0.5})
CLIENTS_OWN = InitializerSpec(client_side=True)


def _layout(name: str = "w", stype: str = "default") -> Layout:
    return layout_of(name, SHAPE, stype, 3, 4)


def _spec(shard: int, name: str = "w", stype: str = "default") -> ParameterSpec:
    part = _layout(name, stype).parts[shard]
    return ParameterSpec(name, part.local_shape, stype=stype, part=part)


def _declare(raw: Sequence[Calls], *shards: int, stype: str = "default") -> None:
    for shard in shards:
        raw[shard].declare([(_spec(shard, stype=stype), frozenset())])


def _initialize(raw: Sequence[Calls], shard: int, init: InitializerSpec, seed: int = 5) -> None:
    entry = InitializeEntry("w", init, seed, 0)
    raw[shard].initialize([entry], [device(0), device(1)], force_reinit=False)


HOME = home_shard("w", 3)
OTHERS = [shard for shard in range(3) if shard != HOME]


@pytest.fixture
def expected(session: Session) -> np.ndarray:
    """The value that one client alone gives to a parameter of that name, seed and initializer."""
    session.calls.declare([(ParameterSpec("w", SHAPE), frozenset())])
    entry = InitializeEntry("w", UNIFORM, 5, 0)
    session.calls.initialize([entry], [device(0), device(1)], force_reinit=False)
    ((_, value),) = session.calls.get_data([Selector("w", device(1))], device(0))
    session.delete("w")
    assert isinstance(value, np.ndarray)
    return value


def test_parts_that_were_not_declared(session: Session, raw: Sequence[Calls]) -> None:
    _declare(raw, HOME)
    (info,) = session.calls.describe(["w"])
    assert (info.state, info.current.shape) == ("declared", SHAPE)
    parameter = Parameter("w")
    parameter.initialize("ones")
    assert parameter.data().asnumpy().tolist() == np.ones(SHAPE).tolist()


@pytest.mark.parametrize("stype", ["default", "row_sparse"])
@pytest.mark.parametrize("declared", [(), OTHERS[:1], OTHERS])
@pytest.mark.parametrize("initialized", [0, 1])
def test_parts_without_their_first_value(
    session: Session,
    raw: Sequence[Calls],
    expected: np.ndarray,
    stype: str,
    declared: Sequence[int],
    initialized: int,
) -> None:
    _declare(raw, HOME, *declared, stype=stype)
    for shard in [HOME, *declared[:initialized]]:
        _initialize(raw, shard, UNIFORM)
    if stype == "default":
        # Whatever comes first completes it.
        ((_, value),) = session.calls.get_data([Selector("w", device(1))], device(0))
    else:
        _, value = session.calls.pull_rows("w", np.arange(7), device(1), device(0))
    np.testing.assert_array_equal(value, expected)
    late = Parameter("w")
    late.initialize("zeros")  # It has a value.
    assert late.list_ctx() == [device(0), device(1)]


@pytest.mark.parametrize(
    ("initializer", "expected"), [(Ramp(3.0), 3 * ramp(*SHAPE)), ("ones", np.ones(SHAPE))]
)
def test_a_clients_value_that_came_to_the_home_shard_alone(
    session: Session,
    raw: Sequence[Calls],
    initializer: Any,
    expected: np.ndarray,
) -> None:
    _declare(raw, *range(3))
    for shard in (HOME, *OTHERS):
        _initialize(raw, shard, CLIENTS_OWN)
    rows = ramp(*SHAPE)[: _layout().parts[HOME].count]
    raw[HOME].set_data([TensorWrite("w", rows)], initialize=True, contexts=[device(0), device(1)])
    with pytest.raises(DeferredInitializationError, match="'w'"):
        Parameter("w").data()
    holder = Parameter("w")
    holder.initialize(initializer, ctx=[device(0), device(1)])
    for each in holder.list_data():
        np.testing.assert_array_equal(each.asnumpy(), expected)


def test_a_shape_that_came_to_the_home_shard_alone(
    session: Session,
    raw: Sequence[Calls],
    expected: np.ndarray,
) -> None:
    late = Parameter("w", allow_deferred_init=True)
    late.zero_grad()
    _initialize(raw, HOME, UNIFORM)
    with pytest.raises(DeferredInitializationError):
        late.data()
    part = _layout().parts[HOME]
    raw[HOME].set_attribute(["w"], "shape", part.local_shape, part)
    np.testing.assert_array_equal(late.data(device(1)).asnumpy(), expected)
    assert late.shape == SHAPE


@pytest.mark.parametrize("same_shape", [True, False])
def test_parts_that_a_deletion_left_over(
    session: Session, raw: Sequence[Calls], same_shape: bool
) -> None:
    shape = SHAPE if same_shape else (9, 2)
    Parameter("w", shape=shape).initialize("ones")
    raw[HOME].delete(["w"])
    assert not session.exists("w")
    assert session.parameters().keys() == set()
    again = Parameter("w", shape=SHAPE)
    again.initialize(Ramp())
    np.testing.assert_array_equal(again.data().asnumpy(), ramp(*SHAPE))
    np.testing.assert_array_equal(again.grad().asnumpy(), np.zeros(SHAPE))


def test_what_is_not_whole_is_listed_and_deleted(session: Session, raw: Sequence[Calls]) -> None:
    _declare(raw, HOME)
    _initialize(raw, HOME, UNIFORM)
    (info,) = session.calls.list_parameters()
    assert (info.state, info.current.shape) == ("declared", SHAPE)
    session.delete("w")
    assert [len(calls.list_parameters()) for calls in raw] == [0, 0, 0]


def test_deletion_of_an_unknown_name_deletes_nothing(session: Session) -> None:
    for name in "abcd":
        Parameter(name, shape=SHAPE).initialize("ones")
    with pytest.raises(KeyError, match="gone"):
        session.delete(["a", "b", "gone", "c", "d"])
    assert list(session.parameters()) == ["a", "b", "c", "d"]


def test_a_lost_part_is_no_value(session: Session, raw: Sequence[Calls]) -> None:
    weight = Parameter("w", shape=SHAPE)
    weight.initialize("ones")
    weight.set_data(ramp(*SHAPE))
    raw[OTHERS[0]].delete(["w"])
    with pytest.raises(RuntimeError, match=r"'w' has not been initialized"):
        weight.data()
    with pytest.raises((AssertionError, RuntimeError), match=r"'w'"):
        session.calls.set_data([TensorWrite("w", np.ones((), "f4"), mode="add")])
    again = Parameter("w")
    again.initialize("zeros")
    assert again.data().asnumpy().tolist() == np.zeros(SHAPE).tolist()


def test_what_became_known_piece_by_piece_stays_in_one_piece(
    session: Session, raw: Sequence[Calls]
) -> None:
    for shape in ((7, 0), (0, 2)):
        raw[HOME].declare([(ParameterSpec("w", shape), frozenset({"shape"}))])
    whole = Parameter("w", shape=SHAPE)
    whole.initialize(Ramp())
    np.testing.assert_array_equal(whole.data().asnumpy(), ramp(*SHAPE))
    assert [len(calls.list_parameters()) for calls in raw].count(0) == 2
    with pytest.raises(AssertionError, match=r"'w'.*shape"):
        Parameter("w", shape=(8, 2)).zero_grad()


def test_other_clients_make_a_parameter_anew(session: Session, other: Session) -> None:
    mine = Parameter("w", shape=(7, 2), session=session)
    mine.initialize("ones")
    table = Parameter("t", shape=(7, 2), stype="row_sparse", session=session)
    table.initialize("ones")
    mine.data().asnumpy()
    for shape in ((8, 2), (2, 2), (9, 4), (7, 2)):
        other.delete(["w", "t"])
        theirs = Parameter("w", shape=shape, session=other)
        theirs.initialize(Ramp())
        rows = Parameter("t", shape=shape, stype="row_sparse", session=other)
        rows.initialize(Ramp())
        ((head, value),) = session.calls.get_data([Selector("w")], device(0))
        assert head.shape == shape
        np.testing.assert_array_equal(value, ramp(*shape))
        _, found = session.calls.pull_rows("t", np.array([0, 1]), None, device(0))
        np.testing.assert_array_equal(found, ramp(*shape)[:2])
        session.calls.set_data([TensorWrite("w", 2 * ramp(*shape))])
        np.testing.assert_array_equal(theirs.data().asnumpy(), 2 * ramp(*shape))
    other.delete("w")
    with pytest.raises(KeyError, match="w"):
        mine.data()


def test_an_old_part_of_another_shape_gives_way(session: Session, raw: Sequence[Calls]) -> None:
    shard = OTHERS[0]
    spec = _spec(shard)
    assert spec.part is not None
    old = replace(spec.part, shape=(8, 2))
    raw[shard].declare([(replace(spec, part=old), frozenset())])
    weight = Parameter("w", shape=SHAPE)
    weight.initialize("ones")
    assert weight.data().shape == SHAPE


def test_who_may_only_read_completes_nothing(
    session: Session, other: Session, raw: Sequence[Calls], monkeypatch: pytest.MonkeyPatch
) -> None:
    Parameter("whole", shape=SHAPE, session=session).initialize("ones")
    _declare(raw, HOME, OTHERS[0])
    _initialize(raw, HOME, UNIFORM)

    def refuse(*_args: Any, **_kwargs: Any) -> None:
        raise PermissionDeniedError("a token with the right train")

    for method in ("declare", "initialize", "delete"):
        monkeypatch.setattr(Calls, method, refuse)
    ((_, value),) = other.calls.get_data([Selector("whole")], device(0))
    np.testing.assert_array_equal(value, np.ones(SHAPE))
    infos = {info.current.name: info.state for info in other.calls.list_parameters()}
    assert infos == {"w": "declared", "whole": "initialized"}
    (info,) = other.calls.describe(["w"])
    assert (info.state, info.current.shape) == ("declared", SHAPE)
    with pytest.raises((KeyError, RuntimeError), match="'w'"):
        other.calls.get_data([Selector("w")], device(0))
    monkeypatch.undo()
    assert other.calls.describe(["w"])[0].state == "initialized"
