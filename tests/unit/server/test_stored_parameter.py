"""Copies, gradients and copy-on-write of one parameter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from paramd.context import Context, cpu, gpu
from paramd.errors import (
    ContextNotAvailableError,
    ContextWithoutCopyError,
    DeferredInitializationError,
    MemoryLimitError,
    NotInitializedError,
    ShapeMismatchError,
    UninitializedContextError,
)
from paramd.spec import InitializeEntry, InitializerSpec, ParameterSpec, Selector, TensorHead
from paramd_server.arrays.backend import host_array
from paramd_server.arrays.devices import Devices
from paramd_server.arrays.memory import MemoryAccount
from paramd_server.core import attributes
from paramd_server.core.gradient_writing import GradientStage
from paramd_server.core.initialization import finish_deferred, initialize
from paramd_server.core.reading import open_gradients, open_values
from paramd_server.core.registry import Registry
from paramd_server.core.stored_parameter import StoredParameter
from paramd_server.core.value_writing import ValueStage

SHAPE = (4, 5)
ONE = InitializerSpec("one")


@pytest.fixture
def registry() -> Registry:
    return Registry(Devices(MemoryAccount(4 << 20)), 9, lambda spec: None)


def create(
    registry: Registry, *contexts: Context, init: InitializerSpec = ONE, **attributes: Any
) -> StoredParameter:
    spec = replace(ParameterSpec("w", shape=SHAPE), **attributes)
    registry.declare([(spec, ())])
    initialize(
        registry, [InitializeEntry("w", init, 1, 0)], contexts or (cpu(),), force_reinit=False
    )
    with registry.hold(["w"]) as (parameter,):
        return parameter


def value(parameter: StoredParameter, context: Context | None = None) -> np.ndarray[Any, Any]:
    context = context or cpu()
    return np.array(host_array(parameter.backend(context), parameter.copies[context]))


def write(registry: Registry, array: Any, *, stage: Any = None, **head: Any) -> None:
    array = np.asarray(array)
    stage = stage or ValueStage(registry)
    (target,) = stage.place(TensorHead("w", array.shape, array.dtype, **{"mode": "assign", **head}))
    target[...] = array
    stage.commit()


def test_initial_state(registry: Registry) -> None:
    parameter = create(registry, cpu(2), cpu(0), cpu(2))
    assert parameter.state == "initialized"
    assert parameter.contexts == (cpu(2), cpu(0))
    assert parameter.counter == 1
    assert registry.devices.account.used_bytes == 4 * 80
    assert (value(parameter, cpu(2)) == 1).all()


def test_a_write_leaves_what_is_read(registry: Registry) -> None:
    parameter = create(registry)
    account = registry.devices.account
    used = account.used_bytes
    for head in ({}, {"mode": "add", "context": cpu()}, {"region": ((0, 4, 1), (0, 5, 1))}):
        before = value(parameter)
        with open_values(registry, [Selector("w")], cpu()) as (reading,):
            write(registry, np.full(SHAPE, 7, "f4"), **head)
            (part,) = reading.parts
            np.testing.assert_array_equal(part.reshape(SHAPE), before)
            assert account.used_bytes == used + 80
        assert account.used_bytes == used
        assert not np.array_equal(value(parameter), before)
    assert parameter.counter == 4
    assert all(buffer.readers == 0 for buffer in parameter.copies.values())


def test_a_write_that_nobody_reads_stays_in_place(registry: Registry) -> None:
    parameter = create(registry)
    buffer = parameter.copies[cpu()]
    assert parameter.writable(parameter.copies, cpu(), keep=True) is buffer
    with open_values(registry, [Selector("w")], cpu()):
        fresh = parameter.writable(parameter.copies, cpu(), keep=True)
        assert fresh is not buffer
        np.testing.assert_array_equal(host_array(parameter.backend(cpu()), fresh), value(parameter))
    assert parameter.writable(parameter.copies, cpu(), keep=True) is buffer


def test_clearing_gradients_leaves_what_is_read(registry: Registry) -> None:
    parameter = create(registry, grad_req="add")
    write(registry, np.ones(SHAPE, "f4"), stage=GradientStage(registry, cpu()), mode="by_grad_req")
    with open_gradients(registry, [Selector("w")], cpu()) as (reading,):
        attributes.zero_gradients(registry, ["w"])
        assert all((part == 1).all() for part in reading.parts)
    assert not host_array(parameter.backend(cpu()), parameter.gradients[cpu()]).any()


def test_a_failed_stage_commits_nothing(registry: Registry) -> None:
    parameter = create(registry)
    stage = ValueStage(registry)
    stage.place(TensorHead("w", SHAPE, np.dtype("f4"), mode="assign"))
    # The parameter changes between the header and the commit.
    attributes.cast(registry, ["w"], np.dtype("f8"))
    registry.delete(["w"])
    registry.declare([(ParameterSpec("w", shape=(3,)), ())])
    initialize(registry, [InitializeEntry("w", ONE, 1, 0)], (cpu(),), force_reinit=False)
    with pytest.raises(ShapeMismatchError):
        stage.commit()
    assert parameter.deleted
    with registry.hold(["w"]) as (now,):
        assert value(now).tolist() == [1, 1, 1]


def test_memory_limit_leaves_everything_as_it_was(registry: Registry) -> None:
    parameter = create(registry, grad_req="add")
    account = registry.devices.account
    account.limit_bytes = account.used_bytes + 100
    before, info = value(parameter), parameter.info()
    changes: list[Callable[[], None]] = [
        lambda: attributes.cast(registry, ["w"], np.dtype("f8")),
        lambda: attributes.reset_contexts(registry, ["w"], [cpu(1), cpu(2)]),
        lambda: write(registry, np.ones(SHAPE, "f8"), context=cpu()),
    ]
    for change in changes:
        used = account.used_bytes
        with pytest.raises(MemoryLimitError):
            change()
        assert account.used_bytes == used
        assert parameter.info() == info
        np.testing.assert_array_equal(value(parameter), before)


@pytest.mark.parametrize(
    ("dtype", "values", "mean"),
    [
        ("f2", (60000, 60000), 60000),
        ("<i4", (1, 2), 2),
        ("<i4", (2, 3), 2),
        ("<i4", (2**31 - 1, 2**31 - 1), 2**31 - 1),
        ("u1", (255, 254), 254),
        ("f4", (1, 2), 1.5),
    ],
)
def test_moving_takes_the_mean(registry: Registry, dtype: str, values: Any, mean: float) -> None:
    parameter = create(registry, cpu(0), cpu(1), dtype=np.dtype(dtype), grad_req="add")
    for index, each in enumerate(values):
        write(registry, np.full(SHAPE, each, dtype), context=cpu(index))
    stage = GradientStage(registry, cpu())
    write(registry, np.ones(SHAPE, dtype), stage=stage, mode="by_grad_req", context=cpu(1))
    attributes.reset_contexts(registry, ["w"], [cpu(5)])
    assert parameter.contexts == (cpu(5),)
    assert (value(parameter, cpu(5)) == np.array(mean, dtype)).all()
    assert not host_array(parameter.backend(cpu(5)), parameter.gradients[cpu(5)]).any()


def test_moving_what_was_never_initialized(registry: Registry) -> None:
    registry.declare([(ParameterSpec("w", shape=SHAPE), ())])
    with pytest.raises(UninitializedContextError):
        attributes.reset_contexts(registry, ["w"], [cpu(1)])
    with pytest.raises(ContextNotAvailableError):
        attributes.reset_contexts(registry, ["w"], [gpu(0)])


def test_deferred_until_the_shape_is_known(registry: Registry) -> None:
    parameter = create(registry, cpu(1), shape=(0, 5), allow_deferred_init=True)
    assert parameter.state == "deferred"
    with pytest.raises(DeferredInitializationError):
        parameter.resolve(None, cpu())
    attributes.reset_contexts(registry, ["w"], [cpu(3)])
    attributes.set_shape(registry, ["w"], (4, 5))
    assert parameter.state == "deferred"
    finish_deferred(parameter)
    assert parameter.state == "initialized"
    assert parameter.contexts == (cpu(3),)
    assert (value(parameter, cpu(3)) == 1).all()


def test_finishing_that_fails_stays_deferred(registry: Registry) -> None:
    parameter = create(registry, shape=(0, 5), allow_deferred_init=True)
    attributes.set_shape(registry, ["w"], (1000, 5))
    registry.devices.account.limit_bytes = 1000
    for _ in range(2):
        with pytest.raises(MemoryLimitError):
            finish_deferred(parameter)
        assert parameter.state == "deferred"
    assert registry.devices.account.used_bytes == 0


def test_which_copy_is_meant(registry: Registry) -> None:
    registry.declare([(ParameterSpec("x", shape=SHAPE), ())])
    with registry.hold(["x"]) as (fresh,), pytest.raises(NotInitializedError):
        fresh.resolve(None, cpu())
    one = create(registry, cpu(3))
    assert one.resolve(None, cpu(0)) == cpu(3)
    attributes.reset_contexts(registry, ["w"], [cpu(3), cpu(4)])
    assert one.resolve(None, cpu(4)) == cpu(4)
    assert one.resolve(cpu(3), cpu(4)) == cpu(3)
    with pytest.raises(ContextWithoutCopyError):
        one.resolve(None, cpu(0))
