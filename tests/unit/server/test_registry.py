"""Declaring, attaching, listing, deleting, locking."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from paramd.errors import (
    AttributeMismatchError,
    InvalidArgumentError,
    ParameterNotFoundError,
)
from paramd.spec import InitializerSpec, ParameterSpec
from paramd_server.arrays.devices import Devices
from paramd_server.arrays.memory import MemoryAccount
from paramd_server.core.registry import Registry

EVERYTHING = frozenset(
    {"shape", "dtype", "stype", "grad_stype", "grad_req", "lr_mult", "wd_mult", "init"}
    | {"allow_deferred_init", "differentiable"}
)
SPEC = ParameterSpec("w", shape=(4, 5), init=InitializerSpec("one"))


@pytest.fixture
def registry() -> Registry:
    return Registry(Devices(MemoryAccount(1 << 20)), 9, lambda spec: None)


def names(registry: Registry) -> list[str]:
    return [info.current.name for info in registry.page("", "", 1000)[0]]


def test_first_declaration_creates_and_the_next_attaches(registry: Registry) -> None:
    (first,) = registry.declare([(SPEC, EVERYTHING)])
    assert (first.state, first.declared, first.version.epoch) == ("declared", SPEC, 9)
    assert registry.declare([(SPEC, EVERYTHING)]) == [first]
    assert len(registry) == 1


@pytest.mark.parametrize(
    ("attribute", "value"),
    [
        ("dtype", np.dtype("f8")),
        ("stype", "row_sparse"),
        ("grad_stype", "row_sparse"),
        ("grad_req", "add"),
        ("lr_mult", 2.0),
        ("wd_mult", 0.5),
        ("init", InitializerSpec("zero")),
        ("allow_deferred_init", True),
        ("differentiable", False),
        ("shape", (4, 6)),
        ("shape", (20,)),
    ],
)
def test_stated_attributes_must_agree(registry: Registry, attribute: str, value: Any) -> None:
    registry.declare([(SPEC, EVERYTHING)])
    before = registry.describe(["w"])
    other = replace(SPEC, **{attribute: value})
    new = replace(SPEC, name="new")
    with pytest.raises(AttributeMismatchError, match=attribute) as caught:
        registry.declare([(new, ()), (other, {attribute})])
    assert caught.value.parameter == "w"
    assert registry.describe(["w"]) == before
    assert len(registry) == 1
    assert registry.declare([(other, EVERYTHING - {attribute, "grad_req"})]) == before


def test_a_constant_is_no_parameter(registry: Registry) -> None:
    registry.declare([(SPEC, ())])
    with pytest.raises(AttributeMismatchError, match="Constant"):
        registry.declare([(replace(SPEC, constant=True), ())])


@pytest.mark.parametrize("change", [{"constant": True}, {"differentiable": False}])
def test_what_cannot_have_a_gradient_has_none(registry: Registry, change: dict[str, Any]) -> None:
    (info,) = registry.declare([(replace(SPEC, grad_req="add", **change), ())])
    assert info.current.grad_req == "null"
    assert registry.declare([(replace(SPEC, grad_req="write", **change), {"grad_req"})]) == [info]


@pytest.mark.parametrize(
    ("first", "second", "merged"),
    [
        (None, (4, 5), (4, 5)),
        ((0, 5), (4, 0), (4, 5)),
        ((-1, 5), (4, -1), (4, 5)),
        ((4, 5), None, (4, 5)),
        ((4, 5), (0, 5), (4, 5)),
    ],
)
def test_shapes_are_merged(registry: Registry, first: Any, second: Any, merged: Any) -> None:
    registry.declare([(replace(SPEC, shape=first), ())])
    (info,) = registry.declare([(replace(SPEC, shape=second), {"shape"})])
    assert info.current.shape == merged
    assert info.declared.shape == first


def test_an_unstated_shape_changes_nothing(registry: Registry) -> None:
    registry.declare([(replace(SPEC, shape=(0, 5)), ())])
    (info,) = registry.declare([(replace(SPEC, shape=(4, 5)), ())])
    assert info.current.shape == (0, 5)


def test_one_call_may_declare_a_name_twice(registry: Registry) -> None:
    infos = registry.declare(
        [(replace(SPEC, shape=(0, 5)), {"shape"}), (replace(SPEC, shape=(4, 0)), {"shape"})]
    )
    assert [info.current.shape for info in infos] == [(4, 5), (4, 5)]
    with pytest.raises(AttributeMismatchError):
        registry.declare(
            [(replace(SPEC, name="x"), {"shape"})] * 1
            + [(replace(SPEC, name="x", shape=(9,)), {"shape"})]
        )
    assert names(registry) == ["w"]


def test_attaching_does_not_undo_a_shape_that_becomes_known_meanwhile(registry: Registry) -> None:
    registry.declare([(replace(SPEC, shape=None), ())])
    with registry.hold(["w"]) as (parameter,):
        thread = threading.Thread(target=lambda: registry.declare([(SPEC, {"dtype"})]))
        thread.start()
        # It waits for the parameter now, or would have read the old shape already.
        thread.join(0.2)
        assert thread.is_alive()
        parameter.current = replace(parameter.current, shape=(7, 8))
    thread.join(10)
    assert registry.describe(["w"])[0].current.shape == (7, 8)


def test_pages_are_in_order_of_creation(registry: Registry) -> None:
    for name in ("b", "a", "net_2", "net_1", "net_3"):
        registry.declare([(replace(SPEC, name=name), ())])
    assert names(registry) == ["b", "a", "net_2", "net_1", "net_3"]
    page, token = registry.page("net_", "", 2)
    assert [info.current.name for info in page] == ["net_2", "net_1"]
    page, token = registry.page("net_", token, 2)
    assert [info.current.name for info in page] == ["net_3"]
    assert token == ""
    assert registry.page("none", "", 2) == ([], "")
    with pytest.raises(InvalidArgumentError):
        registry.page("", "gone", 2)


def test_delete_is_all_or_none(registry: Registry) -> None:
    for name in "abc":
        registry.declare([(replace(SPEC, name=name), ())])
    with pytest.raises(ParameterNotFoundError) as caught:
        registry.delete(["a", "none", "b"])
    assert caught.value.parameter == "none"
    assert names(registry) == ["a", "b", "c"]
    registry.delete(["a", "c"])
    assert names(registry) == ["b"]


def test_what_was_deleted_while_one_waited_is_not_found(registry: Registry) -> None:
    registry.declare([(SPEC, ())])
    failures: list[Exception] = []

    def late() -> None:
        try:
            with registry.hold(["w"]):
                pass
        except ParameterNotFoundError as err:
            failures.append(err)

    with registry.hold(["w"]):
        thread = threading.Thread(target=late)
        thread.start()
        thread.join(0.1)
        registry.delete(["w"])
    thread.join(10)
    assert len(failures) == 1


def test_holding_in_any_order_does_not_deadlock(registry: Registry) -> None:
    for name in "abcd":
        registry.declare([(replace(SPEC, name=name), ())])

    def turns(order: str) -> None:
        for _ in range(300):
            with registry.hold(list(order) + list(order)) as held:
                assert [each.name for each in held] == [*order, *order]

    threads = [threading.Thread(target=turns, args=(order,)) for order in ("abcd", "dcba", "bdac")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
