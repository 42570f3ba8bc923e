"""Sections of a snapshot: what they give, and what they take up."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest

from paramd.context import Context, cpu, gpu
from paramd.spec import InitializeEntry, InitializerSpec, ParameterSpec
from paramd_server.arrays.backend import host_array
from paramd_server.arrays.devices import Devices
from paramd_server.arrays.memory import MemoryAccount
from paramd_server.core.capture import no_scratch
from paramd_server.core.coordination import Claims
from paramd_server.core.held_buffers import BufferHolds
from paramd_server.core.initialization import initialize
from paramd_server.core.operations import Operation, OperationWindow
from paramd_server.core.registry import Registry
from paramd_server.core.snapshot import (
    ArraysReader,
    SavedSection,
    Section,
    SnapshotError,
    restore_sections,
    whole_array,
)
from paramd_server.core.snapshot_buffers import restore_buffers, save_buffers
from paramd_server.core.snapshot_parameters import ParametersSection
from paramd_server.core.snapshot_sessions import ClaimsSection, OperationsSection, WorkersSection
from paramd_server.core.workers import Workers
from tests.support.snapshots import MemorySnapshot, captured, saved

SHAPE = (4, 5)
ONE = InitializerSpec("one")


def empty(limit: int = 4 << 20) -> Registry:
    return Registry(Devices(MemoryAccount(limit)), 9, lambda spec: None)


def held(registry: Registry, name: str, *contexts: Context, **attributes: Any) -> Any:
    registry.declare([(ParameterSpec(name, shape=SHAPE, **attributes), ())])
    entry = InitializeEntry(name, ONE, 1, 0)
    initialize(registry, [entry], contexts or (cpu(),), force_reinit=False)
    with registry.hold([name]) as (parameter,):
        return parameter


def blank(sections: Sequence[Section]) -> bool:
    return all(section.blank for section in captured(sections).sections().values())


def array_of(parameter: Any, context: Context) -> Any:
    return host_array(parameter.backend(context), parameter.copies[context])


def again(registry: Registry, limit: int = 4 << 20) -> tuple[Registry, MemorySnapshot]:
    """Another registry that took up what the first one saved."""
    memory = saved([ParametersSection(registry)], registry)
    other = empty(limit)
    restore_sections([ParametersSection(other)], memory)
    return other, memory


def test_copies_of_equal_bytes_are_kept_once_and_zeros_not_at_all() -> None:
    registry = empty()
    parameter = held(registry, "w", cpu(2), cpu(0), cpu(1), cpu(5))
    array_of(parameter, cpu(1))[:] = np.nan
    array_of(parameter, cpu(5))[:] = 0
    other, memory = again(registry)
    assert len(memory.stored) == 2
    with other.hold(["w"]) as (taken,):
        assert list(taken.copies) == [cpu(2), cpu(0), cpu(1), cpu(5)]
        for context in taken.copies:
            np.testing.assert_array_equal(array_of(taken, context), array_of(parameter, context))
        # Each has memory of its own.
        array_of(taken, cpu(2))[:] = 7
        assert (array_of(taken, cpu(0)) == 1).all()
    assert other.devices.account.used_bytes == registry.devices.account.used_bytes


def test_zero_of_either_sign_stays_what_it_is() -> None:
    registry = empty()
    parameter = held(registry, "w", cpu(0), cpu(1))
    array_of(parameter, cpu(0))[:] = 0.0
    array_of(parameter, cpu(1))[:] = -0.0
    other, _ = again(registry)
    with other.hold(["w"]) as (taken,):
        assert not np.signbit(array_of(taken, cpu(0))).any()
        assert np.signbit(array_of(taken, cpu(1))).all()


def test_counters_go_on_under_the_new_epoch() -> None:
    registry = empty()
    parameter = held(registry, "w")
    parameter.counter, parameter.gradient_counter = 2**40, 7
    memory = saved([ParametersSection(registry)], registry)
    other = Registry(Devices(MemoryAccount(1 << 20)), 11, lambda spec: None)
    restore_sections([ParametersSection(other)], memory)
    with other.hold(["w"]) as (taken,):
        assert (taken.version.epoch, taken.version.counter) == (11, 2**40)
        assert (taken.gradient_version.epoch, taken.gradient_version.counter) == (11, 7)


def test_state_that_does_not_fit_names_the_parameter() -> None:
    registry = empty()
    held(registry, "w")
    with pytest.raises(SnapshotError, match=r"'parameters'.*'w'.*memory limit"):
        again(registry, limit=100)


def test_context_that_is_not_there_is_named() -> None:
    registry = empty()
    held(registry, "w")
    memory = saved([ParametersSection(registry)], registry)
    memory.documents["parameters"]["parameters"][0]["copies"][0]["context"] = str(gpu(0))
    with pytest.raises(SnapshotError, match=r"gpu\(0\)"):
        restore_sections([ParametersSection(empty())], memory)


@pytest.mark.parametrize("missing", ["declared", "copies", "counter", "deferred"])
def test_document_that_lacks_something(missing: str) -> None:
    registry = empty()
    held(registry, "w")
    memory = saved([ParametersSection(registry)], registry)
    del memory.documents["parameters"]["parameters"][0][missing]
    with pytest.raises(SnapshotError, match=f"'parameters'.*'{missing}'"):
        restore_sections([ParametersSection(empty())], memory)


def test_a_server_that_holds_something_takes_nothing_up() -> None:
    registry = empty()
    held(registry, "w")
    memory = saved([ParametersSection(registry)], registry)
    with pytest.raises(SnapshotError, match="already"):
        restore_sections([ParametersSection(registry)], memory)


def test_windows_come_back_with_their_answers() -> None:
    window = OperationWindow()
    large = 2**64 - 1
    window.run(Operation(b"a" * 16, 5, 3), lambda: b"five")
    window.run(Operation(b"b" * 16, large, 0), lambda: b"")
    window.run(Operation(b"a" * 16, 4, 0), lambda: b"\0four")
    with pytest.raises(ZeroDivisionError):
        window.run(Operation(b"a" * 16, 7, 0), lambda: bytes(1 // 0))
    memory = saved([OperationsSection(window)])
    other = OperationWindow()
    restore_sections([OperationsSection(other)], memory)
    assert other.saved() == window.saved()
    assert other.answered(Operation(b"a" * 16, 4, 0)) == b"\0four"
    assert other.answered(Operation(b"b" * 16, large, 0)) == b""
    assert other.answered(Operation(b"a" * 16, 7, 0)) is None


def test_lists_of_a_window_that_do_not_fit() -> None:
    window = OperationWindow()
    window.run(Operation(b"a" * 16, 1, 0), lambda: b"answer")
    memory = saved([OperationsSection(window)])
    memory.stored["operations/answers"] = memory.stored["operations/answers"][:-1]
    with pytest.raises(SnapshotError, match="'operations'"):
        restore_sections([OperationsSection(OperationWindow())], memory)


def test_sections_of_an_untouched_server_are_blank() -> None:
    workers = Workers()
    sections: list[Section] = [
        ParametersSection(empty()),
        OperationsSection(OperationWindow()),
        ClaimsSection(Claims()),
        WorkersSection(workers),
    ]
    workers.greet(b"a" * 16, "came")
    assert blank(sections)
    workers.count_push(b"a" * 16, 1)
    assert not blank(sections)


class Extra:
    """A section of its own."""

    name = "extra"

    def __init__(self) -> None:
        self.taken: Mapping[str, Any] | None = None

    def capture(self, holds: BufferHolds) -> Callable[[], SavedSection]:
        return lambda: SavedSection({"number": 0.1}, [whole_array("a/b", np.arange(3))])

    def restore(self, document: Mapping[str, Any], arrays: ArraysReader) -> None:
        self.taken = document


def test_array_that_nobody_takes_up_is_an_error() -> None:
    memory, extra = saved([Extra()]), Extra()
    with pytest.raises(SnapshotError, match="'extra/a/b'"):
        restore_sections([extra], memory)
    assert extra.taken == {"number": 0.1}


def test_section_that_nobody_knows_is_an_error_and_one_that_is_not_there_stays_empty() -> None:
    memory, extra = saved([Extra()]), Extra()
    with pytest.raises(SnapshotError, match="'extra' is unknown"):
        restore_sections([ClaimsSection(Claims())], memory)
    restore_sections([extra], MemorySnapshot({}))
    assert extra.taken is None


def test_two_sections_of_one_name() -> None:
    with pytest.raises(ValueError, match="'extra'"):
        captured([Extra(), Extra()])


def test_context_that_comes_twice() -> None:
    devices = empty().devices
    buffers = {cpu(): devices.backend(cpu()).zeros(SHAPE, np.dtype("f4"), cpu())}
    holds = BufferHolds(devices, no_scratch)
    held = {each: holds.find(buffer, by_rows=False) for each, buffer in buffers.items()}
    entries, arrays = save_buffers("key", held, nullcontext())
    assert entries == [{"context": "cpu(0)", "array": None}]
    assert arrays == []
    with pytest.raises(ValueError, match="twice"):
        restore_buffers(entries * 2, MemorySnapshot({}).arrays(""), SHAPE, np.dtype("f4"), devices)
