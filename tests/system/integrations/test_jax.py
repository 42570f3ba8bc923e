"""`paramd.jax`: pytrees whose arrays a server holds."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest

from paramd import Session
from paramd.errors import InvalidArgumentError, StaleGradientError
from tests.system.integrations.conftest import Together

jax = pytest.importorskip("jax", reason="JAX is not installed: make frameworks")
integration = pytest.importorskip("paramd.jax", reason="JAX is not installed")

# A power of two: products with it round nothing, whatever the order of the operations.
RATE = 0.125
STEPS = 5


def network(seed: int, dtype: str = "float32") -> dict[str, Any]:
    first, second = jax.random.split(jax.random.key(seed))
    return {
        "dense": {
            "kernel": jax.random.normal(first, (6, 8), dtype) / 4,
            "bias": jax.numpy.ones(8, dtype) / 4,
        },
        "layers": [jax.random.normal(second, (8, 3), dtype) / 4],
        "scale": jax.numpy.asarray(0.5, dtype),
    }


def loss(tree: Any, x: Any) -> Any:
    hidden = jax.numpy.tanh(x @ tree["dense"]["kernel"] + tree["dense"]["bias"])
    return ((hidden @ tree["layers"][0] * tree["scale"]) ** 2).sum()


def batches(size: int = 8) -> Any:
    return jax.random.normal(jax.random.key(9), (STEPS, size, 6))


def assert_same(tree: Any, other: Any, *, rtol: float = 0.0, atol: float = 0.0) -> None:
    assert jax.tree_util.tree_structure(tree) == jax.tree_util.tree_structure(other)
    for one, two in zip(
        jax.tree_util.tree_leaves(tree), jax.tree_util.tree_leaves(other), strict=True
    ):
        assert (type(one), one.dtype, one.shape) == (type(two), two.dtype, two.shape)
        one, two = (np.asarray(each).astype(np.float64) for each in (one, two))
        np.testing.assert_allclose(one, two, rtol=rtol, atol=atol)


def locally(tree: Any, momentum: float, gradients: Any) -> Any:
    """Gradient descent with momentum, in JAX."""
    velocity = jax.tree_util.tree_map(jax.numpy.zeros_like, tree)
    for x in batches():
        grads = gradients(tree, x)
        velocity = jax.tree_util.tree_map(lambda v, g: momentum * v - RATE * g, velocity, grads)
        tree = jax.tree_util.tree_map(lambda w, v: w + v, tree, velocity)
    return tree


def test_names_are_the_paths_of_the_tree(session: Session) -> None:
    remote = integration.attach(network(0), prefix="net_", session=session)
    assert {name: each.shape for name, each in remote.parameters.items()} == {
        "net_dense.bias": (8,),
        "net_dense.kernel": (6, 8),
        "net_layers.0": (8, 3),
        "net_scale": (1,),
    }


@pytest.mark.parametrize(
    # Powers of two round nothing; with other momenta XLA may round a sum once instead of twice.
    ("momentum", "rtol"),
    [(0.0, 0.0), (0.9, 1e-5)],
)
def test_training_gives_what_local_arithmetic_gives(
    session: Session, momentum: float, rtol: float
) -> None:
    tree = network(0)
    remote = integration.attach(
        tree, "sgd", {"learning_rate": RATE, "momentum": momentum}, prefix="net_", session=session
    )
    expected = locally(tree, momentum, jax.grad(loss))
    for x in batches():
        tree = remote.step(1, jax.grad(loss)(tree, x))
    assert_same(tree, expected, rtol=rtol, atol=rtol)
    assert_same(remote.pull(), tree)


def test_two_workers_give_what_one_gives_on_the_joint_batch(
    session: Session, together: Together
) -> None:
    trees: list[Any] = [None, None]
    starts: list[Any] = [None, None]

    def work(own: Session, rank: int) -> None:
        remote = integration.attach(
            network(rank), "sgd", {"learning_rate": RATE, "momentum": 0.9}, session=own
        )
        tree = starts[rank] = remote.pull()
        for x in batches():
            tree = remote.step(len(x), jax.grad(loss)(tree, x[rank::2]))
        trees[rank] = tree

    together(work)
    assert_same(starts[0], starts[1])
    assert_same(trees[0], trees[1])
    expected = locally(
        starts[0], 0.9, lambda tree, x: jax.grad(lambda t: loss(t, x) / len(x))(tree)
    )
    # Sums over 8 numbers of float32 in another order, five times.
    assert_same(trees[0], expected, rtol=1e-5, atol=1e-6)


def test_first_tree_gives_the_values(session: Session) -> None:
    first, second = network(1), network(2)
    assert_same(integration.attach(first, session=session).pull(), first)
    assert_same(integration.attach(second, session=session).pull(), first)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_dtypes_are_kept(session: Session, dtype: str) -> None:
    tree = network(0, dtype)
    remote = integration.attach(tree, "sgd", {"learning_rate": RATE}, session=session)
    grads = jax.tree_util.tree_map(jax.numpy.ones_like, tree)
    expected = jax.tree_util.tree_map(lambda each: each - jax.numpy.asarray(RATE, dtype), tree)
    # One rounding more or less, of values of about 2.
    eps = float(jax.numpy.finfo(dtype).eps)
    assert_same(remote.step(1, grads), expected, atol=2 * eps)


def test_leaves_of_numpy_stay_of_numpy(session: Session) -> None:
    tree = {"w": np.arange(6.0).reshape(2, 3), "x": np.full((), 2.0, np.float32)}
    remote = integration.attach(tree, "sgd", {"learning_rate": RATE}, session=session)
    grads = {"w": np.ones((2, 3)), "x": np.ones((), np.float32)}
    got = remote.step(1, grads)
    assert_same(got, {"w": tree["w"] - RATE, "x": np.asarray(tree["x"] - RATE)})
    got["w"][0, 0] = 5.0
    assert remote.pull()["w"][0, 0] == -RATE


def test_whole_numbers_get_no_gradient(session: Session) -> None:
    tree = {"w": jax.numpy.ones(3), "count": jax.numpy.asarray(7)}
    remote = integration.attach(tree, "sgd", {"learning_rate": RATE}, session=session)
    assert remote.parameters["count"].grad_req == "null"
    grads = jax.grad(lambda tree: tree["w"].sum(), allow_int=True)(tree)
    assert_same(remote.step(1, grads), {"w": tree["w"] - RATE, "count": tree["count"]})


def test_missing_gradient_is_an_error_unless_said_so(session: Session) -> None:
    tree = network(0)
    remote = integration.attach(
        tree, "sgd", {"learning_rate": RATE, "wd": 0.1}, prefix="net_", session=session
    )
    grads = jax.grad(loss)(tree, batches()[0]) | {"scale": None}
    with pytest.raises(StaleGradientError, match="net_scale"):
        remote.step(1, grads)
    assert_same(remote.pull(), tree)
    new = remote.step(1, grads, ignore_stale_grad=True)
    assert_same(new["scale"], tree["scale"])
    assert not np.array_equal(new["layers"][0], tree["layers"][0])


def test_gradients_of_another_tree_are_refused(session: Session) -> None:
    tree = network(0)
    remote = integration.attach(tree, "sgd", {"learning_rate": RATE}, session=session)
    grads = jax.grad(loss)(tree, batches()[0])
    with pytest.raises(InvalidArgumentError, match=r"'other', which is not in the tree"):
        remote.step(1, grads | {"other": grads["scale"]})
    with pytest.raises(InvalidArgumentError, match=r"'scale' is of shape \(3,\)"):
        remote.step(1, grads | {"scale": np.zeros(3)})
    assert_same(remote.pull(), tree)


def test_reader_pulls_and_does_not_step(session: Session) -> None:
    tree = network(0)
    reader = integration.attach(tree, session=session)
    remote = integration.attach(tree, "sgd", {"learning_rate": RATE}, session=session)
    new = remote.step(1, jax.grad(loss)(tree, batches()[0]))
    assert_same(reader.pull(), new)
    with pytest.raises(InvalidArgumentError, match="got none"):
        reader.step(1, tree)


@pytest.mark.parametrize(
    ("tree", "error", "message"),
    [
        ({"a": 1.0}, TypeError, r"'net_a' is no array: float"),
        ({"a": np.zeros((0, 2))}, ValueError, "no elements"),
        ({"a": np.zeros(2, complex)}, TypeError, "complex128"),
        ({"a.b": np.zeros(2), "a": {"b": np.zeros(2)}}, ValueError, r"two leaves.*'a\.b'"),
        ({}, ValueError, "at least one parameter"),
        ({"a": np.zeros(2, np.int32)}, ValueError, "at least one parameter"),
    ],
    ids=["number", "empty", "complex", "name", "nothing", "whole"],
)
def test_unsuitable_tree_is_refused(
    session: Session, tree: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        integration.attach(tree, "sgd", prefix="net_", session=session)


def test_options_without_an_optimizer_are_refused(session: Session) -> None:
    with pytest.raises(TypeError, match="num_workers: without an optimizer"):
        integration.attach(network(0), num_workers=2, session=session)


def test_remote_tree_is_not_copied(session: Session) -> None:
    remote = integration.attach(network(0), session=session)
    with pytest.raises(TypeError, match=r"attach\(\) the tree where it is used"):
        pickle.dumps(remote)
