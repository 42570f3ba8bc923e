"""`Parameter.data()` of a parameter that is read in place: right without a round trip."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import paramd
from paramd import cpu
from paramd.errors import ContextWithoutCopyError, NotInitializedError, WrongStorageTypeError
from paramd.session import Session
from tests.support.server_process import ServerProcess
from tests.system.local.conftest import halted

pytestmark = pytest.mark.real_devices


@pytest.fixture
def weight(in_place: Session) -> paramd.Parameter:
    """A parameter with two copies, in a session that reads in place."""
    return made(in_place, ctx=[cpu(0), cpu(1)])


@pytest.fixture
def others(calling: Session, weight: paramd.Parameter) -> Iterator[paramd.Parameter]:
    """The same parameter in a session that makes calls; it is deleted in the end."""
    parameter = paramd.Parameter("w", shape=(3, 2), session=calling)
    yield parameter
    calling.calls.delete(["w"])


def made(session: Session, *, ctx: Any = None, name: str = "w") -> paramd.Parameter:
    parameter = paramd.Parameter(name, shape=(3, 2), session=session)
    parameter.initialize(init="ones", ctx=ctx)
    return parameter


@pytest.mark.usefixtures("others")
def test_a_value_is_read_while_the_server_stands_still(
    server: ServerProcess, weight: paramd.Parameter
) -> None:
    for context in (None, cpu(0), cpu(1)):
        weight.data(context).asnumpy()
    with cpu(1):
        weight.data()
    with halted(server):
        for context in (None, cpu(0), cpu(1)):
            value = weight.data(context)
            assert value.context == (context or cpu(0))
            assert value.shape == (3, 2)
            assert value.dtype == np.dtype("f4")
            assert value.asnumpy().tolist() == [[1, 1]] * 3
            assert value[1:].asnumpy().tolist() == [[1, 1]] * 2
        with cpu(1):
            assert weight.data().context == cpu(1)


def test_what_others_change_is_seen(weight: paramd.Parameter, others: paramd.Parameter) -> None:
    before = weight.data(cpu(1))
    assert before.asnumpy().sum() == 6
    others.data(cpu(1))[:] = 2
    assert weight.data(cpu(1)).asnumpy().sum() == 12
    others.cast("float64")
    assert weight.data(cpu(1)).dtype == before.dtype == np.float64
    assert weight.data(cpu(1)).asnumpy().dtype == np.float64
    others.reset_ctx([cpu(1), cpu(2)])
    assert weight.data(cpu(2)).context == cpu(2)
    with pytest.raises(ContextWithoutCopyError):
        weight.data(cpu(0))
    others.reset_ctx(cpu(3))
    assert weight.data().context == cpu(3)


def test_a_deleted_parameter_and_one_that_comes_after_it(
    calling: Session, in_place: Session, weight: paramd.Parameter
) -> None:
    assert weight.data(cpu(0)).asnumpy().sum() == 6
    calling.calls.delete(["w"])
    with pytest.raises(paramd.errors.ParameterNotFoundError):
        weight.data(cpu(0))
    again = paramd.Parameter("w", shape=(4,), session=calling)
    with pytest.raises(paramd.errors.ParamdError):
        weight.data()
    again.initialize(init="zeros")
    assert weight.data().shape == (4,)
    assert weight.data().asnumpy().tolist() == [0] * 4
    in_place.calls.delete(["w"])


@pytest.mark.usefixtures("others")
def test_what_cannot_be_read_is_refused_as_ever(
    in_place: Session, weight: paramd.Parameter
) -> None:
    assert weight.data(cpu(1)).asnumpy().sum() == 6
    context: Any = "cpu(1)"
    with pytest.raises(TypeError, match="expected a context"):
        weight.data(context)
    with pytest.raises(ContextWithoutCopyError):
        weight.data(cpu(5))
    with pytest.raises(NotInitializedError):
        paramd.Parameter("declared only", shape=(2,), session=in_place).data()
    table = paramd.Parameter("rows only", shape=(3, 2), stype="row_sparse", session=in_place)
    table.initialize(init="ones")
    assert table.row_sparse_data(np.arange(3)).asnumpy().sum() == 6
    with pytest.raises(WrongStorageTypeError, match="row_sparse_data"):
        table.data()
