"""Work that several threads share, and the updates that are made so."""

from __future__ import annotations

import _thread
import os
import threading
from collections.abc import Callable
from itertools import pairwise
from typing import Any, Final

import ml_dtypes
import numpy as np
import pytest

from paramd_server.arrays.compiled_threads import in_pieces
from paramd_server.arrays.update_kernels import add_into, is_finite
from tests.unit.optimizers.cases import argument_sets
from tests.unit.optimizers.rules import Run

_SETS: Final = list(argument_sets())
_DTYPES: Final = [np.dtype(each) for each in ("f2", ml_dtypes.bfloat16, "f4", "f8")]
# Above the size at which an update is shared among threads.
_LARGE: Final = 700_001
_PATIENCE_S: Final = 60.0

Processors = Callable[[int], None]


@pytest.fixture(name="processors")
def _processors(monkeypatch: pytest.MonkeyPatch) -> Processors:
    """Sets how many processors there seem to be."""

    def limit(count: int) -> None:
        monkeypatch.setattr(os, "sched_getaffinity", lambda _process: set(range(count)))

    return limit


@pytest.mark.parametrize("num_processors", [1, 2, 3, 64])
@pytest.mark.parametrize("least", [0, 1, 7, 1000])
@pytest.mark.parametrize("count", [0, 1, 2, 13, 14, 1999, 2000, 100_003])
def test_every_part_is_done_once(
    count: int, least: int, num_processors: int, processors: Processors
) -> None:
    processors(num_processors)
    done: list[tuple[int, int]] = []
    in_pieces(lambda begin, end: done.append((begin, end)), count, least=least)
    assert sorted(done)[0][0] == 0
    assert sorted(done)[-1][1] == count
    assert all(one[1] == other[0] for one, other in pairwise(sorted(done)))
    assert len(done) == 1 or min(end - begin for begin, end in done) >= least


def test_several_threads_work_at_a_time(processors: Processors) -> None:
    processors(3)
    together = threading.Barrier(3)
    met = threading.local()

    def work(_begin: int, _end: int) -> None:
        if not hasattr(met, "once"):
            met.once = together.wait(_PATIENCE_S)

    in_pieces(work, 1000, least=1)
    assert not together.broken


def test_one_processor_is_used_by_the_caller(processors: Processors) -> None:
    processors(1)
    threads: set[int] = set()
    in_pieces(lambda _begin, _end: threads.add(threading.get_ident()), 1000, least=1)
    assert threads == {threading.get_ident()}


def test_the_caller_does_everything_where_there_are_no_threads(
    monkeypatch: pytest.MonkeyPatch, processors: Processors
) -> None:
    def refuse(*_arguments: object) -> None:
        raise RuntimeError("can't start new thread")

    processors(4)
    monkeypatch.setattr(_thread, "start_new_thread", refuse)
    done = np.zeros(1000, np.int64)

    def work(begin: int, end: int) -> None:
        done[begin:end] += 1

    in_pieces(work, 1000, least=1)
    assert (done == 1).all()


@pytest.mark.parametrize("by_caller", [True, False])
def test_an_error_comes_to_the_caller(processors: Processors, *, by_caller: bool) -> None:
    processors(2)
    caller = threading.get_ident()
    failed = threading.Event()

    def work(_begin: int, _end: int) -> None:
        if (threading.get_ident() == caller) == by_caller:
            failed.set()
            raise ValueError("no")
        assert failed.wait(_PATIENCE_S)

    with pytest.raises(ValueError, match="no"):
        in_pieces(work, 1000, least=1)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("dtype", _DTYPES, ids=str)
@pytest.mark.parametrize(("name", "arguments"), [_SETS[0], ("adam", {}), ("lamb", {})])
def test_threads_change_no_bit(
    name: str,
    arguments: dict[str, Any],
    dtype: np.dtype[Any],
    processors: Processors,
    *,
    sparse: bool,
) -> None:
    shape = (_LARGE // 3, 3) if sparse else (_LARGE,)
    random = np.random.default_rng(7)
    weight = random.normal(size=shape).astype(dtype)
    ids = np.flatnonzero(random.integers(0, 8, shape[0])) if sparse else None
    gradient = random.normal(size=shape if ids is None else (len(ids), 3)).astype(dtype)
    found = []
    for count in (1, 3):
        processors(count)
        run = Run(name, arguments, weight)
        for _ in range(2):
            run.step(gradient, ids)
        found.append([run.value(), *(run.state(each) for each in sorted(run.states))])
    assert [each.tobytes() for each in found[0]] == [each.tobytes() for each in found[1]]


def test_large_updates_need_no_kernel_of_their_own(processors: Processors) -> None:
    from paramd_server.arrays.compiled_updates import KERNELS

    processors(3)
    run = Run("adam", {}, np.ones((_LARGE // 3, 3), np.float32))
    run.rule.warm_up(run.backend, run.weight.dtype)
    kernel: Any = KERNELS["adam"]
    known = len(kernel.signatures)
    gradient = np.ones((_LARGE // 3, 3), np.float32)
    gradient.flags.writeable = False
    run.step(gradient)
    run.step(gradient[1:], np.arange(1, _LARGE // 3))
    assert len(kernel.signatures) == known


@pytest.mark.parametrize("place", [None, 0, 2_500_000, 4_999_999])
def test_large_gradients_are_checked_everywhere(place: int | None, processors: Processors) -> None:
    processors(3)
    array = np.ones(5_000_000, np.float32)
    if place is not None:
        array[place] = np.nan
    assert is_finite(array) is (place is None)


@pytest.mark.parametrize("dtype", _DTYPES, ids=str)
def test_large_sums_are_those_of_numpy(dtype: np.dtype[Any], processors: Processors) -> None:
    processors(3)
    random = np.random.default_rng(3)
    # Some of them overflow, of which no thread warns.
    largest = ml_dtypes.finfo(dtype).max  # type: ignore[no-untyped-call]
    value = random.uniform(-1, 1, _LARGE).astype(dtype) * dtype.type(largest)
    target = value[::-1].copy()
    with np.errstate(all="ignore"):
        expected = target + value
    add_into(target, value)
    np.testing.assert_array_equal(target, expected)
    assert np.isinf(target).any()
