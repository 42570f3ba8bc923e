"""What a trainer can be asked for: values back, rates, buffers, contexts, compression, changes."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

import paramd
from paramd import Trainer
from paramd.compression import TwoBit, expand
from paramd.errors import (
    DeferredInitializationError,
    DTypeMismatchError,
    InvalidArgumentError,
    NonFiniteGradientError,
    NotInitializedError,
    ParamdError,
    ParameterNotFoundError,
    RowIdError,
    ScheduledLearningRateError,
    ShapeMismatchError,
    StaleGradientError,
    TrainerMismatchError,
)
from tests.support.contexts import device
from tests.system.training.conftest import Connect

Array = np.ndarray[Any, Any]
ONES = np.ones((2, 3), "f4")
BOTH = {"n_a": ONES, "n_b": np.ones(4, "f4")}
RATE: Mapping[str, Any] = {"learning_rate": 1.0}


@pytest.fixture
def params(session: paramd.Session) -> paramd.ParameterDict:
    found = paramd.ParameterDict("n_", session=session)
    found.get("a", shape=(2, 3), init="zeros")
    found.get("b", shape=(4,), init="zeros")
    found.initialize()
    return found


@pytest.fixture(params=["local", "dist_sync", "dist_async"])
def kvstore(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def values(params: paramd.ParameterDict) -> dict[str, bytes]:
    return {name: value.tobytes() for name, value in params.pull().items()}


# Values that come back


def test_values_come_back_with_the_step(params: paramd.ParameterDict, kvstore: str) -> None:
    trainer = Trainer(params, "sgd", RATE, kvstore=kvstore)
    assert trainer.step(2, grads=BOTH) is None
    both = trainer.step(2, grads=BOTH, pull=True)
    assert both is not None
    assert sorted(both) == ["n_a", "n_b"]
    np.testing.assert_array_equal(both["n_a"], np.full((2, 3), -1, "f4"))
    one = trainer.step(2, grads=BOTH, pull=["n_b"] if kvstore == "local" else "n_b")
    assert one is not None
    assert list(one) == ["n_b"]
    mine = np.empty((2, 3), "f4")
    out = trainer.step(2, grads=BOTH, pull=True, out={"n_a": mine})
    assert out is not None
    assert out["n_a"] is mine
    np.testing.assert_array_equal(mine, np.full((2, 3), -2, "f4"))


BAD_PULLS: Sequence[tuple[dict[str, Any], Any]] = (
    ({"pull": ["n_typo"]}, ParamdError),
    ({"pull": True, "out": {"n_a": np.empty((3, 2), "f4")}}, (ParamdError, ValueError)),
    (
        {"pull": True, "out": {"n_a": np.empty((2, 3), "f8")}},
        (ParamdError, TypeError, ValueError),
    ),
    ({"pull": True, "out": {"n_typo": np.empty(3)}}, InvalidArgumentError),
    (
        {"pull": False, "out": {"n_a": np.empty((2, 3), "f4")}},
        (InvalidArgumentError, ValueError),
    ),
)


def test_values_that_cannot_come_back_refuse_the_step(
    params: paramd.ParameterDict, kvstore: str
) -> None:
    trainer = Trainer(params, "sgd", RATE, kvstore=kvstore)
    before = values(params)
    for options, error in BAD_PULLS:
        with pytest.raises(error):
            trainer.step(1, grads=BOTH, **options)
    assert values(params) == before
    assert trainer.info().num_steps == 0


# Rates


def test_rates_of_one_step_and_of_all(
    params: paramd.ParameterDict, kvstore: str, connect: Connect
) -> None:
    trainer = Trainer(params, "sgd", RATE, kvstore=kvstore)
    trainer.step(1, grads=BOTH, learning_rate=0.25)
    assert trainer.learning_rate == 1.0
    other = Trainer(connect().parameters("n_"), "sgd", RATE, kvstore=kvstore)
    other.set_learning_rate(0.5)
    assert trainer.learning_rate == 0.5
    trainer.step(1, grads=BOTH)
    np.testing.assert_array_equal(params["n_b"].data().asnumpy(), np.full(4, -0.75, "f4"))
    for bad in (float("nan"), float("inf"), -0.5):
        with pytest.raises(InvalidArgumentError, match="rate"):
            trainer.set_learning_rate(bad)
        with pytest.raises(InvalidArgumentError, match="rate"):
            trainer.step(1, grads=BOTH, learning_rate=bad)
    assert trainer.learning_rate == 0.5
    assert trainer.info().num_steps == 2


def test_batch_sizes_that_cannot_be(params: paramd.ParameterDict, kvstore: str) -> None:
    trainer = Trainer(params, "sgd", RATE, kvstore=kvstore)
    bad: list[Any] = [0, -1, float("nan"), float("inf"), "many", None]
    for size in bad:
        with pytest.raises((InvalidArgumentError, TypeError), match="batch_size"):
            trainer.step(size, grads=BOTH)
    assert trainer.info().num_steps == 0


def test_multipliers_count_at_once(params: paramd.ParameterDict, kvstore: str) -> None:
    trainer = Trainer(params, "sgd", {"learning_rate": 1.0, "wd": 0.5}, kvstore=kvstore)
    trainer.step(1, grads=BOTH)
    params["n_a"].lr_mult = 0.0
    params["n_b"].wd_mult = 0.0
    trainer.step(1, grads=BOTH)
    np.testing.assert_array_equal(params["n_a"].data().asnumpy(), np.full((2, 3), -1, "f4"))
    np.testing.assert_array_equal(params["n_b"].data().asnumpy(), np.full(4, -2, "f4"))


def test_a_schedule_counts_updates(params: paramd.ParameterDict, kvstore: str) -> None:
    schedule = paramd.lr_scheduler.FactorScheduler(step=2, factor=0.5, base_lr=1.0)
    trainer = Trainer(params, "sgd", {"lr_scheduler": schedule}, kvstore=kvstore)
    for _ in range(5):
        trainer.step(1, grads=BOTH)
    expected = -sum(schedule(number) for number in range(1, 6))
    np.testing.assert_array_equal(params["n_b"].data().asnumpy(), np.full(4, expected, "f4"))
    with pytest.raises(ScheduledLearningRateError):
        trainer.set_learning_rate(0.1)


# Gradients


BAD_GRADIENTS: Sequence[tuple[dict[str, Any], type[Exception]]] = (
    ({"n_typo": ONES}, InvalidArgumentError),
    ({"n_a": np.ones((3, 2), "f4")}, ShapeMismatchError),
    ({"n_a": np.float32(1)}, ShapeMismatchError),
    ({"n_a": np.ones((2, 3), "c8")}, TypeError),
    ({"n_a": np.array([["x"] * 3] * 2)}, TypeError),
    ({"n_a": None}, TypeError),
    ({"n_a": ([0], np.ones((1, 3)), 3)}, TypeError),
    ({"n_a": ([2], np.ones((1, 3), "f4"))}, RowIdError),
    ({"n_a": ([-1], np.ones((1, 3), "f4"))}, RowIdError),
    ({"n_a": ([0.5], np.ones((1, 3), "f4"))}, RowIdError),
    ({"n_a": ([0, 1], np.ones((1, 3), "f4"))}, ShapeMismatchError),
    ({}, StaleGradientError),
)


def test_gradients_that_cannot_be(params: paramd.ParameterDict, kvstore: str) -> None:
    trainer = Trainer(params, "sgd", RATE, kvstore=kvstore)
    before = values(params)
    for grads, error in BAD_GRADIENTS:
        with pytest.raises(error):
            trainer.step(1, grads={"n_b": BOTH["n_b"], **grads})
    assert values(params) == before
    assert trainer.info().num_steps == 0
    trainer.step(1, grads=BOTH)


@pytest.mark.parametrize("policy", ["apply", "skip", "error"])
def test_gradients_that_are_not_finite(
    params: paramd.ParameterDict, kvstore: str, policy: str
) -> None:
    trainer = Trainer(params, "adam", kvstore=kvstore, non_finite=policy)
    trainer.step(1, grads=BOTH)
    before = values(params)
    grads = {**BOTH, "n_b": np.array([1, np.nan, 1, 1], "f4")}
    if policy == "error":
        with pytest.raises(NonFiniteGradientError, match="n_b"):
            trainer.step(1, grads=grads)
    else:
        trainer.step(1, grads=grads)
    info = trainer.info()
    assert info.num_non_finite == 1
    assert info.num_skipped == (policy == "skip")
    assert (values(params) == before) == (policy != "apply")
    assert info.num_update == 1 + (policy == "apply")
    trainer.step(1, grads=BOTH)


def test_rows_of_one_id_add_up(session: paramd.Session, kvstore: str) -> None:
    params = paramd.ParameterDict("n_", session=session)
    params.get("t", shape=(6, 2), stype="row_sparse", grad_stype="row_sparse", init="zeros")
    params.initialize()
    optimizer = {"learning_rate": 1.0, "momentum": 0.5, "wd": 0.1}
    trainer = Trainer(params, "sgd", optimizer, kvstore=kvstore)
    rows = np.arange(8, dtype="f4").reshape(4, 2)
    trainer.step(1, grads={"n_t": (np.array([4, 1, 4, 1], "i4"), rows)})
    got = params["n_t"].row_sparse_data(np.arange(6)).asnumpy()
    expected = np.zeros((6, 2), "f4")
    expected[4], expected[1] = -(rows[0] + rows[2]), -(rows[1] + rows[3])
    np.testing.assert_array_equal(got, expected)
    # Lazy: no momentum and no decay for rows that are not there.
    trainer.step(1, grads={"n_t": (np.array([], "i8"), np.empty((0, 2), "f4"))})
    np.testing.assert_array_equal(params["n_t"].row_sparse_data(np.arange(6)).asnumpy(), expected)
    assert trainer.step(1, grads={"n_t": ([0], rows[:1])}, pull=True) == {}


# The buffers of the server


def test_steps_by_the_buffers(params: paramd.ParameterDict) -> None:
    trainer = Trainer(params, "sgd", RATE)
    with pytest.raises(StaleGradientError, match=r"n_a|n_b"):
        trainer.step(1)
    params["n_a"].grad()[:] = 2
    with pytest.raises(StaleGradientError, match="n_b"):
        trainer.step(1)
    assert trainer.info().num_steps == 0
    trainer.step(2, ignore_stale_grad=True)
    np.testing.assert_array_equal(params["n_a"].data().asnumpy(), -ONES)
    assert not params["n_b"].data().asnumpy().any()
    params.push({"n_a": ONES, "n_b": BOTH["n_b"]})
    pulled = trainer.step(1, zero_grad=True, pull=True)
    assert pulled is not None
    np.testing.assert_array_equal(pulled["n_b"], np.full(4, -1, "f4"))
    assert not params["n_a"].grad().asnumpy().any()
    with pytest.raises(ValueError, match="zero_grad"):
        trainer.step(1, grads=BOTH, zero_grad=True)


def test_a_step_by_the_buffers_that_fails_keeps_them_fresh(params: paramd.ParameterDict) -> None:
    trainer = Trainer(params, "sgd", RATE, non_finite="error")
    params.push({"n_a": ONES, "n_b": np.full(4, np.inf, "f4")})
    before = values(params)
    with pytest.raises(NonFiniteGradientError, match="n_b"):
        trainer.step(1, zero_grad=True)
    assert values(params) == before
    np.testing.assert_array_equal(params["n_a"].grad().asnumpy(), ONES)
    params["n_b"].grad()[:] = 1
    trainer.step(1)
    np.testing.assert_array_equal(params["n_a"].data().asnumpy(), -ONES)


@pytest.mark.parametrize("kvstore", ["dist_sync", "dist_async"])
def test_a_distributed_step_brings_its_gradients(
    params: paramd.ParameterDict, kvstore: str
) -> None:
    trainer = Trainer(params, "sgd", RATE, kvstore=kvstore)
    params.push(BOTH)
    with pytest.raises(ValueError, match="grads="):
        trainer.step(1)
    for call in (trainer.allreduce_grads, lambda: trainer.update(1)):
        with pytest.raises(AssertionError, match="kvstore"):
            call()


@pytest.mark.parametrize("split", [False, True])
def test_each_copy_by_itself(session: paramd.Session, split: bool) -> None:
    params = paramd.ParameterDict("n_", session=session)
    params.get("w", shape=(4,), init="zeros")
    params.initialize(ctx=[device(0), device(1)])
    optimizer = {"learning_rate": 1.0, "momentum": 0.5}
    trainer = Trainer(params, "sgd", optimizer, update_on_kvstore=False)
    for context, number in ((device(0), 1), (device(1), 2)):
        params["n_w"].grad(context)[:] = number
    if split:
        trainer.allreduce_grads()
        for context in (device(0), device(1)):
            np.testing.assert_array_equal(
                params["n_w"].grad(context).asnumpy(), np.full(4, 3, "f4")
            )
        trainer.update(3)
    else:
        trainer.step(3)
    for context in (device(0), device(1)):
        np.testing.assert_array_equal(params["n_w"].data(context).asnumpy(), np.full(4, -1, "f4"))
    if split:
        # Copies may go ways of their own.
        params["n_w"].grad(device(0))[:] = 0
        params["n_w"].grad(device(1))[:] = 3
        trainer.update(3)
        np.testing.assert_array_equal(
            params["n_w"].data(device(0)).asnumpy(), np.full(4, -1.5, "f4")
        )
        np.testing.assert_array_equal(
            params["n_w"].data(device(1)).asnumpy(), np.full(4, -2.5, "f4")
        )
    assert trainer.info().state_bytes == 32


def test_one_copy_for_all(session: paramd.Session) -> None:
    params = paramd.ParameterDict("n_", session=session)
    params.get("w", shape=(4,), init="zeros")
    params.get("t", shape=(4, 2), init="zeros", grad_stype="row_sparse")
    params.initialize(ctx=[device(0), device(1)])
    trainer = Trainer(params, "sgd", RATE)
    for context, number in ((device(0), 1), (device(1), 2)):
        params["n_w"].grad(context)[:] = number
        rows = paramd.nd.sparse.row_sparse_array(
            (np.full((2, 2), number, "f4"), np.array([number, 3])), shape=(4, 2)
        )
        params.push({"n_t": rows}, ctx=context)
    trainer.step(1)
    for context in (device(0), device(1)):
        np.testing.assert_array_equal(params["n_w"].data(context).asnumpy(), np.full(4, -3, "f4"))
        np.testing.assert_array_equal(
            params["n_t"].data(context).asnumpy(), np.repeat([[0], [-1], [-2], [-3]], 2, axis=1)
        )


# Compression


def test_compressed_gradients_are_what_the_codec_makes_of_them(
    params: paramd.ParameterDict, kvstore: str
) -> None:
    compression = {"type": "2bit", "threshold": 0.5}
    trainer = Trainer(params, "sgd", RATE, kvstore=kvstore, compression_params=compression)
    rng = np.random.default_rng(5)
    codec, residual = TwoBit(0.5), None
    expected = np.zeros((2, 3), "f4")
    for number in range(6):
        gradient = rng.standard_normal((2, 3)).astype("f4")
        if number == 3:
            # What is refused leaves the residual as it was.
            with pytest.raises(InvalidArgumentError):
                trainer.step(1, grads={"n_a": gradient, "n_b": BOTH["n_b"]}, learning_rate=np.nan)
        trainer.step(1, grads={"n_a": gradient, "n_b": BOTH["n_b"]})
        packed, residual = codec.compress(gradient, residual)
        expected -= expand(packed, (2, 3), np.dtype("f4"), 0.5)
    np.testing.assert_array_equal(params["n_a"].data().asnumpy(), expected)


def test_a_push_that_is_skipped_leaves_the_residual_as_it_was(
    params: paramd.ParameterDict,
) -> None:
    compression = {"type": "2bit", "threshold": 0.5}
    trainer = Trainer(
        params, "sgd", RATE, kvstore="dist_sync", compression_params=compression, non_finite="skip"
    )
    quarter = np.full((2, 3), 0.25, "f4")
    trainer.step(1, grads={"n_a": quarter, "n_b": np.full(4, np.nan, "f4")})
    trainer.step(1, grads={"n_a": quarter, "n_b": BOTH["n_b"]})
    assert not params["n_a"].data().asnumpy().any()
    trainer.step(1, grads={"n_a": quarter, "n_b": BOTH["n_b"]})
    np.testing.assert_array_equal(params["n_a"].data().asnumpy(), np.full((2, 3), -0.5, "f4"))


# Parameters that change between steps


def test_parameters_that_cannot_be_stepped(session: paramd.Session, kvstore: str) -> None:
    bare = paramd.Parameter("bare", shape=(2,), session=session)
    with pytest.raises(RuntimeError, match="bare"):
        Trainer([bare], "sgd", kvstore=kvstore)
    late = paramd.Parameter("late", shape=(0, 2), allow_deferred_init=True, session=session)
    late.initialize()
    trainer = Trainer([late], "sgd", RATE, kvstore=kvstore)
    with pytest.raises(DeferredInitializationError):
        trainer.step(1, grads={"late": np.ones((3, 2), "f4")})
    late.shape = (3, 2)
    trainer.step(1, grads={"late": np.ones((3, 2), "f4")})
    late.cast("int32")
    with pytest.raises(DTypeMismatchError, match="int32"):
        trainer.step(1, grads={"late": np.ones((3, 2), "i4")})
    assert trainer.info().num_steps == 1
    session.delete("late")
    with pytest.raises((ParameterNotFoundError, NotInitializedError)):
        trainer.step(1, grads={"late": np.ones((3, 2), "f4")})


def test_contexts_differ(session: paramd.Session) -> None:
    params = paramd.ParameterDict("n_", session=session)
    params.get("a", shape=(2,)).initialize(ctx=device(0))
    params.get("b", shape=(2,)).initialize(ctx=device(1))
    with pytest.raises(AssertionError, match="same set of contexts"):
        Trainer(params, "sgd")


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_momentum_survives_a_cast(params: paramd.ParameterDict, kvstore: str, dtype: str) -> None:
    optimizer = {"learning_rate": 1.0, "momentum": 0.5}
    trainer = Trainer(params, "sgd", optimizer, kvstore=kvstore)
    trainer.step(1, grads=BOTH)
    for parameter in params.values():
        parameter.cast(dtype)
    trainer.step(1, grads={name: value.astype(dtype) for name, value in BOTH.items()})
    value = params["n_a"].data().asnumpy()
    assert value.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(value, np.full((2, 3), -2.5, dtype))


def test_momentum_survives_a_move(params: paramd.ParameterDict, kvstore: str) -> None:
    optimizer = {"learning_rate": 1.0, "momentum": 0.5}
    trainer = Trainer(params, "sgd", optimizer, kvstore=kvstore)
    trainer.step(1, grads=BOTH)
    params.reset_ctx([device(3), device(1)])
    trainer.step(1, grads=BOTH)
    for context in (device(1), device(3)):
        np.testing.assert_array_equal(params["n_b"].data(context).asnumpy(), np.full(4, -2.5, "f4"))


def test_a_parameter_that_is_made_anew_begins_anew(
    session: paramd.Session, params: paramd.ParameterDict, kvstore: str
) -> None:
    optimizer = {"learning_rate": 1.0, "momentum": 0.5}
    trainer = Trainer(params, "sgd", optimizer, kvstore=kvstore)
    trainer.step(1, grads=BOTH)
    session.delete("n_b")
    made = paramd.Parameter("n_b", shape=(5,), init="zeros", session=session)
    made.initialize()
    for number in (1.0, 2.5):
        trainer.step(1, grads={"n_a": ONES, "n_b": np.ones(5, "f4")})
        np.testing.assert_array_equal(made.data().asnumpy(), np.full(5, -number, "f4"))


def test_initializing_again_goes_on(params: paramd.ParameterDict, kvstore: str) -> None:
    trainer = Trainer(params, "sgd", RATE, kvstore=kvstore)
    trainer.step(1, grads=BOTH)
    params.initialize("ones", force_reinit=True)
    trainer.step(1, grads=BOTH)
    # The initializer of the parameter itself comes first, as in MXNet.
    np.testing.assert_array_equal(params["n_a"].data().asnumpy(), -ONES)


def test_half_precision_keeps_a_master(session: paramd.Session, kvstore: str) -> None:
    """Steps of 2**-13 at 1 vanish in float16, and add up in float32."""
    params = paramd.ParameterDict("n_", session=session)
    params.get("w", shape=(3,), dtype="float16", init="ones")
    params.initialize()
    optimizer = {"learning_rate": 1.0, "multi_precision": True}
    trainer = Trainer(params, "sgd", optimizer, kvstore=kvstore)
    for _ in range(8):
        trainer.step(1, grads={"n_w": np.full(3, 2.0**-13, "f2")})
    np.testing.assert_array_equal(params["n_w"].data().asnumpy(), np.full(3, 1 - 2.0**-10, "f2"))
    assert trainer.info().state_bytes == 12


# Settings


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": "adam"},
        {"optimizer_params": {"learning_rate": 0.5}},
        {"kvstore": "dist_async"},
        {"kvstore": "dist_async", "staleness": 2},
        {"kvstore": "local"},
        {"num_workers": 7},
        {"non_finite": "skip"},
        {"on_worker_loss": "error"},
        {"compression_params": {"type": "2bit", "threshold": 0.5}},
    ],
)
def test_a_second_trainer_with_other_settings(
    params: paramd.ParameterDict, changes: dict[str, Any]
) -> None:
    settings = {"optimizer": "sgd", "optimizer_params": RATE, "kvstore": "dist_sync"}
    Trainer(params, **settings)  # type: ignore[arg-type]
    Trainer(params, **settings)  # type: ignore[arg-type]
    with pytest.raises(TrainerMismatchError):
        Trainer(params, **{**settings, **changes})


def test_a_second_trainer_of_one_parameter(params: paramd.ParameterDict) -> None:
    Trainer(params, "sgd", kvstore="dist_sync")
    with pytest.raises(TrainerMismatchError, match="n_a"):
        Trainer([params["n_a"]], "sgd", kvstore="dist_sync")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Trainer([params["n_b"], params["n_a"]], "sgd", kvstore="dist_sync")
