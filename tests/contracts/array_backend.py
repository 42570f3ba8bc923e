"""What every ArrayBackend must do. A backend's test class inherits from ArrayBackendContract."""

from __future__ import annotations

import gc
from abc import ABC, abstractmethod
from itertools import product
from typing import Any, Final

import ml_dtypes
import numpy as np
import pytest

from paramd import optimizer
from paramd.context import Context, cpu
from paramd.errors import MemoryLimitError
from paramd.spec import Region
from paramd.wire.dtypes import DTYPES
from paramd_server.arrays.backend import ArrayBackend, Buffer, host_array, region_shape
from paramd_server.arrays.memory import MemoryAccount, SpareBuffers
from paramd_server.arrays.numpy_backend import NumpyBackend
from paramd_server.arrays.updates import UPDATES
from paramd_server.core.optimizers import rule_for
from tests.support.optimizer_reference import Reference

ALL_DTYPES: Final = tuple(DTYPES.values())
MODES: Final = ("add", "subtract", "multiply", "divide")
LIMIT: Final = 16 << 20
SHAPE: Final = (3, 4)
FLOATS: Final = tuple(np.dtype(each) for each in ("f2", ml_dtypes.bfloat16, "f4", "f8"))
EPSILONS: Final = dict(zip(FLOATS, (2**-10, 2**-7, 2**-23, 2**-52), strict=True))
# Every kind of update that a backend has.
_BETAS: Final = {"beta1": 0.875, "beta2": 0.9375}
OPTIMIZERS: Final = (
    *(
        optimizer.create(
            name,
            wd=0.125,
            clip_gradient=1.25,
            **(_BETAS if name in ("adam", "adamw", "lamb") else {}),
        )
        for name in optimizer.NAMES
    ),
    *(klass(momentum=0.75, wd=0.125) for klass in (optimizer.SGD, optimizer.NAG, optimizer.DCASGD)),
    optimizer.Signum(momentum=0.0, wd=0.125),
    optimizer.RMSProp(centered=True, clip_weights=1.0),
)


def number(index: int, dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """A (3, 4) array of small whole numbers, none of them 0, exact in every dtype."""
    return ((np.arange(12).reshape(SHAPE) * 5 + index) % 7 + 1).astype(dtype)


class ArrayBackendContract(ABC):
    """The contract.

    A subclass gives `make_backend` and `context`; what goes in or comes out is a NumPy array.
    """

    @abstractmethod
    def make_backend(self, account: MemoryAccount, spares: SpareBuffers) -> ArrayBackend:
        """The backend under test, counting in `account`."""

    @property
    @abstractmethod
    def context(self) -> Context:
        """One of its contexts."""

    @pytest.fixture
    def account(self) -> MemoryAccount:
        return MemoryAccount(LIMIT)

    @pytest.fixture
    def spares(self) -> SpareBuffers:
        return SpareBuffers()

    @pytest.fixture
    def backend(self, account: MemoryAccount, spares: SpareBuffers) -> ArrayBackend:
        return self.make_backend(account, spares)

    def filled(self, backend: ArrayBackend, value: np.ndarray[Any, Any]) -> Buffer:
        buffer = backend.empty(value.shape, value.dtype, self.context)
        backend.write(buffer, value, mode="assign")
        return buffer

    def value_of(
        self, backend: ArrayBackend, buffer: Buffer, region: Region | None = None
    ) -> np.ndarray[Any, Any]:
        if region is not None:
            buffer = backend.part(buffer, region)
        return host_array(backend, buffer).copy()

    @pytest.fixture
    def counted(self, backend: ArrayBackend, account: MemoryAccount) -> MemoryAccount:
        """What counts the buffers of the context."""
        kept = backend.zeros((), np.dtype("f4"), self.context)
        name = str(kept.context)
        return next((each for each in backend.accounts() if each.name == name), account)

    def test_serves_its_context(self, backend: ArrayBackend) -> None:
        assert self.context.device_type in backend.device_types
        count = backend.num_devices(self.context.device_type)
        assert count is None or count > self.context.device_id
        assert backend.num_devices("no such type") == 0

    @pytest.mark.parametrize("dtype", ALL_DTYPES, ids=str)
    @pytest.mark.parametrize("shape", [(3, 4), (5,), (0, 4), (), (2, 1, 3)])
    def test_zeros_are_zero_and_describe_themselves(
        self, backend: ArrayBackend, shape: tuple[int, ...], dtype: np.dtype[Any]
    ) -> None:
        buffer = backend.zeros(shape, dtype, self.context)
        assert (buffer.shape, buffer.dtype, buffer.context) == (shape, dtype, self.context)
        assert buffer.nbytes == int(np.prod(shape)) * dtype.itemsize
        assert buffer.readers == 0
        np.testing.assert_array_equal(self.value_of(backend, buffer), np.zeros(shape, dtype))

    def test_zeros_are_zero_where_a_spare_was_used(self, backend: ArrayBackend) -> None:
        shape = (1 << 18,)
        dtype = np.dtype("f4")
        for _ in range(3):
            buffer = backend.zeros(shape, dtype, self.context)
            assert not self.value_of(backend, buffer).any()
            backend.write(buffer, np.ones(shape, dtype), mode="assign")
            del buffer

    def test_counts_what_lives(self, backend: ArrayBackend, counted: MemoryAccount) -> None:
        account, before = counted, counted.used_bytes
        first = backend.empty((1 << 18,), np.dtype("f4"), self.context)
        second = backend.zeros((1 << 18,), np.dtype("f8"), self.context)
        assert account.used_bytes - before == (1 << 20) + (2 << 20)
        del first
        assert account.used_bytes - before == 2 << 20
        del second
        gc.collect()
        assert account.used_bytes == before

    @pytest.mark.parametrize("shape", [(LIMIT,), (2**62, 2**62), (0, 2**62, 4), (LIMIT // 4 + 1,)])
    def test_refuses_what_does_not_fit_and_takes_nothing(
        self, backend: ArrayBackend, counted: MemoryAccount, shape: tuple[int, ...]
    ) -> None:
        account = counted
        for make in (backend.empty, backend.zeros):
            with pytest.raises(MemoryLimitError):
                make(shape, np.dtype("f4"), self.context)
        assert account.used_bytes == 0
        whole = backend.zeros((LIMIT // 4,), np.dtype("f4"), self.context)
        assert account.used_bytes == whole.nbytes == LIMIT

    @pytest.mark.parametrize(("value", "target"), list(product(ALL_DTYPES, ALL_DTYPES)), ids=str)
    def test_assigns_and_copies_any_dtype_to_any_other(
        self, backend: ArrayBackend, value: np.dtype[Any], target: np.dtype[Any]
    ) -> None:
        source = number(3, value)
        expected = source.astype(target)
        buffer = backend.zeros(SHAPE, target, self.context)
        backend.write(buffer, source, mode="assign")
        np.testing.assert_array_equal(self.value_of(backend, buffer), expected)
        copied = backend.zeros(SHAPE, target, self.context)
        backend.copy(self.filled(backend, source), copied)
        np.testing.assert_array_equal(self.value_of(backend, copied), expected)

    @pytest.mark.parametrize(
        ("mode", "value", "target"),
        list(product(MODES, ALL_DTYPES, ALL_DTYPES)),
        ids=str,
    )
    def test_computes_with_any_pair_of_dtypes(
        self, backend: ArrayBackend, mode: str, value: np.dtype[Any], target: np.dtype[Any]
    ) -> None:
        """The value is cast first. In float64 the rest is exact; it comes out cast again."""
        old, new = number(1, target), number(4, value)
        buffer = self.filled(backend, old)
        backend.write(buffer, new, mode=mode)
        got = self.value_of(backend, buffer)
        assert got.dtype == target
        wide = {
            "add": np.add,
            "subtract": np.subtract,
            "multiply": np.multiply,
            "divide": np.true_divide,
        }[mode](old.astype("f8"), new.astype(target).astype("f8"))
        if target.kind == "u":
            # 8 bits wrap around, as in C.
            expected = wide.astype(np.int64).astype(target)
        else:
            expected = wide.astype(target)
        if mode == "divide":
            # One rounding to the dtype of the computation, then one to the target.
            tolerance = {2: 2**-7 if target == ml_dtypes.bfloat16 else 2**-10, 4: 2**-6}
            limit = tolerance.get(target.itemsize, 2**-6)
            if target.kind in "fV":
                np.testing.assert_allclose(
                    got.astype("f8"), expected.astype("f8"), rtol=limit, atol=0
                )
                return
        np.testing.assert_array_equal(got, expected)

    def test_a_value_broadcasts(self, backend: ArrayBackend) -> None:
        buffer = self.filled(backend, np.zeros(SHAPE, "f4"))
        backend.write(buffer, np.array(2, "f4"), mode="assign")
        backend.write(buffer, np.arange(4, dtype="f4"), mode="add")
        backend.write(buffer, np.ones((3, 1), "f4"), mode="multiply")
        np.testing.assert_array_equal(
            self.value_of(backend, buffer), np.tile(np.arange(4, dtype="f4") + 2, (3, 1))
        )

    @pytest.mark.parametrize(
        ("region", "index"),
        [
            (((0, 3, 1), (0, 4, 1)), np.s_[:, :]),
            (((1, 1, 1), (0, 4, 1)), np.s_[1:2, :]),
            (((2, 3, -1), (3, 2, -2)), np.s_[::-1, 3::-2]),
            (((0, 2, 2), (1, 3, 1)), np.s_[::2, 1:]),
            (((5, 0, 1), (0, 4, 1)), np.s_[:0, :]),
            (((0, 1, -5), (3, 1, 2**62)), np.s_[:1, 3:]),
        ],
    )
    def test_reads_and_writes_regions(
        self, backend: ArrayBackend, region: Region, index: Any
    ) -> None:
        value = np.arange(12, dtype="<i4").reshape(SHAPE)
        buffer = self.filled(backend, value)
        np.testing.assert_array_equal(self.value_of(backend, buffer, region), value[index])
        backend.write(buffer, np.array(100, "<i4"), region=region, mode="assign")
        backend.write(buffer, value[index], region=region, mode="add")
        expected = value.copy()
        expected[index] += 100
        np.testing.assert_array_equal(self.value_of(backend, buffer), expected)

    def test_a_region_is_copied(self, backend: ArrayBackend) -> None:
        buffer = self.filled(backend, np.arange(12, dtype="<i4").reshape(SHAPE))
        region = ((2, 3, -1), (3, 2, -2))
        part = backend.part(buffer, region)
        assert (part.shape, part.dtype) == (region_shape(region), buffer.dtype)
        assert part.context == self.context
        backend.write(buffer, np.zeros(SHAPE, "<i4"), mode="assign")
        np.testing.assert_array_equal(self.value_of(backend, part), [[11, 9], [7, 5], [3, 1]])

    @pytest.mark.parametrize("size", [0, 1, 1000, 3 << 20])
    def test_reads_flat_and_in_pieces(self, backend: ArrayBackend, size: int) -> None:
        value = np.arange(size, dtype="u1")
        buffer = self.filled(backend, value)
        np.testing.assert_array_equal(backend.flat(buffer), value)
        for begin, end in ((0, None), (size // 3, size - size // 4), (size, size)):
            flat = backend.flat(buffer, begin, end)
            assert flat.flags.c_contiguous
            np.testing.assert_array_equal(flat, value[begin:end])
            # Each is valid until the next one comes.
            pieces = [piece.copy() for piece in backend.pieces(buffer, begin, end)]
            assert len(pieces) <= 1 or flat.size > 1 << 20
            read = np.concatenate([np.empty(0, "u1"), *pieces])
            np.testing.assert_array_equal(read, value[begin:end])

    def test_pieces_may_be_left_half_way(self, backend: ArrayBackend) -> None:
        buffer = self.filled(backend, np.ones(9 << 20, "u1"))
        for taken in (0, 1):
            pieces = backend.pieces(buffer)
            for _ in range(taken):
                assert next(pieces).all()
            pieces.close()
        backend.write(buffer, np.zeros((), "u1"), mode="assign")
        assert not any(piece.any() for piece in backend.pieces(buffer))

    @pytest.mark.parametrize(("value", "target"), [("f4", "f4"), ("f8", "<i4"), ("u1", "f2")])
    def test_fills_elements_in_order(self, backend: ArrayBackend, value: str, target: str) -> None:
        buffer = self.filled(backend, np.zeros(SHAPE, target))
        backend.fill(buffer, 3, np.arange(1, 6, dtype=value))
        backend.fill(buffer, 12, np.empty(0, value))
        expected = np.zeros(12, target)
        expected[3:8] = np.arange(1, 6)
        np.testing.assert_array_equal(self.value_of(backend, buffer).reshape(-1), expected)

    @pytest.mark.parametrize("dtype", ALL_DTYPES, ids=str)
    def test_adopts_what_was_staged(self, backend: ArrayBackend, dtype: np.dtype[Any]) -> None:
        host = NumpyBackend(MemoryAccount(LIMIT), SpareBuffers())
        staged = host.empty(SHAPE, dtype, cpu())
        host.array(staged)[...] = number(5, dtype)
        adopted = backend.adopt(staged, self.context)
        assert (adopted.shape, adopted.dtype, adopted.context) == (SHAPE, dtype, self.context)
        np.testing.assert_array_equal(self.value_of(backend, adopted), number(5, dtype))
        # Its memory can still be read.
        np.testing.assert_array_equal(host.array(staged), number(5, dtype))

    @pytest.mark.parametrize("dtype", FLOATS, ids=str)
    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("place", [0, 700, 4999])
    def test_finds_what_is_not_finite(
        self, backend: ArrayBackend, dtype: np.dtype[Any], value: float, place: int
    ) -> None:
        array = np.full(5000, 1.5, dtype)
        assert backend.all_finite(self.filled(backend, array))
        array[place] = value
        assert not backend.all_finite(self.filled(backend, array))
        assert backend.all_finite(self.filled(backend, np.empty((0, 3), dtype)))

    def test_arithmetic_that_overflows_is_silent(self, backend: ArrayBackend) -> None:
        half = self.filled(backend, np.full(4, 60000, "f2"))
        backend.write(half, np.full(4, 60000, "f2"), mode="add")
        assert np.isinf(self.value_of(backend, half)).all()
        small = self.filled(backend, np.full(4, 127, "i1"))
        backend.write(small, np.ones(4, "i1"), mode="add")
        assert (self.value_of(backend, small) == -128).all()
        single = self.filled(backend, np.array([1, -1, 0, 2], "f4"))
        backend.write(single, np.zeros(4, "f4"), mode="divide")
        np.testing.assert_array_equal(
            self.value_of(backend, single), np.array([np.inf, -np.inf, np.nan, np.inf], "f4")
        )
        backend.write(small, np.array([np.nan, np.inf, 1e30, 3], "f8"), mode="assign")
        assert self.value_of(backend, small)[3] == 3

    @pytest.mark.parametrize("dtype", ALL_DTYPES, ids=str)
    def test_takes_and_puts_rows(self, backend: ArrayBackend, dtype: np.dtype[Any]) -> None:
        value = number(2, dtype)
        buffer = self.filled(backend, value)
        ids = np.array([0, 2], np.int64)
        out = np.empty((2, 4), dtype)
        backend.take_rows(buffer, ids, out)
        np.testing.assert_array_equal(out, value[[0, 2]])
        backend.put_rows(buffer, ids, np.zeros((2, 4), dtype), mode="assign")
        expected = value.copy()
        expected[[0, 2]] = np.zeros((), dtype)
        np.testing.assert_array_equal(self.value_of(backend, buffer), expected)
        backend.put_rows(buffer, ids, value[[0, 2]], mode="add")
        np.testing.assert_array_equal(self.value_of(backend, buffer), value)

    def test_rows_of_other_dtypes_are_cast(self, backend: ArrayBackend) -> None:
        buffer = self.filled(backend, np.zeros(SHAPE, "<i4"))
        ids = np.array([1], np.int64)
        backend.put_rows(buffer, ids, np.full((1, 4), 2.9, "f8"), mode="assign")
        backend.put_rows(buffer, ids, np.full((1, 4), 3, "f4"), mode="subtract")
        np.testing.assert_array_equal(self.value_of(backend, buffer)[1], np.full(4, -1))

    @pytest.mark.parametrize("mode", ["assign", "add", "subtract"])
    def test_puts_rows_of_another_buffer(self, backend: ArrayBackend, mode: str) -> None:
        value = number(2, np.dtype("f4"))
        buffer = self.filled(backend, value)
        rows = self.filled(backend, np.full((2, 4), 3, "f4"))
        backend.put_rows(buffer, np.array([0, 2]), rows, mode=mode)
        expected = {"assign": 0 * value + 3, "add": value + 3, "subtract": value - 3}[mode]
        value[[0, 2]] = expected[[0, 2]]
        np.testing.assert_array_equal(self.value_of(backend, buffer), value)

    @pytest.mark.parametrize("count", [0, 1, 5000])
    def test_takes_rows_into_memory_of_its_own(self, backend: ArrayBackend, count: int) -> None:
        table = np.arange(6000 * 70, dtype="f4").reshape(6000, 70)
        buffer = self.filled(backend, table)
        memory = backend.row_memory((count, 70), np.dtype("f4"))
        assert memory.shape == (count, 70)
        memory[...] = -1
        ids = np.arange(count) + 7
        backend.take_rows(buffer, ids[: count - 1], memory[: max(count - 1, 0)])
        np.testing.assert_array_equal(memory[: max(count - 1, 0)], table[ids[: count - 1]])
        assert (memory[max(count - 1, 0) :] == -1).all()

    def test_takes_rows_of_any_size(self, backend: ArrayBackend) -> None:
        buffer = self.filled(backend, np.arange(11, dtype="<i4"))
        out = np.empty((2, 5), "<i4")
        backend.take_rows(buffer, np.array([0, 1]), out, row_size=5)
        np.testing.assert_array_equal(out, np.arange(10).reshape(2, 5))
        pair = np.empty((1, 2), "<i4")
        backend.take_rows(buffer, np.array([4]), pair, row_size=2)
        np.testing.assert_array_equal(pair, [[8, 9]])

    def test_no_rows_are_no_change(self, backend: ArrayBackend) -> None:
        value = number(2, np.dtype("f4"))
        buffer = self.filled(backend, value)
        ids = np.zeros(0, np.int64)
        out = np.empty((0, 4), "f4")
        backend.take_rows(buffer, ids, out)
        for mode in ("assign", "add", "subtract"):
            backend.put_rows(buffer, ids, out, mode=mode)
        np.testing.assert_array_equal(self.value_of(backend, buffer), value)

    @pytest.mark.parametrize("with_ids", [False, True])
    @pytest.mark.parametrize("dtype", FLOATS, ids=str)
    @pytest.mark.parametrize("declared", OPTIMIZERS, ids=lambda each: rule_for(each).update_name)
    def test_updates_follow_the_formulas(
        self,
        backend: ArrayBackend,
        declared: optimizer.Optimizer,
        dtype: np.dtype[Any],
        *,
        with_ids: bool,
    ) -> None:
        """The formulas in float64; 16-bit floats lose up to four last places in three steps."""
        rule, value = rule_for(declared), np.array(number(1, dtype) / dtype.type(4))
        ids = np.array([0, 2]) if with_ids else None
        weight = self.filled(backend, value)
        states = rule.create_states(weight, backend)
        reference = Reference(declared, value)
        for count in (1, 2, 3):
            gradient = np.array(number(count, dtype) / dtype.type(8))[: 2 if with_ids else 3]
            reference.step(gradient, ids, count=count, lr=0.125, wd=declared.wd, rescale=-0.5)
            rule.update(
                backend,
                weight,
                gradient,
                states,
                ids=ids,
                count=count,
                learning_rate=0.125,
                weight_decay=declared.wd,
                rescale=-0.5,
            )
        got = self.value_of(backend, weight)
        assert got.dtype == dtype
        tolerance = 4 * EPSILONS[dtype]
        np.testing.assert_allclose(
            got.astype("f8"), reference.weight, rtol=tolerance, atol=tolerance
        )

    def test_every_kind_of_update_is_tested(self) -> None:
        assert {rule_for(each).update_name for each in OPTIMIZERS} == set(UPDATES)

    @pytest.mark.parametrize("dtype", FLOATS[:2], ids=str)
    def test_an_update_rounds_to_a_second_buffer(
        self, backend: ArrayBackend, dtype: np.dtype[Any]
    ) -> None:
        weight = self.filled(backend, np.full(SHAPE, 1, "f4"))
        rounded = self.filled(backend, np.zeros(SHAPE, dtype))
        ids, gradient = np.array([1], np.int64), np.full((1, 4), 2.0**-12, dtype)
        backend.warm_up("sgd", np.dtype("f4"), state_dtypes=[], rounded=dtype)
        constants = [1.0, np.inf, 1.0, 0.0]
        backend.update("sgd", weight, gradient, [], constants, rounded=rounded, ids=ids)
        expected = np.ones(SHAPE, "f4")
        expected[1] -= 2.0**-12
        np.testing.assert_array_equal(self.value_of(backend, weight), expected)
        expected[[0, 2]] = 0
        np.testing.assert_array_equal(
            self.value_of(backend, rounded), expected.astype(dtype), strict=True
        )

    def test_rows_without_a_gradient_are_updated_where_asked(self, backend: ArrayBackend) -> None:
        weight = self.filled(backend, np.ones(SHAPE, "f8"))
        ids, gradient = np.array([1], np.int64), np.ones((1, 4))
        constants = [1.0, np.inf, 0.5, 0.5]
        backend.update("sgd", weight, gradient, [], constants, ids=ids, lazy=False)
        np.testing.assert_array_equal(
            self.value_of(backend, weight), np.repeat([[0.75], [0.25], [0.75]], 4, axis=1)
        )

    def test_an_update_of_no_rows_is_no_change(self, backend: ArrayBackend) -> None:
        weight = self.filled(backend, np.ones(SHAPE, "f8"))
        none = np.zeros(0, np.int64)
        backend.update("sgd", weight, np.ones((0, 4)), [], [1.0, np.inf, 0.5, 0.5], ids=none)
        assert (self.value_of(backend, weight) == 1).all()

    def test_an_update_takes_the_gradient_of_a_buffer(self, backend: ArrayBackend) -> None:
        weight = self.filled(backend, np.ones(SHAPE, "f4"))
        gradient = self.filled(backend, number(1, np.dtype("f4")))
        backend.update("sgd", weight, gradient, [], [1.0, np.inf, 0.5, 0.0])
        expected = 1 - number(1, np.dtype("f4")) / 2
        np.testing.assert_array_equal(self.value_of(backend, weight), expected)
        rows = self.filled(backend, np.ones((1, 4), "f4"))
        ids = np.array([2])
        backend.update("sgd", weight, rows, [], [1.0, np.inf, 0.5, 0.0], ids=ids)
        expected[2] -= 0.5
        np.testing.assert_array_equal(self.value_of(backend, weight), expected)

    def test_an_update_leaves_its_gradient(self, backend: ArrayBackend) -> None:
        weight, gradient = self.filled(backend, np.ones(SHAPE, "f4")), np.ones(SHAPE, "f4")
        gradient.flags.writeable = False
        states = [backend.zeros(SHAPE, np.dtype("f4"), self.context)]
        backend.update("sgd_momentum", weight, gradient, states, [1.0, 0.5, 1.0, 0.0, 0.5])
        assert (gradient == 1).all()
        assert (self.value_of(backend, weight) == 0.5).all()
