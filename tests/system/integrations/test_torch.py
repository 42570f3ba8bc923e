"""`paramd.torch`: modules whose parameters a server holds."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paramd import Session
from paramd.errors import (
    AttributeMismatchError,
    InvalidArgumentError,
    NonFiniteGradientError,
    StaleGradientError,
    TrainerMismatchError,
)
from tests.system.integrations.conftest import Together

torch = pytest.importorskip("torch", reason="PyTorch is not installed: make frameworks")
integration = pytest.importorskip("paramd.torch", reason="PyTorch is not installed")

# A power of two: products with it round nothing, whatever the order of the operations.
RATE = 0.125
STEPS = 5


def network(seed: int, dtype: Any = torch.float32) -> Any:
    torch.manual_seed(seed)
    return torch.nn.Sequential(
        torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3, bias=False)
    ).to(dtype)


def batches(dtype: Any = torch.float32, size: int = 8) -> list[Any]:
    generator = torch.Generator().manual_seed(1)
    return [
        torch.randn((size, 6), generator=generator, dtype=torch.float64).to(dtype)
        for _ in range(STEPS)
    ]


def backward(module: Any, x: Any) -> None:
    (module(x) ** 2).sum().backward()


def values(module: Any) -> dict[str, Any]:
    return {name: each.detach().clone() for name, each in module.named_parameters()}


def assert_same(module: Any, other: Any, **tolerance: float) -> None:
    torch.testing.assert_close(
        values(module), values(other), **(tolerance or {"rtol": 0, "atol": 0})
    )


Optimizer = Callable[[Any], Any]


@pytest.mark.parametrize(
    ("name", "arguments", "local", "tolerance"),
    [
        ("sgd", {}, lambda p: torch.optim.SGD(p, lr=RATE), {"rtol": 0.0, "atol": 0.0}),
        (
            "sgd",
            {"momentum": 0.9, "wd": 0.01},
            lambda p: torch.optim.SGD(p, lr=RATE, momentum=0.9, weight_decay=0.01),
            # The same formula, in another order.
            {"rtol": 1e-5, "atol": 1e-6},
        ),
        (
            "adam",
            {},
            lambda p: torch.optim.Adam(p, lr=RATE),
            # PyTorch adds epsilon (1e-8) after the correction of the bias, MXNet before.
            {"rtol": 1e-4, "atol": 1e-5},
        ),
    ],
    ids=["sgd", "momentum", "adam"],
)
def test_training_gives_what_a_local_optimizer_gives(
    session: Session,
    name: str,
    arguments: dict[str, Any],
    local: Optimizer,
    tolerance: dict[str, float],
) -> None:
    module, expected = network(0), network(0)
    remote = integration.attach(
        module, name, {"learning_rate": RATE, **arguments}, prefix="net_", session=session
    )
    optimizer = local(expected.parameters())
    start = values(module)
    for x in batches():
        backward(module, x)
        remote.step(1)
        optimizer.zero_grad()
        backward(expected, x)
        optimizer.step()
    assert_same(module, expected, **tolerance)
    assert all(not torch.equal(start[key], value) for key, value in values(module).items())
    assert all(each.grad is None for each in module.parameters())


def test_two_workers_give_what_one_gives_on_the_joint_batch(
    session: Session, together: Together
) -> None:
    modules = [network(rank, torch.float64) for rank in range(2)]
    starts: list[Any] = [None, None]

    def work(own: Session, rank: int) -> None:
        remote = integration.attach(
            modules[rank], "sgd", {"learning_rate": RATE, "momentum": 0.9}, session=own
        )
        starts[rank] = copy.deepcopy(modules[rank])
        for x in batches(torch.float64):
            backward(modules[rank], x[rank::2])
            remote.step(len(x))

    together(work)
    assert_same(starts[0], starts[1])
    assert_same(modules[0], modules[1])
    expected = starts[0]
    optimizer = torch.optim.SGD(expected.parameters(), lr=RATE, momentum=0.9)
    for x in batches(torch.float64):
        optimizer.zero_grad()
        ((expected(x) ** 2).sum() / len(x)).backward()
        optimizer.step()
    assert_same(modules[0], expected, rtol=1e-12, atol=1e-14)


def test_first_values_are_those_of_the_first_module(session: Session) -> None:
    first, second = network(1), network(2)
    before = values(first)
    integration.attach(first, prefix="net_", session=session)
    tensors = list(second.parameters())
    integration.attach(second, prefix="net_", session=session)
    assert {key: value.tolist() for key, value in values(first).items()} == {
        key: value.tolist() for key, value in before.items()
    }
    assert_same(first, second)
    assert all(one is other for one, other in zip(tensors, second.parameters(), strict=True))


def test_names_are_those_of_the_state_dict(session: Session) -> None:
    module = network(0)
    remote = integration.attach(module, prefix="net_", session=session)
    assert list(remote.parameters.keys()) == [f"net_{name}" for name in module.state_dict()]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_dtypes_are_kept(session: Session, dtype: Any) -> None:
    module, expected = network(0, dtype), network(0, dtype)
    remote = integration.attach(module, "sgd", {"learning_rate": RATE}, session=session)
    name = str(dtype).removeprefix("torch.")
    assert {str(np.dtype(each.dtype)) for each in remote.parameters.values()} == {name}
    x, *_ = batches(dtype)
    backward(module, x)
    remote.step(1)
    backward(expected, x)
    torch.optim.SGD(expected.parameters(), lr=RATE).step()
    # One rounding more or less, of a value of about 1.
    assert_same(module, expected, rtol=0, atol=torch.finfo(dtype).eps)
    assert {each.dtype for each in module.parameters()} == {dtype}


def test_memory_layout_is_kept(session: Session) -> None:
    module, expected = network(0), network(0)
    for each in (module, expected):
        each[0].weight = torch.nn.Parameter(each[0].weight.detach().clone().T.contiguous().T)
    assert not module[0].weight.is_contiguous()
    strides, address = module[0].weight.stride(), module[0].weight.data_ptr()
    remote = integration.attach(module, "sgd", {"learning_rate": RATE}, session=session)
    x, *_ = batches()
    backward(module, x)
    remote.step(1)
    backward(expected, x)
    torch.optim.SGD(expected.parameters(), lr=RATE).step()
    assert_same(module, expected)
    assert (module[0].weight.stride(), module[0].weight.data_ptr()) == (strides, address)


def test_number_without_axes_is_trained(session: Session) -> None:
    module = torch.nn.Module()
    module.scale = torch.nn.Parameter(torch.tensor(3.0))
    remote = integration.attach(module, "sgd", {"learning_rate": RATE}, session=session)
    (module.scale**2).backward()
    remote.step(1)
    assert module.scale.item() == 3.0 - RATE * 6.0
    assert remote.parameters["scale"].shape == (1,)


def test_tied_weight_is_one_parameter(session: Session) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
    module[1].weight = module[0].weight
    remote = integration.attach(module, "sgd", {"learning_rate": RATE}, session=session)
    assert list(remote.parameters.keys()) == ["0.weight", "0.bias", "1.bias"]
    module(torch.ones(2, 4)).sum().backward()
    expected = module[0].weight.detach() - RATE * module[0].weight.grad
    remote.step(1)
    assert module[1].weight is module[0].weight
    torch.testing.assert_close(module[1].weight.detach(), expected, rtol=0, atol=0)


def test_frozen_parameter_gets_no_gradient(session: Session) -> None:
    module = network(0)
    module[0].weight.requires_grad_(False)
    before = module[0].weight.clone()
    remote = integration.attach(
        module, "sgd", {"learning_rate": RATE, "wd": 0.1}, prefix="net_", session=session
    )
    assert remote.parameters["net_0.weight"].grad_req == "null"
    x, *_ = batches()
    backward(module, x)
    remote.step(1)
    remote.pull()
    assert torch.equal(module[0].weight, before)


def test_parameter_without_gradient_is_passed_over(session: Session) -> None:
    module = network(0)
    remote = integration.attach(
        module, "sgd", {"learning_rate": RATE, "wd": 0.1}, prefix="net_", session=session
    )
    before = values(module)
    module[0](torch.ones(1, 6)).sum().backward()
    with pytest.raises(StaleGradientError, match=r"net_2\.weight"):
        remote.step(1, ignore_stale_grad=False)
    assert module[0].weight.grad is not None
    remote.step(1)
    after = values(module)
    assert torch.equal(after["2.weight"], before["2.weight"])
    assert not torch.equal(after["0.weight"], before["0.weight"])


def test_failed_step_keeps_gradients_and_values(session: Session) -> None:
    module = network(0)
    remote = integration.attach(
        module, "sgd", {"learning_rate": RATE}, non_finite="error", session=session
    )
    before = values(module)
    backward(module, torch.full((1, 6), float("nan")))
    with pytest.raises(NonFiniteGradientError):
        remote.step(1)
    assert module[0].weight.grad is not None
    remote.pull()
    torch.testing.assert_close(values(module), before, rtol=0, atol=0)


def test_buffers_stay_with_the_worker_unless_asked_for(session: Session) -> None:
    module = torch.nn.BatchNorm1d(3)
    remote = integration.attach(module, prefix="own_", session=session)
    assert list(remote.parameters.keys()) == ["own_weight", "own_bias"]
    with pytest.raises(InvalidArgumentError, match="buffers=True"):
        remote.push_buffers()
    one, other = torch.nn.BatchNorm1d(3), torch.nn.BatchNorm1d(3)
    first = integration.attach(one, prefix="net_", buffers=True, session=session)
    second = integration.attach(other, prefix="net_", buffers=True, session=session)
    one(torch.randn(16, 3))
    first.push_buffers()
    second.pull()
    assert other.num_batches_tracked.item() == 0
    second.pull_buffers()
    torch.testing.assert_close(other.state_dict(), one.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("suffix", ["safetensors", "params"])
def test_files_hold_the_state_dict(session: Session, tmp_path: Path, suffix: str) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3))
    module(torch.randn(16, 3))
    remote = integration.attach(module, prefix="net_", buffers=True, session=session)
    path = tmp_path / f"net.{suffix}"
    remote.parameters.save(path, strip_prefix="net_")
    other = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3))
    if suffix == "safetensors":
        from safetensors.torch import load_file

        state = load_file(path)
    else:
        from paramd import nd

        loaded = nd.load(path)
        assert isinstance(loaded, dict)
        state = {name: torch.from_numpy(each.asnumpy()) for name, each in loaded.items()}
    other.load_state_dict(state, strict=True)
    torch.testing.assert_close(other.state_dict(), module.state_dict(), rtol=0, atol=0)


def test_file_that_pytorch_wrote_is_loaded(session: Session, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    module, trained = network(0), network(1)
    save_file(trained.state_dict(), tmp_path / "net.safetensors")
    remote = integration.attach(module, prefix="net_", session=session)
    remote.parameters.load(tmp_path / "net.safetensors", restore_prefix="net_")
    remote.pull()
    assert_same(module, trained)


def test_reader_follows_what_a_worker_trains(session: Session) -> None:
    module, reading = network(0), network(1)
    reader = integration.attach(reading.requires_grad_(False), prefix="net_", session=session)
    remote = integration.attach(
        module, "sgd", {"learning_rate": RATE}, prefix="net_", session=session
    )
    x, *_ = batches()
    backward(module, x)
    remote.step(1)
    assert not torch.equal(reading[0].weight, module[0].weight)
    reader.pull()
    assert_same(module, reading)
    with pytest.raises(InvalidArgumentError, match="got none, so this module only reads"):
        reader.step(1)


def test_step_without_pull_leaves_the_module_as_it_is(session: Session) -> None:
    module = network(0)
    remote = integration.attach(module, "sgd", {"learning_rate": RATE}, session=session)
    before = copy.deepcopy(module)
    x, *_ = batches()
    backward(module, x)
    remote.step(1, pull=False, learning_rate=1.0)
    assert_same(module, before)
    remote.pull()
    backward(before, x)
    torch.optim.SGD(before.parameters(), lr=1.0).step()
    assert_same(module, before)


def test_pull_between_forward_and_backward_is_reported(session: Session) -> None:
    module = network(0)
    remote = integration.attach(module, session=session)
    loss = module(torch.ones(1, 6, requires_grad=True)).sum()
    remote.pull()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_module_that_was_changed_since_is_refused(session: Session) -> None:
    module = network(0)
    remote = integration.attach(module, "sgd", {"learning_rate": RATE}, session=session)
    module.append(torch.nn.Linear(3, 1))
    with pytest.raises(InvalidArgumentError, match=r"'3\.weight'.*attach\(\) it again"):
        remote.pull()
    del module[3]
    # One of the same name is followed.
    module[0] = torch.nn.Linear(6, 8)
    remote.pull()
    np.testing.assert_array_equal(
        module[0].weight.detach().numpy(), remote.parameters["0.weight"].data().asnumpy()
    )
    module.double()
    with pytest.raises(AssertionError, match=r"float32.*float64"):
        remote.pull()


def test_unfrozen_parameter_is_refused(session: Session) -> None:
    module = network(0)
    module[0].weight.requires_grad_(False)
    remote = integration.attach(module, "sgd", {"learning_rate": RATE}, session=session)
    module[0].weight.requires_grad_(True)
    x, *_ = batches()
    backward(module, x)
    with pytest.raises(InvalidArgumentError, match=r"'0\.weight' has a gradient"):
        remote.step(1)
    remote.trainer.delete()
    remote = integration.attach(module, "sgd", {"learning_rate": RATE}, session=session)
    expected = module[0].weight.detach() - RATE * module[0].weight.grad
    remote.step(1)
    torch.testing.assert_close(module[0].weight.detach(), expected, rtol=0, atol=0)


def test_workers_that_freeze_differently_are_refused(session: Session) -> None:
    integration.attach(network(0), "sgd", session=session)
    module = network(0)
    module[0].weight.requires_grad_(False)
    with pytest.raises(TrainerMismatchError):
        integration.attach(module, "sgd", session=session)


def test_second_attach_is_the_same_parameters(session: Session) -> None:
    module = network(0)
    first = integration.attach(module, "sgd", {"learning_rate": RATE}, session=session)
    second = integration.attach(module, "sgd", {"learning_rate": RATE}, session=session)
    assert first.trainer is not None
    assert second.trainer is not None
    assert first.trainer.name == second.trainer.name
    x, *_ = batches()
    backward(module, x)
    second.step(1)
    with pytest.raises(TrainerMismatchError):
        integration.attach(module, "adam", session=session)


def unsuitable() -> dict[str, tuple[Callable[[], Any], type[Exception], str]]:
    def complex_numbers() -> Any:
        module = torch.nn.Module()
        module.z = torch.nn.Parameter(torch.zeros(2, dtype=torch.complex64))
        return module

    def empty() -> Any:
        module = torch.nn.Module()
        module.none = torch.nn.Parameter(torch.zeros(0, 3))
        return module

    return {
        "complex": (complex_numbers, TypeError, "complex64"),
        "empty": (empty, ValueError, "'net_none'.*no elements"),
        "lazy": (lambda: torch.nn.LazyLinear(3), ValueError, "'weight' has no shape yet"),
        "meta": (lambda: torch.nn.Linear(2, 2, device="meta"), ValueError, "meta device"),
        "max_norm": (
            lambda: torch.nn.Sequential(torch.nn.Embedding(3, 2, max_norm=1.0)),
            ValueError,
            "embedding '0' has max_norm",
        ),
        "nothing": (torch.nn.ReLU, ValueError, "at least one parameter"),
        "frozen": (
            lambda: torch.nn.Linear(2, 2).requires_grad_(False),
            ValueError,
            "at least one parameter",
        ),
    }


@pytest.mark.parametrize("case", unsuitable())
@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature:UserWarning")
def test_unsuitable_module_is_refused(session: Session, case: str) -> None:
    make, error, message = unsuitable()[case]
    with pytest.raises(error, match=message):
        integration.attach(make(), "sgd", prefix="net_", session=session)


def test_other_shape_than_the_servers_is_refused(session: Session) -> None:
    integration.attach(torch.nn.Linear(2, 2), session=session)
    module = torch.nn.Linear(3, 2)
    before = values(module)
    with pytest.raises(AttributeMismatchError, match="weight"):
        integration.attach(module, session=session)
    torch.testing.assert_close(values(module), before, rtol=0, atol=0)


def test_options_without_an_optimizer_are_refused(session: Session) -> None:
    with pytest.raises(TypeError, match="staleness: without an optimizer"):
        integration.attach(network(0), staleness=2, session=session)
    with pytest.raises(TypeError, match="optimizer_params: without an optimizer"):
        integration.attach(network(0), optimizer_params={"wd": 0.1}, session=session)
    assert session.calls.list_parameters() == []


def test_remote_module_is_not_copied(session: Session) -> None:
    remote = integration.attach(network(0), session=session)
    with pytest.raises(TypeError, match=r"attach\(\) that where it is used"):
        pickle.dumps(remote)
    with pytest.raises(TypeError, match=r"attach\(\) that where it is used"):
        copy.deepcopy(remote)


def test_parameters_deleted_are_given_first_values_again(session: Session) -> None:
    integration.attach(network(0), session=session)
    session.delete([*session.parameters().keys()])
    module = network(1)
    before = values(module)
    integration.attach(module, session=session)
    torch.testing.assert_close(values(module), before, rtol=0, atol=0)
