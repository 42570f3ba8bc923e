from __future__ import annotations

import tracemalloc
from collections.abc import Mapping
from typing import Any, Final

import ml_dtypes
import numpy as np
import pytest

from paramd import optimizer
from paramd.context import cpu
from paramd.errors import MemoryLimitError
from paramd_server.arrays.memory import MemoryAccount, SpareBuffers
from paramd_server.arrays.numpy_backend import NumpyBackend
from paramd_server.core.optimizers import rule_for
from tests.support.optimizer_reference import Reference
from tests.unit.optimizers.cases import argument_sets
from tests.unit.optimizers.rules import Run

_SETS: Final = list(argument_sets())
_DTYPES: Final = [np.dtype(each) for each in ("f2", ml_dtypes.bfloat16, "f4", "f8")]
_PLAIN: Final = {
    "adam": {},
    "adagrad": {},
    "ftrl": {},
    "lamb": {"wd": 0.125},
    "sgd": {"momentum": 0.75, "wd": 0.125},
}


def _but_for(left_out: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        ("name", "arguments"),
        [each for each in _SETS if each[0] != left_out],
        ids=lambda each: (
            each if isinstance(each, str) else "-".join(f"{k}={v:g}" for k, v in each.items())
        ),
    )


every_set = _but_for("")


def _random(shape: tuple[int, ...], seed: int) -> np.ndarray[Any, Any]:
    # Away from 0, where signs and quotients would be a matter of rounding.
    random = np.random.default_rng(seed)
    return np.asarray(random.uniform(0.25, 1.5, shape) * random.choice([-1.0, 1.0], shape))


def _after(
    name: str,
    arguments: Mapping[str, Any],
    weight: np.ndarray[Any, Any],
    ids: np.ndarray[Any, Any] | None = None,
    *,
    steps: int = 5,
) -> tuple[Run, Reference]:
    """A rule and its reference after the same steps."""
    run = Run(name, arguments, weight)
    reference = Reference(run.optimizer, weight)
    shape = weight.shape if ids is None else (len(ids), *weight.shape[1:])
    for count in range(1, steps + 1):
        gradient = _random(shape, count).astype(weight.dtype)
        full, where = gradient, ids
        if ids is not None and not arguments.get("lazy_update", True):
            full, where = np.zeros(weight.shape, weight.dtype), None
            full[ids] = gradient
        run.step(gradient, ids)
        reference.step(
            full,
            where,
            count=count,
            lr=run.optimizer.rate(count),
            wd=run.optimizer.wd,
            rescale=run.optimizer.rescale_grad,
        )
    return run, reference


@every_set
def test_dense_updates_follow_the_formula(name: str, arguments: dict[str, Any]) -> None:
    run, reference = _after(name, arguments, _random((9, 7), 0))
    np.testing.assert_allclose(run.value(), reference.weight, rtol=1e-12, atol=1e-13)
    for state in run.states:
        np.testing.assert_allclose(
            run.state(state), reference.states[state], rtol=1e-12, atol=1e-13
        )


@every_set
def test_row_sparse_updates_follow_the_formula(name: str, arguments: dict[str, Any]) -> None:
    weight, ids = _random((9, 7), 0), np.array([0, 3, 4, 8])
    run, reference = _after(name, arguments, weight, ids)
    np.testing.assert_allclose(run.value(), reference.weight, rtol=1e-12, atol=1e-13)
    for state in run.states:
        np.testing.assert_allclose(
            run.state(state), reference.states[state], rtol=1e-12, atol=1e-13
        )
    if arguments.get("lazy_update", True):
        others = np.setdiff1d(np.arange(9), ids)
        assert (run.value()[others] == weight[others]).all()


# Of 1, after 5 steps: float16 keeps its momentum and means in float16.
_TOLERANCES: Final = {"float16": 2**-8, "bfloat16": 2**-6, "float32": 2**-20}


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("dtype", _DTYPES[:3], ids=str)
# Its signs may be a matter of rounding.
@_but_for("signum")
def test_other_dtypes_are_as_near_as_they_can_be(
    name: str, arguments: dict[str, Any], dtype: np.dtype[Any], *, mixed: bool
) -> None:
    weight = _random((5, 4), 0).astype(dtype)
    run, reference = _after(name, {**arguments, "multi_precision": mixed}, weight)
    assert run.value().dtype == dtype
    tolerance = _TOLERANCES[dtype.name]
    np.testing.assert_allclose(
        run.value().astype(np.float64), reference.weight, rtol=tolerance, atol=tolerance
    )


@pytest.mark.parametrize("dtype", _DTYPES[:2], ids=str)
def test_multi_precision_keeps_the_weight_in_float32(dtype: np.dtype[Any]) -> None:
    run = Run("sgd", {"learning_rate": 1.0, "multi_precision": True}, np.ones(3, dtype))
    for _ in range(64):
        run.step(np.full(3, 2.0**-12, dtype))
    # Each step alone is too small to be seen.
    assert (run.value() == dtype.type(1 - 2.0**-6)).all()
    assert run.states.keys() == {"master"}
    assert run.state("master").dtype == np.float32
    assert (run.state("master") == 1 - 2.0**-6).all()


@pytest.mark.parametrize("dtype", _DTYPES[2:], ids=str)
def test_multi_precision_is_for_16_bits(dtype: np.dtype[Any]) -> None:
    run = Run("adam", {"multi_precision": True}, np.ones(3, dtype))
    assert {name: state.dtype for name, state in run.states.items()} == {
        "mean": dtype,
        "variance": dtype,
    }


@pytest.mark.parametrize(
    ("name", "state", "dtypes"),
    [
        ("adam", "mean", ("f2", "f4", "f4", "f8")),
        ("dcasgd", "previous", ("f2", "f4", "f4", "f8")),
        ("adagrad", "history", ("f4", "f4", "f4", "f8")),
        ("ftrl", "n", ("f4", "f4", "f4", "f8")),
    ],
)
def test_dtypes_of_states(name: str, state: str, dtypes: tuple[str, ...]) -> None:
    runs = [Run(name, {}, np.ones(2, dtype)) for dtype in _DTYPES]
    assert [run.state(state).dtype for run in runs] == [np.dtype(each) for each in dtypes]


@pytest.mark.parametrize(("name", "arguments"), list(_PLAIN.items()))
@pytest.mark.parametrize("shape", [(), (1,), (5,), (1, 1), (2, 3, 4), (4099, 3), (1, 4101)])
def test_any_shape(name: str, arguments: dict[str, Any], shape: tuple[int, ...]) -> None:
    run, reference = _after(name, arguments, _random(shape, 0), steps=2)
    assert run.value().shape == shape
    np.testing.assert_allclose(run.value(), reference.weight, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(("name", "arguments"), list(_PLAIN.items()))
@pytest.mark.parametrize("shape", [(0,), (0, 4), (3, 0)])
def test_nothing_to_update(name: str, arguments: dict[str, Any], shape: tuple[int, ...]) -> None:
    run = Run(name, arguments, np.zeros(shape))
    run.step(np.zeros(shape))
    run.step(np.zeros((0, *shape[1:])), np.zeros(0, np.int64))
    assert run.value().shape == shape


@pytest.mark.parametrize(("name", "arguments"), list(_PLAIN.items()))
def test_no_rows_are_no_change(name: str, arguments: dict[str, Any]) -> None:
    weight = _random((6, 3), 0)
    run = Run(name, arguments, weight)
    run.step(np.zeros((0, 3)), np.zeros(0, np.int64))
    assert (run.value() == weight).all()


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_not_lazy_is_the_dense_update_to_the_bit(name: str) -> None:
    # More rows than are updated at a time.
    weight = _random((70_001, 2), 0).astype(np.float32)
    ids = np.arange(5, 70_000, 7)
    arguments = {"lazy_update": False, "wd": 0.125} | ({"momentum": 0.5} if name == "sgd" else {})
    sparse, dense = Run(name, arguments, weight), Run(name, arguments, weight)
    for seed in (1, 2):
        rows = _random((len(ids), 2), seed).astype(np.float32)
        full = np.zeros_like(weight)
        full[ids] = rows
        sparse.step(rows, ids)
        dense.step(full)
    assert sparse.value().tobytes() == dense.value().tobytes()


@pytest.mark.parametrize("dtype", _DTYPES, ids=str)
@every_set
def test_alignment_and_strides_change_no_bit(
    name: str, arguments: dict[str, Any], dtype: np.dtype[Any]
) -> None:
    weight = _random((3, 47), 0).astype(dtype)
    gradient = _random((3, 47), 1).astype(dtype)
    expected = Run(name, arguments, weight)
    expected.step(gradient)
    shifted = np.empty(gradient.nbytes + 8, np.uint8)
    strided = np.zeros((3, 94), dtype)
    read_only = np.frombuffer(gradient.tobytes(), dtype).reshape(gradient.shape)
    strided[:, ::2] = gradient
    others = [strided[:, ::2], np.asfortranarray(gradient), read_only]
    for offset in (1, dtype.itemsize):
        moved = shifted[offset : offset + gradient.nbytes].view(dtype).reshape(gradient.shape)
        moved[...] = gradient
        run = Run(name, arguments, weight)
        run.step(moved)
        assert run.value().tobytes() == expected.value().tobytes()
    for other in others:
        run = Run(name, arguments, weight)
        run.step(other)
        assert run.value().tobytes() == expected.value().tobytes()


@pytest.mark.parametrize("dtype", _DTYPES, ids=str)
# Its norms are over all elements.
@_but_for("lamb")
def test_each_element_is_updated_alike_wherever_it_is(
    name: str, arguments: dict[str, Any], dtype: np.dtype[Any]
) -> None:
    weight, gradient = _random((67,), 0).astype(dtype), _random((67,), 1).astype(dtype)
    whole = Run(name, arguments, weight)
    whole.step(gradient)
    parts = []
    for part in np.split(np.arange(67), [1, 3, 20, 21, 53]):
        run = Run(name, arguments, weight[part])
        run.step(gradient[part])
        parts.append(run.value())
    assert np.concatenate(parts).tobytes() == whole.value().tobytes()


@pytest.mark.parametrize("name", optimizer.NAMES)
def test_nan_and_infinity_stay_where_they_are(name: str) -> None:
    gradient = np.array([1.0, np.nan, np.inf, -np.inf, -1.0], np.float32)
    run, clean = (Run(name, {"clip_gradient": 2.0}, np.ones(5, np.float32)) for _ in range(2))
    run.step(gradient)
    clean.step(np.array([1.0, 1.0, 1.0, 1.0, -1.0], np.float32))
    if name != "lamb":
        np.testing.assert_array_equal(run.value()[[0, 4]], clean.value()[[0, 4]])
        assert np.isfinite(run.value()[[2, 3]]).all()
    assert np.isnan(run.value()[1])


def test_a_learning_rate_of_zero_changes_nothing() -> None:
    for name in optimizer.NAMES:
        if name == "adadelta":
            # It has no use for a learning rate.
            continue
        weight = _random((4, 3), 0)
        run = Run(name, {}, weight, lr_mult=0.0)
        run.step(_random((4, 3), 1))
        np.testing.assert_array_equal(run.value(), weight, err_msg=name)


def test_the_number_of_the_update_counts_from_where_it_begins() -> None:
    late, early = (Run("adam", {"begin_num_update": n}, np.ones(2)) for n in (100, 0))
    for run in (late, early):
        run.step(np.ones(2))
    correction = np.sqrt(1 - 0.999**101) / (1 - 0.9**101)
    np.testing.assert_allclose(
        1 - late.value(), 0.001 * correction * 0.1 / np.sqrt(0.001), rtol=1e-6
    )
    assert (late.value() != early.value()).all()


def test_large_constants_are_infinity_silently() -> None:
    run = Run("sgd", {"clip_gradient": 1e300}, np.ones(2, np.float32))
    run.step(np.ones(2, np.float32), rescale=1e300)
    assert (run.value() == -np.inf).all()


@pytest.mark.parametrize("dtype", _DTYPES, ids=str)
def test_states_that_do_not_fit_leave_nothing(dtype: np.dtype[Any]) -> None:
    rule = rule_for(optimizer.Adam(multi_precision=True))
    account = MemoryAccount(100 * dtype.itemsize * 2)
    backend = NumpyBackend(account, SpareBuffers())
    weight = backend.zeros((100,), dtype, cpu())
    with pytest.raises(MemoryLimitError):
        rule.create_states(weight, backend)
    assert account.used_bytes == weight.nbytes


def test_states_begin_at_zero_or_as_the_weight() -> None:
    weight = _random((2, 3), 0).astype(np.float16)
    run = Run("dcasgd", {"momentum": 0.5, "multi_precision": True}, weight)
    assert run.account.used_bytes == weight.nbytes * 7
    assert not run.state("momentum").any()
    for name in ("master", "previous"):
        assert run.state(name).dtype == np.float32
        assert (run.state(name) == weight).all()


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("name", ["sgd", "adam", "lamb"])
def test_an_update_takes_no_memory(name: str, *, sparse: bool) -> None:
    rows = 1 << 20
    weight = np.ones((rows, 16), np.float32)
    arguments = {} if name == "lamb" else {"lazy_update": False}
    run = Run(name, arguments, weight)
    ids = np.arange(0, rows, 2) if sparse else None
    gradient = weight[::2].copy() if sparse else weight
    run.rule.warm_up(run.backend, weight.dtype)
    tracemalloc.start()
    try:
        run.step(gradient, ids)
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_warming_up_leaves_nothing_to_compile() -> None:
    # Compiling takes a tenth of a second at least, an update of 3 elements microseconds; the
    # compiler counts what it has compiled.
    from paramd_server.arrays.compiled_updates import KERNELS

    run = Run(
        "nag", {"momentum": 0.5, "multi_precision": True}, np.ones((3, 1), ml_dtypes.bfloat16)
    )
    run.rule.warm_up(run.backend, run.weight.dtype)
    kernel: Any = KERNELS["nag_momentum"]
    known = len(kernel.signatures)
    run.step(np.ones((3, 1), ml_dtypes.bfloat16))
    run.step(np.ones((2, 1), ml_dtypes.bfloat16), np.array([0, 2]))
    assert len(kernel.signatures) == known
