"""What goes to a GPU and comes back, in chunks that are smaller than it."""

from __future__ import annotations

import gc
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from unittest import mock

import ml_dtypes
import numpy as np
import pytest

from paramd.context import cpu, gpu
from paramd.errors import MemoryLimitError
from paramd_server.arrays.backend import Buffer, host_array
from paramd_server.arrays.cuda.backend import CudaBackend
from paramd_server.arrays.memory import MemoryAccount, SpareBuffers
from paramd_server.arrays.numpy_backend import NumpyBackend
from tests.support.cuda_backends import HOST_LIMIT, SMALL, filled, new_backend
from tests.support.emulated_cuda import Emulator, have_compiler, install
from tests.support.emulated_cuda.streams import Event

pytestmark = pytest.mark.skipif(not have_compiler(), reason="needs g++ for kernels on the host")

# Twenty chunks of a slot.
COUNT = 20 * SMALL.slot_bytes // 4 + 5
# Sums of squares in other orders.
LAMB_TOLERANCE = 1e-5


@pytest.fixture(params=range(3))
def machine(request: pytest.FixtureRequest) -> Iterator[Emulator]:
    """Two GPUs where nothing runs before it must, and two where things run earlier."""
    with install(num_devices=2, memory_bytes=64 << 20, seed=request.param) as emulator:
        yield emulator


@pytest.fixture
def account() -> MemoryAccount:
    return MemoryAccount(HOST_LIMIT)


@pytest.fixture
def backend(machine: Emulator, account: MemoryAccount) -> CudaBackend:
    backend = new_backend(account=account)
    # So that what the device itself needs of the host is taken.
    backend.zeros((1,), np.dtype("f4"), gpu(0))
    return backend


def numbers(count: int, dtype: str = "f4", seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).standard_normal(count).astype(dtype)


def uploaded(backend: CudaBackend, work: Callable[[], None]) -> int:
    """How many bytes go to GPUs during some work."""
    runtime = type(backend._runtime)
    with mock.patch.object(runtime, "upload", autospec=True, side_effect=runtime.upload) as upload:
        work()
    return sum(call.args[-1] for call in upload.call_args_list)


class TestWriting:
    def test_more_than_all_slots_hold_comes_back(self, backend: CudaBackend) -> None:
        value = numbers(COUNT)
        buffer = filled(backend, value)
        np.testing.assert_array_equal(backend.flat(buffer), value)
        np.testing.assert_array_equal(backend.flat(buffer, 1000, 15000), value[1000:15000])

    def test_what_was_written_may_change_at_once(self, backend: CudaBackend) -> None:
        value, ids = numbers(COUNT), np.arange(COUNT // 8)
        expected = value.copy()
        buffer = filled(backend, value)
        value[:] = 0
        np.testing.assert_array_equal(backend.flat(buffer), expected)
        rows, table = expected[: COUNT // 8 * 8].reshape(-1, 8).copy(), expected[: COUNT // 8 * 8]
        target = backend.zeros(rows.shape, rows.dtype, gpu(0))
        backend.put_rows(target, ids, rows, mode="assign")
        rows[:], ids[:] = 0, 0
        np.testing.assert_array_equal(backend.flat(target), table)

    @pytest.mark.parametrize("mode", ["assign", "add"])
    @pytest.mark.parametrize(
        "take",
        [
            lambda x: x[::-1, ::2],
            lambda x: x.T[:70, :150].T,
            lambda x: x.astype(">f4")[:, :70],
            lambda x: np.broadcast_to(x[0, :70], (150, 70)),
            lambda x: np.broadcast_to(x[:150, :1], (150, 70)),
            lambda x: x[None, None, :, :70],
            lambda x: x[None, 0, :70],
            lambda x: np.float32(3),
            lambda x: x[:, :70].astype("i2"),
            lambda x: x[:, :70].astype(ml_dtypes.bfloat16),
        ],
        ids=[
            "negative",
            "transposed",
            "swapped",
            "row",
            "column",
            "further",
            "further row",
            "scalar",
            "int16",
            "bfloat16",
        ],
    )
    def test_any_strides_and_dtypes_are_written(
        self, backend: CudaBackend, take: Callable[[Any], Any], mode: str
    ) -> None:
        base = numbers(150 * 140).reshape(150, 140) * 9
        base.flags.writeable = False
        value = take(base)
        expected = np.ones((150, 70), "f4")
        buffer = filled(backend, expected)
        backend.write(buffer, np.asarray(value), mode=mode)
        added = np.squeeze(np.asarray(value).astype("f4"))
        if added.shape == (150,):
            added = added[:, None]
        expected = np.broadcast_to(added, (150, 70)) if mode == "assign" else expected + added
        np.testing.assert_array_equal(host_array(backend, buffer), expected)

    def test_a_region_with_gaps_takes_a_value_of_many_chunks(self, backend: CudaBackend) -> None:
        expected = numbers(60 * 40 * 20).reshape(60, 40, 20)
        buffer = filled(backend, expected)
        value = numbers(30 * 39 * 9, "f8", seed=1).reshape(30, 39, 9)
        region = ((59, 30, -2), (1, 39, 1), (1, 9, 2))
        backend.write(buffer, value, region=region, mode="add")
        expected[::-2, 1:, 1:18:2] += value.astype("f4")
        np.testing.assert_array_equal(host_array(backend, buffer), expected)
        part = host_array(backend, backend.part(buffer, region))
        np.testing.assert_array_equal(part, expected[::-2, 1:, 1:18:2])

    @pytest.mark.parametrize("shape", [(1, 5000), (5000, 1), (1, 5000, 1), ()])
    def test_what_repeats_is_sent_once(self, backend: CudaBackend, shape: tuple[int, ...]) -> None:
        value = numbers(int(np.prod(shape))).reshape(shape)
        target = (3, 5000, 2) if len(shape) == 3 else (5000, 5000 // 250)
        if shape == (1, 5000):
            target = (20, 5000)
        buffer = backend.zeros(target, np.dtype("f4"), gpu(0))
        spread = np.broadcast_to(value, target)
        sent = uploaded(backend, lambda: backend.write(buffer, spread, mode="assign"))
        # With what says where it goes.
        assert sent <= value.nbytes + 512 * (value.nbytes // 2048 + 1)
        np.testing.assert_array_equal(host_array(backend, buffer), spread)

    def test_fills_follow_each_other(self, backend: CudaBackend) -> None:
        value = numbers(COUNT, "f8")
        buffer = backend.empty((COUNT,), np.dtype("f4"), gpu(0))
        for begin in range(0, COUNT, 3000):
            backend.fill(buffer, begin, value[begin : begin + 3000])
        np.testing.assert_array_equal(backend.flat(buffer), value.astype("f4"))

    def test_what_was_staged_is_sent_whole(self, backend: CudaBackend) -> None:
        host = NumpyBackend(MemoryAccount(HOST_LIMIT), SpareBuffers())
        staged = host.empty((COUNT,), np.dtype("f4"), cpu(0))
        value = numbers(COUNT)
        host.write(staged, value, mode="assign")
        adopted = backend.adopt(staged, gpu(1))
        host.write(staged, np.zeros((), "f4"), mode="assign")
        assert (adopted.context, adopted.shape) == (gpu(1), (COUNT,))
        np.testing.assert_array_equal(backend.flat(adopted), value)


class TestRows:
    @pytest.mark.parametrize("width", [1, 7, 3000])
    @pytest.mark.parametrize("mode", ["assign", "add", "subtract"])
    def test_rows_are_put_and_taken_in_chunks(
        self, backend: CudaBackend, width: int, mode: str
    ) -> None:
        height = 30000 // width
        value = numbers(height * width).reshape(height, width)
        ids = np.random.default_rng(1).permutation(height)[: height * 2 // 3]
        rows = numbers(2 * ids.size * width, "f8", seed=2).reshape(ids.size, 2 * width)[:, ::2]
        host, table = NumpyBackend(MemoryAccount(1 << 30), SpareBuffers()), filled(backend, value)
        expected = host.empty(value.shape, value.dtype, cpu(0))
        host.write(expected, value, mode="assign")
        host.put_rows(expected, ids, rows, mode=mode)
        backend.put_rows(table, ids, rows, mode=mode)
        np.testing.assert_array_equal(host_array(backend, table), host_array(host, expected))
        out = np.empty((ids.size, width), "f4")
        backend.take_rows(table, ids, out)
        np.testing.assert_array_equal(out, host_array(host, expected)[ids])

    def test_rows_of_a_buffer_stay_on_the_device(self, backend: CudaBackend) -> None:
        value, ids = numbers(9000).reshape(3000, 3), np.arange(0, 3000, 2)
        table, rows = filled(backend, value), filled(backend, numbers(4500).reshape(1500, 3))
        sent = uploaded(backend, lambda: backend.put_rows(table, ids, rows, mode="add"))
        assert sent < ids.nbytes + 1024
        value[ids] += host_array(backend, rows)
        np.testing.assert_array_equal(host_array(backend, table), value)

    @pytest.mark.parametrize("row_size", [1, 3, 16, 1024, 5000])
    @pytest.mark.parametrize("dtype", ["u1", "f2", "f8"])
    def test_rows_of_a_flat_buffer_have_any_size(
        self, backend: CudaBackend, row_size: int, dtype: str
    ) -> None:
        value = numbers(20000, "f4").view("u1")[:20000].astype(dtype)
        buffer = filled(backend, value.reshape(100, 200))
        ids = np.arange(20000 // row_size)[::-1]
        out = np.empty((len(ids), row_size), dtype)
        backend.take_rows(buffer, ids, out, row_size=row_size)
        whole = value[: len(ids) * row_size].reshape(-1, row_size)
        np.testing.assert_array_equal(out, whole[::-1])


class TestUpdates:
    """Against the updates in main memory, which have the same bits."""

    CONSTANTS = (0.5, 1.25, 0.125, 0.25, 0.75)

    def both(
        self, backend: CudaBackend, height: int, width: int, dtype: str = "f4"
    ) -> tuple[list[Buffer], NumpyBackend, list[Buffer]]:
        """A weight and a state on the GPU, and the same on the host."""
        host = NumpyBackend(MemoryAccount(1 << 30), SpareBuffers())
        values = [numbers(height * width, dtype, seed).reshape(height, width) for seed in (1, 2)]
        there = [filled(backend, value) for value in values]
        here = [host.empty(value.shape, value.dtype, cpu(0)) for value in values]
        for buffer, value in zip(here, values, strict=True):
            host.write(buffer, value, mode="assign")
        return there, host, here

    @pytest.mark.parametrize("on_device", [False, True])
    @pytest.mark.parametrize("lazy", [True, False])
    @pytest.mark.parametrize(("height", "width"), [(4000, 3), (9, 3000)])
    def test_rows_are_updated_in_chunks(
        self, backend: CudaBackend, height: int, width: int, *, lazy: bool, on_device: bool
    ) -> None:
        (weight, state), host, (other, other_state) = self.both(backend, height, width)
        ids = np.arange(1, height, 2)
        gradient = numbers(ids.size * width, seed=3).reshape(ids.size, width)
        given = filled(backend, gradient) if on_device else gradient
        for each, arrays, state_there, values in (
            (backend, weight, state, given),
            (host, other, other_state, gradient),
        ):
            each.update(
                *("sgd_momentum", arrays, values, [state_there], self.CONSTANTS),
                ids=ids,
                lazy=lazy,
            )
        for there, here in ((weight, other), (state, other_state)):
            np.testing.assert_array_equal(host_array(backend, there), host_array(host, here))

    @pytest.mark.parametrize("on_device", [False, True])
    def test_a_gradient_without_order_goes_in_chunks(
        self, backend: CudaBackend, *, on_device: bool
    ) -> None:
        (weight, state), host, (other, other_state) = self.both(backend, 90, 100)
        gradient = numbers(9000, seed=3).reshape(100, 90).T
        given = filled(backend, gradient) if on_device else gradient
        sent = uploaded(
            backend,
            lambda: backend.update("sgd_momentum", weight, given, [state], self.CONSTANTS),
        )
        assert sent == (0 if on_device else gradient.nbytes)
        host.update("sgd_momentum", other, gradient, [other_state], self.CONSTANTS)
        np.testing.assert_array_equal(host_array(backend, weight), host_array(host, other))

    @pytest.mark.parametrize("with_ids", [False, True])
    def test_lamb_has_its_norms_over_all_chunks(
        self, backend: CudaBackend, *, with_ids: bool
    ) -> None:
        constants = (0.5, 1.25, 0.125, 0.25, 0.875, 0.9375, 1e-6, 3.0, 0.01, 10.0)
        height, width = 3000, 5
        (weight, state), host, (other, other_state) = self.both(backend, height, width)
        ids = np.arange(0, height, 3) if with_ids else None
        gradient = numbers(height * width, seed=3).reshape(height, width)
        gradient = gradient if ids is None else gradient[ids]
        variance = backend.zeros(
            gradient.shape if ids is None else (height, width), np.dtype("f4"), gpu(0)
        )
        other_variance = host.zeros((height, width), np.dtype("f4"), cpu(0))
        backend.update("lamb", weight, gradient, [state, variance], constants, ids=ids)
        host.update("lamb", other, gradient, [other_state, other_variance], constants, ids=ids)
        np.testing.assert_allclose(
            host_array(backend, weight), host_array(host, other), rtol=LAMB_TOLERANCE, atol=1e-7
        )

    def test_lambs_of_several_threads_keep_their_sums_apart(self, backend: CudaBackend) -> None:
        constants = (1.0, np.inf, 0.125, 0.0, 0.875, 0.9375, 1e-6, 3.0, 0.0, np.inf)
        gradient = numbers(2000, seed=3)

        def updated(scale: float) -> np.ndarray[Any, Any]:
            weight = filled(backend, numbers(2000) * np.float32(scale))
            states = [backend.zeros((2000,), np.dtype("f4"), gpu(0)) for _ in range(2)]
            backend.update("lamb", weight, gradient, states, constants)
            return backend.flat(weight)

        scales = [2.0**i for i in range(8)]
        alone = [updated(scale) for scale in scales]
        with ThreadPoolExecutor(8) as pool:
            together = list(pool.map(updated, scales))
        np.testing.assert_array_equal(together, alone)

    def test_a_warm_update_compiles_nothing(self, backend: CudaBackend) -> None:
        dtype = np.dtype("f4")
        updates = (
            ("sgd_momentum", 1, [0.5] * 5),
            ("lamb", 2, [*([0.5] * 7), 1.0, 0.5, 0.5]),
        )
        for name, num_states, constants in updates:
            backend.warm_up(name, dtype, state_dtypes=[dtype] * num_states, rounded=None)
            # The second GPU is opened only now.
            backend.zeros((1,), dtype, gpu(1))
            for context in (gpu(0), gpu(1)):
                weight, *states = (
                    backend.zeros((5,), dtype, context) for _ in range(num_states + 1)
                )
                with mock.patch.object(type(backend._runtime), "load", side_effect=AssertionError):
                    gradient = np.ones(5, "f4")
                    backend.update(name, weight, gradient, states, constants)
                    assert backend.all_finite(weight)


class TestCopies:
    @pytest.mark.parametrize("target", ["f4", "f8", "u1"])
    @pytest.mark.parametrize("context", [gpu(0), gpu(1)])
    def test_buffers_are_copied_wherever_they_are(
        self, backend: CudaBackend, context: Any, target: str
    ) -> None:
        value = np.abs(numbers(COUNT)) * 50
        source = filled(backend, value)
        copied = backend.empty((COUNT,), np.dtype(target), context)
        backend.copy(source, copied)
        # Nobody has waited for the copy when its source is written, and gone.
        backend.write(source, np.zeros((), "f4"), mode="assign")
        del source
        again = filled(backend, np.full(COUNT, 7, "f4"))
        np.testing.assert_array_equal(backend.flat(copied), value.astype(target))
        assert (backend.flat(again) == 7).all()

    def test_copies_there_and_back_do_not_wait_for_each_other(self, backend: CudaBackend) -> None:
        first, second = filled(backend, numbers(COUNT)), filled(backend, numbers(COUNT), gpu(1))

        def swap(number: int) -> None:
            for _ in range(5):
                backend.copy(*((first, second) if number % 2 else (second, first)))

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(swap, range(4)))
        np.testing.assert_array_equal(backend.flat(first), backend.flat(second))


class TestPieces:
    def test_pieces_follow_each_other(self, backend: CudaBackend) -> None:
        value = numbers(COUNT)
        buffer = filled(backend, value)
        seen = []
        for piece in backend.pieces(buffer, 3, COUNT - 2):
            assert piece.flags.c_contiguous
            assert piece.nbytes <= SMALL.piece_bytes
            seen.append(piece.copy())
        np.testing.assert_array_equal(np.concatenate(seen), value[3 : COUNT - 2])

    def test_readers_do_not_disturb_each_other(self, backend: CudaBackend) -> None:
        values = [numbers(COUNT, seed=seed) for seed in range(3)]
        readers = [backend.pieces(filled(backend, value)) for value in values]
        rounds = [[piece.copy() for piece in each] for each in zip(*readers, strict=True)]
        for index, value in enumerate(values):
            np.testing.assert_array_equal(np.concatenate([r[index] for r in rounds]), value)

    def test_what_is_read_is_what_was_there_when_it_was_asked_for(
        self, backend: CudaBackend
    ) -> None:
        buffer = filled(backend, np.ones(100, "f4"))
        pieces = backend.pieces(buffer)
        backend.write(filled(backend, np.zeros(100, "f4")), np.array(3, "f4"), mode="assign")
        assert (next(pieces) == 1).all()

    @pytest.mark.parametrize("taken", [0, 1, 2])
    @pytest.mark.parametrize("how", ["closed", "garbage", "thrown"])
    def test_memory_comes_back_from_a_reader_that_was_left(
        self,
        machine: Emulator,
        backend: CudaBackend,
        account: MemoryAccount,
        how: str,
        taken: int,
    ) -> None:
        buffer = filled(backend, numbers(COUNT))
        used = account.used_bytes
        pieces = backend.pieces(buffer)
        for _ in range(taken):
            next(pieces)
        assert account.used_bytes == used + 2 * SMALL.piece_bytes
        if how == "closed":
            pieces.close()
            assert next(pieces, None) is None
        elif how == "thrown":
            with pytest.raises(KeyError):
                pieces.throw(KeyError("given up"))
        del pieces
        gc.collect()
        assert account.used_bytes == used
        # Nothing is still on its way to memory that goes now.
        pinned = machine.pinned.allocated_bytes
        with mock.patch.object(time, "monotonic", return_value=sys.maxsize):
            backend.trim()
        assert machine.pinned.allocated_bytes == pinned - 2 * SMALL.piece_bytes

    def test_a_piece_outlives_its_reader(self, backend: CudaBackend) -> None:
        value = numbers(500)
        (piece,) = backend.pieces(filled(backend, value))
        for other in backend.pieces(filled(backend, np.zeros(500, "f4"))):
            assert not other.any()
        np.testing.assert_array_equal(piece, value)

    def test_want_of_memory_is_told_when_it_is_asked_for(
        self, backend: CudaBackend, account: MemoryAccount
    ) -> None:
        buffer = filled(backend, numbers(COUNT))
        used = account.used_bytes
        # Room for one of the two.
        taken = account.limit_bytes - used - SMALL.piece_bytes
        account.reserve(taken)
        with pytest.raises(MemoryLimitError):
            backend.pieces(buffer)
        assert account.used_bytes == used + taken
        account.release(taken)
        assert sum(piece.size for piece in backend.pieces(buffer)) == COUNT

    def test_memory_of_readers_is_used_again(self, backend: CudaBackend, machine: Emulator) -> None:
        buffer = filled(backend, numbers(COUNT))
        sum(piece.size for piece in backend.pieces(buffer))
        pinned = machine.pinned.allocated_bytes
        for _ in range(5):
            assert sum(piece.size for piece in backend.pieces(buffer)) == COUNT
        assert machine.pinned.allocated_bytes == pinned


class TestThreads:
    def test_many_threads_share_the_slots(self, backend: CudaBackend) -> None:
        def work(number: int) -> None:
            value = numbers(10000, seed=number)
            buffer = filled(backend, value, gpu(number % 2))
            ids = np.arange(0, 10000, 3)
            for _ in range(3):
                backend.write(buffer, value, mode="add")
                backend.put_rows(buffer, ids, value[ids], mode="subtract")
                value += value
                value[ids] -= value[ids] / 2
                out = np.empty(len(ids), "f4")
                backend.take_rows(buffer, ids, out)
                np.testing.assert_array_equal(out, value[ids])
                read = np.concatenate([piece.copy() for piece in backend.pieces(buffer)])
                np.testing.assert_array_equal(read, value)
                assert backend.all_finite(buffer)

        with ThreadPoolExecutor(8) as pool:
            for done in [pool.submit(work, number) for number in range(8)]:
                done.result(timeout=120)


class TestFailures:
    def test_a_device_that_fails_keeps_nobody_waiting(
        self, machine: Emulator, caplog: pytest.LogCaptureFixture
    ) -> None:
        backend = new_backend()
        buffers = [filled(backend, numbers(COUNT), context) for context in (gpu(0), gpu(1))]
        error = backend._runtime.CudaError
        machine.fail(0)
        failing = mock.patch.object(Event, "record", side_effect=machine.scheduler.failures[0])
        ended = threading.Event()

        def attempts() -> None:
            # More often than there are slots.
            for _ in range(SMALL.slots + 1):
                with pytest.raises(error, match="illegal"):
                    backend.flat(buffers[0])
                with pytest.raises(error, match="illegal"):
                    backend.write(buffers[0], numbers(COUNT), mode="assign")
                with pytest.raises(error, match="illegal"):
                    list(backend.pieces(buffers[0]))
            ended.set()

        thread = threading.Thread(target=attempts, daemon=True)
        with failing, caplog.at_level(logging.ERROR):
            thread.start()
            thread.join(60)
        assert ended.is_set()
        assert "gpu(0) failed" in caplog.text
        np.testing.assert_array_equal(backend.flat(buffers[1]), numbers(COUNT))
