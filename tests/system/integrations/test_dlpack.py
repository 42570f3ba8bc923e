"""Arrays of PyTorch, JAX and CuPy as values of parameters, and values as theirs."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from paramd import Parameter, ParameterDict, Session, Trainer, nd
from paramd.errors import (
    DTypeMismatchError,
    InvalidArgumentError,
    ShapeMismatchError,
)

torch = pytest.importorskip("torch", reason="PyTorch is not installed: make frameworks")

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = ["float32", "float64", "float16", "bfloat16", "uint8", "int8", "int32", "int64", "bool"]


@pytest.fixture
def params(session: Session) -> ParameterDict:
    """A dense 'w' and a row_sparse 'e', both of shape (4, 3) and zero."""
    params = ParameterDict(session=session)
    params.get("w", shape=(4, 3))
    params.get("e", shape=(4, 3), stype="row_sparse", grad_stype="row_sparse")
    params.initialize("zeros")
    return params


def ramp(dtype: str = "float32", *, device: str = "cpu") -> Any:
    return torch.arange(12, device=device).reshape(4, 3).to(getattr(torch, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_tensors_are_set_and_values_become_tensors(session: Session, dtype: str) -> None:
    weight = Parameter("w", shape=(4, 3), dtype=dtype, session=session)
    weight.initialize("zeros")
    weight.set_data(ramp(dtype))
    for array in (weight.data(), nd.array(ramp(dtype), dtype=dtype)):
        tensor = torch.from_dlpack(array)
        assert tensor.dtype == getattr(torch, dtype)
        assert torch.equal(tensor, ramp(dtype))


@pytest.mark.parametrize(
    "tensor",
    [
        ramp().t().contiguous().t(),
        ramp("float64"),
        ramp().requires_grad_(),
        torch.nn.Parameter(ramp("bfloat16")),
        torch.arange(24.0).reshape(4, 6)[:, ::2] / 2,
        torch.complex(torch.zeros(4, 3), -ramp()).conj().imag,
    ],
    ids=["transposed", "wider", "requires_grad", "parameter", "strided", "negated lazily"],
)
def test_any_tensor_is_a_value(params: ParameterDict, tensor: Any) -> None:
    params["w"].set_data(tensor)
    np.testing.assert_array_equal(params["w"].data().asnumpy(), ramp().numpy())
    params["w"].grad()[1:3] = tensor[1:3]
    np.testing.assert_array_equal(params["w"].grad()[1:3].asnumpy(), ramp().numpy()[1:3])


def test_what_no_tensor_of_numbers_is_changes_nothing(params: ParameterDict) -> None:
    for wrong in (ramp().to_sparse(), torch.ones(4, 3, device="meta"), torch.ones(4, 3) * 1j):
        with pytest.raises(TypeError, match="'w'"):
            params["w"].set_data(wrong)
    with pytest.raises(TypeError, match="'e'"):
        params["e"].row_sparse_data(torch.ones(2, device="meta"))
    assert not params["w"].data().asnumpy().any()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rows_and_ids_are_tensors(params: ParameterDict, dtype: str) -> None:
    ids, rows = torch.tensor([3, 1]), ramp(dtype)[:2]
    params["e"].set_row_sparse_data(ids, rows)
    params.push({"e": (ids.to(torch.int32), rows)})
    expected = np.array([[3, 4, 5], [0, 1, 2]], np.float32)
    read: list[Any] = [params["e"].row_sparse_data(ids), params["e"].grad()]
    for found in read:
        assert found.indices.asnumpy().tolist() == [1, 3]
        np.testing.assert_array_equal(torch.from_dlpack(found.data).numpy(), expected)


def test_local_values_are_shared_with_tensors() -> None:
    for dtype in ("float32", "bfloat16"):
        array = nd.zeros((2, 3), dtype=dtype)
        tensor = torch.from_dlpack(array[1])
        tensor += 2
        assert array.asnumpy().tolist() == [[0, 0, 0], [2, 2, 2]]
        assert torch.from_dlpack(array[:, ::-1]).tolist() == array.asnumpy()[:, ::-1].tolist()


def test_tensors_are_received_into(params: ParameterDict) -> None:
    params["w"].set_data(ramp())
    contiguous, strided = torch.zeros(4, 3), torch.zeros(4, 6)[:, ::2]
    trained = torch.zeros(4, 3, requires_grad=True)
    before = contiguous.data_ptr()
    for tensor in (contiguous, strided, trained):
        assert params.pull(out={"w": tensor})["w"] is tensor
        assert torch.equal(tensor.detach(), ramp())
    assert contiguous.data_ptr() == before


def test_a_bfloat16_tensor_is_received_into(session: Session) -> None:
    params = ParameterDict(session=session)
    params.get("b", shape=(4, 3), dtype="bfloat16")
    params.initialize("ones")
    tensor = torch.zeros(4, 3, dtype=torch.bfloat16)
    params.pull(out={"b": tensor})
    assert torch.equal(tensor, torch.ones_like(tensor))


def test_tensors_that_do_not_fit_are_refused(params: ParameterDict) -> None:
    with pytest.raises(ShapeMismatchError, match=r"'w'.*\(4, 3\).*\(3, 4\)"):
        params.pull(out={"w": torch.zeros(3, 4)})
    with pytest.raises(DTypeMismatchError, match=r"'w'.*float32.*float64"):
        params.pull(out={"w": torch.zeros(4, 3, dtype=torch.float64)})
    with pytest.raises(InvalidArgumentError, match=r"'w'.*RemoteNDArray.*cannot be written"):
        params.pull(out={"w": params["w"].data()})


@pytest.mark.parametrize("buffers", [False, True], ids=["gradients", "gradient buffers"])
def test_a_step_brings_values_into_tensors(params: ParameterDict, buffers: bool) -> None:
    trainer = Trainer([params["w"]], "sgd", {"learning_rate": 1.0})
    tensor = torch.ones(4, 3)
    if buffers:
        params.push({"w": ramp()})
    grads = None if buffers else {"w": ramp()}
    values = trainer.step(1, grads=grads, pull=True, out={"w": tensor})
    assert values is not None
    assert values["w"] is tensor
    assert torch.equal(tensor, -ramp())


def test_a_step_into_what_cannot_be_written_is_not_made(params: ParameterDict) -> None:
    trainer = Trainer([params["w"]], "sgd", {"learning_rate": 1.0})
    with pytest.raises(InvalidArgumentError, match="'w'"):
        trainer.step(1, grads={"w": ramp()}, pull=True, out={"w": [0.0]})
    assert not params["w"].data().asnumpy().any()


def test_jax_arrays_are_values_both_ways(params: ParameterDict) -> None:
    jax = pytest.importorskip("jax", reason="JAX is not installed: make frameworks")
    jnp = jax.numpy
    for dtype in (jnp.float32, jnp.bfloat16):
        values = jnp.arange(12, dtype=dtype).reshape(4, 3)
        params["w"].set_data(values)
        params.push({"w": values, "e": (jnp.array([2]), values[:1])})
        np.testing.assert_array_equal(params["w"].data().asnumpy(), ramp().numpy())
        np.testing.assert_array_equal(params["w"].grad().asnumpy(), ramp().numpy())
        array = nd.array(values, dtype=np.dtype(dtype).name)
        for source in (array, array[:, 1]):
            exported = jax.dlpack.from_dlpack(source.copy())
            assert exported.dtype == dtype
            np.testing.assert_array_equal(np.asarray(exported), source.asnumpy())
    with pytest.raises(InvalidArgumentError, match=r"'w'.*cannot be written to"):
        params.pull(out={"w": jnp.zeros((4, 3))})


# With a GPU.


@pytest.fixture
def cuda() -> str:
    if not torch.cuda.is_available():
        pytest.skip("PyTorch has no GPU here")
    return "cuda"


@pytest.fixture
def cupy() -> Any:
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed")
    try:
        cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as err:
        pytest.skip(f"CuPy has no GPU here: {err}")
    return cupy


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_cuda_tensors_are_values_both_ways(session: Session, cuda: str, dtype: str) -> None:
    params = ParameterDict(session=session)
    params.get("w", shape=(4, 3), dtype=dtype)
    params.initialize("zeros")
    params["w"].set_data(ramp(dtype, device=cuda))
    assert torch.equal(torch.from_dlpack(params["w"].data()), ramp(dtype))
    tensor = torch.zeros(4, 3, dtype=getattr(torch, dtype), device=cuda)
    assert params.pull(out={"w": tensor})["w"] is tensor
    assert torch.equal(tensor, ramp(dtype, device=cuda))


@pytest.mark.gpu
def test_work_on_the_gpu_is_waited_for(params: ParameterDict, cuda: str) -> None:
    with torch.cuda.stream(torch.cuda.Stream()):
        value = torch.ones(4096, 4096, device=cuda)
        for _ in range(20):
            value = value @ value / 4096
        params["w"].set_data(value[:4, :3])
    assert (params["w"].data().asnumpy() == 1).all()


@pytest.mark.gpu
def test_rows_and_ids_on_the_gpu(params: ParameterDict, cuda: str) -> None:
    ids = torch.tensor([3, 1], device=cuda)
    params["e"].set_row_sparse_data(ids, ramp(device=cuda)[:2].requires_grad_())
    params.push({"e": (ids, ramp(device=cuda)[:2])})
    read: list[Any] = [params["e"].row_sparse_data(ids), params["e"].grad()]
    for found in read:
        assert found.data.asnumpy().tolist() == [[3, 4, 5], [0, 1, 2]]


@pytest.mark.gpu
def test_page_locked_tensors_are_read_where_they_are(params: ParameterDict, cuda: str) -> None:
    pinned = ramp().pin_memory()
    assert pinned.__dlpack_device__()[0] == 3
    params["w"].set_data(pinned)
    np.testing.assert_array_equal(params["w"].data().asnumpy(), ramp().numpy())
    out = torch.zeros(4, 3).pin_memory()
    params.pull(out={"w": out})
    assert torch.equal(out, ramp())


@pytest.mark.gpu
def test_cupy_arrays_are_values_both_ways(params: ParameterDict, cupy: Any) -> None:
    values = cupy.asarray(ramp().numpy())
    for each in (values, cupy.asfortranarray(values), values.astype("f8")):
        params["w"].set_data(cupy.zeros((4, 3)))
        params["w"].set_data(each)
        np.testing.assert_array_equal(params["w"].data().asnumpy(), ramp().numpy())
    params["e"].set_row_sparse_data(cupy.array([3, 1]), values[:2])
    assert params["e"].row_sparse_data(cupy.array([3])).data.asnumpy().tolist() == [[0, 1, 2]]
    for out in (cupy.zeros((4, 3), "f4"), cupy.zeros((4, 3), "f4", order="F")):
        assert params.pull(out={"w": out})["w"] is out
        np.testing.assert_array_equal(out.get(), ramp().numpy())
    with pytest.raises(InvalidArgumentError, match=r"'w'.*contiguous"):
        params.pull(out={"w": cupy.zeros((4, 6), "f4")[:, ::2]})
    np.testing.assert_array_equal(cupy.asarray(np.asarray(nd.array(values))).get(), values.get())
