"""Parameters of which a server holds a part: declaring, first values, what stays recorded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest

from paramd.context import Context, cpu
from paramd.errors import (
    AttributeMismatchError,
    InitializerError,
    InvalidArgumentError,
    MemoryLimitError,
    ShapeMismatchError,
    UninitializedValueError,
)
from paramd.initial_values import fill
from paramd.spec import (
    FirstValue,
    InitializeEntry,
    InitializerSpec,
    LoadOptions,
    ParameterSpec,
    Part,
    Shape,
    StoredInfo,
    TensorHead,
)
from paramd_server.arrays.backend import host_array
from paramd_server.arrays.devices import Devices
from paramd_server.arrays.memory import MemoryAccount
from paramd_server.core import attributes
from paramd_server.core.initialization import finish_deferred, initialize
from paramd_server.core.loading import LoadStage
from paramd_server.core.registry import Registry
from paramd_server.core.value_writing import FirstValueStage, ValueStage

WHOLE = (10, 3)
EVEN = Part(WHOLE, 4, 3, 1)
STRIDED = Part(WHOLE, 1, 5, 2)
NORMAL = InitializerSpec("normal", {"sigma": 2.0})
FIRST = FirstValue(NORMAL, 7, 2, (cpu(0), cpu(1)))
OWN = InitializerSpec(client_side=True)


@pytest.fixture
def registry() -> Registry:
    return Registry(Devices(MemoryAccount(4 << 20)), 9, lambda spec: None)


def spec_of(part: Part | None = None, shape: Shape | None = None, **more: Any) -> ParameterSpec:
    if part is not None:
        shape = part.local_shape
    return ParameterSpec("w", shape=shape, part=part, allow_deferred_init=True, **more)


def declared(registry: Registry, spec: ParameterSpec, *compared: str) -> StoredInfo:
    (info,) = registry.declare([(spec, compared)])
    return info


def info_of(registry: Registry) -> StoredInfo:
    return registry.describe(["w"])[0]


def initialized(registry: Registry, first: FirstValue = FIRST, *, force: bool = False) -> str:
    entry = InitializeEntry("w", first.init, first.seed, first.draw)
    ((outcome, _),) = initialize(registry, [entry], first.contexts, force_reinit=force)
    return outcome


def value(registry: Registry, context: Context | None = None) -> np.ndarray[Any, Any]:
    with registry.hold(["w"]) as (parameter,):
        buffer = parameter.copies[context or cpu()]
        return np.array(host_array(parameter.backend(buffer.context), buffer))


def whole_value(first: FirstValue = FIRST, dtype: str = "f4") -> np.ndarray[Any, Any]:
    return fill(first.init, "w", WHOLE, np.dtype(dtype), seed=first.seed, draw=first.draw)


def write(registry: Registry, stage: Any = None, shape: Shape = EVEN.local_shape) -> None:
    stage = stage or ValueStage(registry)
    (target,) = stage.place(TensorHead("w", shape, np.dtype("f4"), mode="assign"))
    target[...] = 5
    stage.commit()


def rows_of(part: Part) -> slice:
    return slice(part.begin, part.begin + (part.count - 1) * part.step + 1, part.step)


@pytest.mark.parametrize("part", [EVEN, STRIDED, Part(WHOLE, 9, 1, 1), Part(WHOLE, 0, 10, 1)])
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
@pytest.mark.parametrize("name", ["normal", "xavier", "orthogonal", "lstmbias", "zero"])
def test_first_value_of_a_part_is_that_of_its_rows(
    registry: Registry, part: Part, dtype: str, name: str
) -> None:
    first = replace(FIRST, init=InitializerSpec(name))
    declared(registry, spec_of(part, dtype=np.dtype(dtype)))
    assert initialized(registry, first) == "initialized"
    for context in first.contexts:
        expected = whole_value(first, dtype)[rows_of(part)]
        assert value(registry, context).tobytes() == expected.tobytes()
    assert info_of(registry).current.part == part
    assert info_of(registry).declared.part == part


@pytest.mark.parametrize("vague", [None, (0, 3), (-1, 0), (10, -1)])
@pytest.mark.parametrize("by_declaring", [True, False])
def test_deferred_first_value_of_a_part_is_that_of_its_rows(
    registry: Registry, vague: Shape | None, by_declaring: bool
) -> None:
    declared(registry, spec_of(shape=vague))
    assert initialized(registry) == "deferred"
    if by_declaring:
        declared(registry, spec_of(STRIDED), "shape")
    else:
        attributes.set_shape(registry, ["w"], STRIDED.local_shape, STRIDED)
    info = info_of(registry)
    assert (info.current.shape, info.current.part) == ((5, 3), STRIDED)
    assert (info.declared.shape, info.declared.part) == (vague, None)
    assert (info.state, info.first_value) == ("deferred", FIRST)
    with registry.hold(["w"]) as (parameter,):
        finish_deferred(parameter)
    assert value(registry).tobytes() == whole_value()[1::2].tobytes()
    assert info_of(registry).first_value == FIRST


@pytest.mark.parametrize("init", [InitializerSpec("zero"), NORMAL])
@pytest.mark.parametrize("deferred", [True, False])
def test_what_an_initializer_needs_of_a_shape_it_needs_of_the_whole(
    registry: Registry, init: InitializerSpec, deferred: bool
) -> None:
    part = Part((2**40, 2**40), 0, 1, 1)
    first = replace(FIRST, init=init)
    if deferred:
        declared(registry, spec_of())
        assert initialized(registry, first) == "deferred"
    declared(registry, spec_of(part))
    before = info_of(registry)
    with registry.hold(["w"]) as (parameter,):
        finish: Callable[[], object] = partial(finish_deferred, parameter)
        give = finish if deferred else partial(initialized, registry, first)
        with pytest.raises(InitializerError, match=r"\(1099511627776, 1099511627776\)"):
            give()
    assert info_of(registry) == before


def test_a_decomposition_is_counted_whole(registry: Registry) -> None:
    declared(registry, spec_of(Part((1000, 1000), 0, 1, 1)))
    used = registry.devices.account.used_bytes
    with pytest.raises(MemoryLimitError):
        initialized(registry, replace(FIRST, init=InitializerSpec("orthogonal")))
    assert registry.devices.account.used_bytes == used
    assert info_of(registry).state == "declared"


def test_a_part_of_a_huge_parameter_takes_its_own_memory(registry: Registry) -> None:
    declared(registry, spec_of(Part((2**40, 16), 3, 1000, 2**20)))
    assert initialized(registry) == "initialized"
    assert registry.devices.account.used_bytes == 2 * 2 * 1000 * 16 * 4


@pytest.mark.parametrize(
    ("now", "spec", "merged"),
    [
        (spec_of(EVEN), spec_of(EVEN), EVEN),
        (spec_of(), spec_of(EVEN), EVEN),
        (spec_of(shape=(0, 3)), spec_of(EVEN), EVEN),
        (spec_of(shape=(-1, -1)), spec_of(STRIDED), STRIDED),
        (spec_of(EVEN), spec_of(), EVEN),
        (spec_of(EVEN), spec_of(shape=(0, 3)), EVEN),
        (spec_of(EVEN), spec_of(shape=(10, -1)), EVEN),
    ],
)
@pytest.mark.parametrize("is_initialized", [True, False])
def test_parts_that_agree(
    registry: Registry, now: ParameterSpec, spec: ParameterSpec, merged: Part, is_initialized: bool
) -> None:
    declared(registry, now)
    if is_initialized:
        initialized(registry)
    info = declared(registry, spec, "shape")
    assert (info.current.shape, info.current.part) == (merged.local_shape, merged)
    assert info.declared == now


@pytest.mark.parametrize(
    ("now", "spec", "message"),
    [
        (
            spec_of(EVEN),
            spec_of(Part((12, 3), 4, 3, 1)),
            r"attribute 'shape': desired '\(12, 3\)' vs stored '\(10, 3\)'",
        ),
        (
            spec_of(EVEN),
            spec_of(Part(WHOLE, 5, 3, 1)),
            r"'part': .*3 rows from 5 of shape \(10, 3\).*3 rows from 4 of shape \(10, 3\)",
        ),
        (spec_of(STRIDED), spec_of(Part(WHOLE, 1, 5, 1)), r"from 1 of.*from 1 in steps of 2"),
        (spec_of(EVEN), spec_of(shape=WHOLE), r"'part': desired '\(10, 3\)' vs stored '\(3, 3\)"),
        (spec_of(EVEN), spec_of(shape=(3, 3)), r"desired '\(3, 3\)' vs stored '\(10, 3\)'"),
        (spec_of(EVEN), spec_of(shape=(0, 4)), r"desired '\(0, 4\)' vs stored '\(10, 3\)'"),
        (spec_of(EVEN), spec_of(shape=(0,)), r"desired '\(0,\)' vs stored '\(10, 3\)'"),
        (spec_of(shape=WHOLE), spec_of(EVEN), r"'part': .*vs stored '\(10, 3\)'"),
        (spec_of(shape=(3, 3)), spec_of(EVEN), r"desired '\(10, 3\)' vs stored '\(3, 3\)'"),
        (spec_of(shape=(0, 4)), spec_of(EVEN), r"desired '\(10, 3\)' vs stored '\(0, 4\)'"),
        (spec_of(shape=(3, 0)), spec_of(EVEN), r"desired '\(10, 3\)' vs stored '\(3, 0\)'"),
    ],
)
def test_parts_that_do_not_agree(
    registry: Registry, now: ParameterSpec, spec: ParameterSpec, message: str
) -> None:
    declared(registry, now)
    before = info_of(registry)
    new = replace(spec, name="new")
    with pytest.raises(AttributeMismatchError, match=message) as caught:
        registry.declare([(new, ()), (spec, {"shape"})])
    assert caught.value.parameter == "w"
    assert info_of(registry) == before
    assert len(registry) == 1


def test_a_part_is_compared_whatever_the_user_stated(registry: Registry) -> None:
    declared(registry, spec_of(EVEN))
    with pytest.raises(AttributeMismatchError, match="part"):
        declared(registry, spec_of(STRIDED))
    assert declared(registry, spec_of(shape=(77,))).current.part == EVEN


@pytest.mark.parametrize("spec", [spec_of(), spec_of(shape=(-1, 3)), spec_of(EVEN)])
def test_a_shape_is_set_with_its_part(registry: Registry, spec: ParameterSpec) -> None:
    declared(registry, spec)
    attributes.set_shape(registry, ["w"], (3, 3), EVEN)
    current = info_of(registry).current
    assert (current.shape, current.part) == ((3, 3), EVEN)
    assert info_of(registry).declared == spec


@pytest.mark.parametrize(
    ("now", "part", "shape", "message"),
    [
        (spec_of(EVEN), None, WHOLE, r"Expected shape \(10, 3\) .*shape \(3, 3\) \(3 rows from 4"),
        (spec_of(EVEN), None, (3, 3), r"Expected shape \(3, 3\) .*shape \(10, 3\)"),
        (spec_of(EVEN), STRIDED, None, r"5 rows from 1 in steps of 2 .*3 rows from 4"),
        (spec_of(EVEN), Part((12, 3), 4, 3, 1), None, r"shape \(12, 3\) .*shape \(10, 3\)"),
        (spec_of(shape=WHOLE), EVEN, None, r"3 rows from 4 .*shape \(10, 3\)"),
        (spec_of(shape=(3, 3)), EVEN, None, r"shape \(10, 3\) .*shape \(3, 3\)"),
        (spec_of(shape=(0, 4)), EVEN, None, r"shape \(10, 3\) .*shape \(0, 4\)"),
        (spec_of(shape=(0,)), EVEN, None, r"shape \(10, 3\) .*shape \(0,\)"),
    ],
)
def test_a_shape_that_does_not_fit_is_not_set(
    registry: Registry, now: ParameterSpec, part: Part | None, shape: Shape | None, message: str
) -> None:
    declared(registry, now)
    before = info_of(registry)
    given = shape or (part.local_shape if part is not None else None)
    assert given is not None
    with pytest.raises(ShapeMismatchError, match=message):
        attributes.set_shape(registry, ["w"], given, part)
    assert info_of(registry) == before


def test_a_part_has_the_shape_that_comes_with_it(registry: Registry) -> None:
    declared(registry, spec_of())
    for shape in (WHOLE, (0, 3), (3,), ()):
        with pytest.raises(InvalidArgumentError, match=r"does not have the shape"):
            attributes.set_shape(registry, ["w"], shape, EVEN)
    assert info_of(registry).current.shape is None


def test_errors_name_the_shape_of_the_whole_too(registry: Registry) -> None:
    declared(registry, spec_of(EVEN))
    initialized(registry)
    for stage in (
        ValueStage(registry),
        FirstValueStage(registry, [cpu()], force_reinit=True),
        LoadStage(registry, LoadOptions(("w",))),
    ):
        with pytest.raises(ShapeMismatchError, match=r"\(3, 3\) \(3 rows from 4 of shape \(10, 3"):
            write(registry, stage, WHOLE)


def test_what_the_server_computed_stays_recorded(registry: Registry) -> None:
    """So that another shard can follow: as one that no later write has reached."""
    declared(registry, spec_of(EVEN))
    assert info_of(registry).first_value is None
    initialized(registry)
    changes: list[Callable[[], object]] = [
        lambda: write(registry),
        lambda: attributes.cast(registry, ["w"], np.dtype("f2")),
        lambda: attributes.set_grad_req(registry, ["w"], "add"),
        lambda: write(registry, LoadStage(registry, LoadOptions(("w",), cast_dtype=True))),
        lambda: write(registry, FirstValueStage(registry, [cpu()], force_reinit=False)),
        lambda: initialized(registry, replace(FIRST, seed=8)),
        lambda: initialized(registry, replace(FIRST, init=OWN), force=True),
    ]
    for change in changes:
        change()
        assert info_of(registry).first_value == FIRST


def test_contexts_of_what_is_recorded_follow_the_copies(registry: Registry) -> None:
    declared(registry, spec_of(EVEN))
    initialized(registry)
    attributes.reset_contexts(registry, ["w"], [cpu(3)])
    assert info_of(registry).first_value == replace(FIRST, contexts=(cpu(3),))
    info = info_of(registry)
    assert (info.current.part, info.contexts) == (EVEN, (cpu(3),))


def test_contexts_of_a_deferred_part_follow_too(registry: Registry) -> None:
    declared(registry, spec_of())
    initialized(registry)
    attributes.reset_contexts(registry, ["w"], [cpu(3)])
    assert info_of(registry).first_value == replace(FIRST, contexts=(cpu(3),))


def test_another_initialization_is_recorded_instead(registry: Registry) -> None:
    declared(registry, spec_of(EVEN))
    initialized(registry)
    again = FirstValue(InitializerSpec("one"), 8, 0, (cpu(2),))
    initialized(registry, again, force=True)
    assert info_of(registry).first_value == again


@pytest.mark.parametrize("deferred", [True, False])
def test_a_value_that_a_client_computed_is_not_recorded(registry: Registry, deferred: bool) -> None:
    declared(registry, spec_of(EVEN))
    if deferred:
        own = replace(FIRST, init=OWN)
        initialized(registry, own)
        info = info_of(registry)
        assert (info.first_value, info.awaits_client_value) == (own, True)
    write(registry, FirstValueStage(registry, [cpu()], force_reinit=False))
    assert info_of(registry).first_value is None
    initialized(registry, force=True)
    assert info_of(registry).first_value == FIRST
    write(registry, FirstValueStage(registry, [cpu()], force_reinit=True))
    assert info_of(registry).first_value is None
    assert info_of(registry).current.part == EVEN


def test_a_first_value_of_a_file_is_not_recorded(registry: Registry) -> None:
    declared(registry, spec_of(EVEN))
    write(registry, LoadStage(registry, LoadOptions(("w",))))
    info = info_of(registry)
    assert (info.state, info.first_value, info.current.part) == ("initialized", None, EVEN)


def test_a_value_in_place_of_a_deferred_one_is_not_recorded(registry: Registry) -> None:
    declared(registry, spec_of())
    with pytest.raises(UninitializedValueError):
        write(registry)
    initialized(registry, replace(FIRST, init=OWN))
    attributes.set_shape(registry, ["w"], (3, 3), EVEN)
    write(registry)
    info = info_of(registry)
    assert (info.state, info.first_value, info.current.part) == ("initialized", None, EVEN)
