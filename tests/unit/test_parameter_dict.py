"""`ParameterDict` without a server: the mapping, `get`, and how many calls the bulk calls make."""

from __future__ import annotations

import inspect
import logging
from typing import Any

import numpy as np
import pytest

from paramd import Constant, Parameter, ParameterDict, cpu, init, nd
from paramd.files import RowSparseRows, load_arrays, save_arrays
from paramd.spec import InitializerSpec
from tests.support.fake_session import FakeSession


@pytest.fixture
def fake() -> FakeSession:
    return FakeSession()


@pytest.fixture
def params(fake: FakeSession) -> ParameterDict:
    found = ParameterDict("net_", session=fake.session)
    for index in range(20):
        found.get(f"w{index}", shape=(2, 3))
    return found


def calls_of(fake: FakeSession) -> list[str]:
    return [name for name, _ in fake.calls.log]


def test_signatures_are_those_of_mxnet() -> None:
    expected = {
        "initialize": ["init", "ctx", "verbose", "force_reinit", "device"],
        "save": ["filename", "strip_prefix"],
        "load": [
            "filename",
            "ctx",
            "allow_missing",
            "ignore_extra",
            "restore_prefix",
            "cast_dtype",
            "dtype_source",
            "device",
        ],
        "load_dict": [
            "param_dict",
            "ctx",
            "allow_missing",
            "ignore_extra",
            "restore_prefix",
            "filename",
            "cast_dtype",
            "dtype_source",
            "device",
        ],
    }
    for name, arguments in expected.items():
        signature = inspect.signature(getattr(ParameterDict, name))
        assert list(signature.parameters)[1:] == arguments


def test_mapping_keeps_order_and_prefix() -> None:
    params = ParameterDict("net_")
    one, two = params.get("b"), params.get("a")
    assert list(params) == list(params.keys()) == ["net_b", "net_a"]
    assert list(params.values()) == [one, two]
    assert list(params.items()) == [("net_b", one), ("net_a", two)]
    assert len(params) == 2
    assert "net_b" in params
    assert "b" not in params
    assert params["net_a"] is two
    assert params.prefix == "net_"
    with pytest.raises(KeyError):
        params["a"]
    with pytest.raises(AttributeError):
        params.prefix = "x"  # type: ignore[misc]


def test_repr() -> None:
    params = ParameterDict("net_")
    assert repr(params) == "net_ (\n\n)"
    params.get("w", shape=(2,))
    params.get_constant("c", [1])
    assert repr(params) == (
        "net_ (\n"
        "  Parameter net_w (shape=(2,), dtype=<class 'numpy.float32'>)\n"
        "  Constant net_c (shape=(1,), dtype=<class 'numpy.float32'>)\n"
        ")"
    )
    assert repr(ParameterDict()) == "(\n\n)"


def test_repr_asks_once(fake: FakeSession, params: ParameterDict) -> None:
    params.zero_grad()
    fake.calls.log.clear()
    assert "net_w19" in repr(params)
    assert calls_of(fake) == ["describe"]


def test_get_merges_shapes() -> None:
    params = ParameterDict()
    weight = params.get("w", shape=(0, 3))
    assert params.get("w", shape=(2, -1)) is weight
    assert weight.shape == (2, 3)
    assert params.get("w", shape=None).shape == (2, 3)
    vector = params.get("v")
    params.get("v", shape=5)
    assert vector.shape == (5,)
    params.get("v", shape=(5,))


@pytest.mark.parametrize(
    ("first", "second", "attribute"),
    [
        ({"shape": (2,)}, {"shape": (3,)}, "shape"),
        ({"shape": (2,)}, {"shape": (2, 1)}, "shape"),
        ({"dtype": "float32"}, {"dtype": "float16"}, "dtype"),
        ({"lr_mult": 1.0}, {"lr_mult": 2.0}, "lr_mult"),
        ({}, {"wd_mult": 2.0}, "wd_mult"),
        ({"grad_req": "add"}, {"grad_req": "write"}, "grad_req"),
        ({"init": "zeros"}, {"init": "ones"}, "init"),
        ({"init": init.Uniform(0.5)}, {"init": init.Uniform(0.25)}, "init"),
        ({}, {"stype": "row_sparse"}, "stype"),
        ({}, {"grad_stype": "row_sparse"}, "grad_stype"),
        ({}, {"allow_deferred_init": True}, "allow_deferred_init"),
    ],
)
def test_get_refuses_what_differs(
    first: dict[str, Any], second: dict[str, Any], attribute: str
) -> None:
    params = ParameterDict("net_")
    weight = params.get("w", **first)
    before = repr(weight)
    with pytest.raises(AssertionError, match=f"net_w.*'{attribute}'"):
        params.get("w", **second)
    assert repr(weight) == before


def test_get_takes_other_spellings_and_none() -> None:
    params = ParameterDict()
    weight = params.get("w", dtype="float32", init=init.Uniform(0.5))
    assert params.get("w", dtype=np.float32, init=init.Uniform(0.5)) is weight
    assert params.get("w", dtype=None, init=None, lr_mult=None) is weight
    bare = params.get("v")
    params.get("v", init="ones")
    assert bare.init == "ones"


def test_get_refuses_unknown_arguments() -> None:
    params = ParameterDict()
    with pytest.raises(TypeError):
        params.get("w", bogus=1)
    assert len(params) == 0
    params.get("w")
    with pytest.raises(TypeError, match="bogus"):
        params.get("w", bogus=1)


def test_get_states_exactly_what_was_given(fake: FakeSession) -> None:
    params = ParameterDict(session=fake.session)
    params.get("w", shape=(2,), lr_mult=1.0, init=None)
    params.zero_grad()
    ((_, stated),) = fake.calls.declarations
    assert stated == {"shape", "lr_mult"}


def test_shared_gives_the_same_object() -> None:
    source = ParameterDict("net_")
    weight = source.get("w", shape=(2,))
    other = ParameterDict("net_", shared=source)
    assert "net_w" not in other
    assert other.get("w") is weight
    assert list(other) == ["net_w"]
    with pytest.raises(AssertionError):
        other.get("w", shape=(3,))


def test_update_takes_all_or_nothing() -> None:
    one, other = ParameterDict("a_"), ParameterDict("a_")
    weight = one.get("w")
    new = other.get("new")
    other.get("w")
    with pytest.raises(AssertionError, match="a_w"):
        one.update(other)
    assert list(one) == ["a_w"]
    one.update({"a_w": weight, "a_new": new})
    assert one["a_new"] is new


def test_bulk_calls_are_one_round_trip_each(fake: FakeSession, params: ParameterDict) -> None:
    params.zero_grad()
    assert calls_of(fake) == ["declare", "zero_grad"]
    fake.calls.log.clear()
    params.initialize()
    assert calls_of(fake) == ["describe", "initialize"]
    for call, expected in (
        (lambda: params.reset_ctx([cpu(0), cpu(1)]), "reset_ctx"),
        (lambda: params.setattr("grad_req", "add"), "set grad_req"),
        (lambda: params.setattr("lr_mult", 0.5), "set lr_mult"),
        (lambda: params.setattr("dtype", "float16"), "set dtype"),
        (lambda: params.setattr("init", init.One()), "set init"),
        (params.list_ctx, "describe"),
        (lambda: params.push({name: np.ones((2, 3)) for name in params}), "set_grad"),
        (lambda: params.set_data({name: np.ones((2, 3)) for name in params}), "set_data"),
    ):
        fake.calls.log.clear()
        call()
        assert fake.calls.log == [(expected, list(params))]
    assert params["net_w0"].dtype == "float16"


def test_initialize_declares_initializes_and_sends_once(fake: FakeSession) -> None:
    params = ParameterDict(session=fake.session)
    for index in range(5):
        params.get(f"w{index}", shape=(2,))
        params.get_constant(f"c{index}", [index])
    params.initialize()
    assert calls_of(fake) == ["declare", "initialize", "set_data"]
    assert [write.name for write in fake.calls.writes] == [f"c{index}" for index in range(5)]


def test_second_initialize_warns_for_each(fake: FakeSession, params: ParameterDict) -> None:
    params.initialize()
    with pytest.warns(UserWarning, match="already initialized") as caught:
        params.initialize()
    assert len(caught) == len(params)
    assert caught[0].filename == __file__


def test_empty_dict_needs_no_session() -> None:
    params = ParameterDict()
    params.zero_grad()
    params.initialize()
    params.reset_ctx(cpu(0))
    params.setattr("lr_mult", 2.0)
    assert params.list_ctx() == []
    assert params.pull() == {}
    params.push({})


def test_setattr_without_server_checks_all_first() -> None:
    params = ParameterDict()
    params.get("a", shape=(0, 3))
    params.get("b", shape=(4, 0))
    with pytest.raises(AssertionError):
        params.setattr("shape", (2, 3))
    assert params["a"].shape == (0, 3)
    with pytest.raises(AssertionError):
        params.setattr("grad_req", "bogus")
    params.setattr("lr_mult", 3)
    assert [each.lr_mult for each in params.values()] == [3.0, 3.0]
    params.setattr("remark", "mine")
    assert params["b"].remark == "mine"  # type: ignore[attr-defined]


def test_setattr_of_grad_req_warns_of_constants() -> None:
    params = ParameterDict()
    params.get("w")
    params.get_constant("c", [1])
    with pytest.warns(UserWarning, match='"c"'):
        params.setattr("grad_req", "add")
    assert [each.grad_req for each in params.values()] == ["add", "null"]


@pytest.mark.parametrize("call", ["push", "set_data", "pull"])
def test_unknown_names_are_named(fake: FakeSession, params: ParameterDict, call: str) -> None:
    with pytest.raises(KeyError, match="w0"):
        getattr(params, call)({"w0": np.ones((2, 3))})
    assert fake.calls.log == []


def test_pushed_rows_of_one_id_add_up(fake: FakeSession) -> None:
    params = ParameterDict(session=fake.session)
    params.get("e", shape=(10, 2), stype="row_sparse", grad_stype="row_sparse", dtype="int64")
    params.initialize("zeros")
    big = 2**62
    rows = np.array([[1, big], [2, 3], [4, -big], [8, 1]])
    params.push({"e": ([7, 3, 7, 7], rows)}, ctx=cpu(0))
    (write,) = fake.calls.writes
    assert isinstance(write.value, RowSparseRows)
    assert (write.mode, write.context) == ("by_grad_req", cpu(0))
    np.testing.assert_array_equal(write.value.ids, [3, 7])
    np.testing.assert_array_equal(write.value.rows, [[2, 3], [13, 1]])
    assert write.value.shape == (10, 2)


@pytest.mark.parametrize(
    ("pushed", "error"),
    [
        (([10], np.ones((1, 2))), IndexError),
        (([-1], np.ones((1, 2))), IndexError),
        (([0.5], np.ones((1, 2))), IndexError),
        (([1, 2], np.ones((1, 2))), AssertionError),
        (([1], np.ones((1, 3))), AssertionError),
        (([1], np.ones((1, 2)), 3), TypeError),
        ("abc", TypeError),
        (None, TypeError),
    ],
)
def test_wrong_rows_are_refused(fake: FakeSession, pushed: Any, error: type[Exception]) -> None:
    params = ParameterDict(session=fake.session)
    params.get("e", shape=(10, 2), grad_stype="row_sparse")
    params.initialize("zeros")
    with pytest.raises(error, match="'e'"):
        params.push({"e": pushed})
    assert fake.calls.writes == []


def test_values_may_be_anything_like_an_array(fake: FakeSession) -> None:
    class Foreign:
        def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray[Any, Any]:
            return np.array([1, 2], np.int16)

    class Exported:
        def __dlpack__(self, **options: Any) -> Any:
            return np.array([1, 2], np.float64).__dlpack__()

        def __dlpack_device__(self) -> tuple[int, int]:
            return (1, 0)

    class Tracked(Foreign):
        """As PyTorch's tensors are, which give nothing away while they require a gradient."""

        requires_grad = True

        def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray[Any, Any]:
            raise RuntimeError("call detach() first")

        def detach(self) -> Foreign:
            return Foreign()

    params = ParameterDict(session=fake.session)
    params.get("w", shape=(2,))
    params.initialize()
    rows = nd.sparse.row_sparse_array(([2.0], [1]), shape=(2,))
    for value, expected in (
        ([1, 2], [1, 2]),
        (np.array([1, 2], ">f8"), [1, 2]),
        (nd.array([1, 2]), [1, 2]),
        (rows, [0, 2]),
        (Foreign(), [1, 2]),
        (Exported(), [1, 2]),
        (Tracked(), [1, 2]),
        (np.array([1, 2], np.uint64), [1, 2]),
    ):
        params.set_data({"w": value})
        np.testing.assert_array_equal(np.asarray(fake.calls.writes[-1].value), expected)


def test_parameters_of_two_sessions_are_refused_together(fake: FakeSession) -> None:
    params = ParameterDict(session=fake.session)
    params.get("a")
    params.get("b", session=FakeSession().session)
    with pytest.raises(ValueError, match="'a' and 'b'"):
        params.zero_grad()


def test_files_are_checked_before_anything_is_asked(tmp_path: Any) -> None:
    params = ParameterDict("net_")
    params.get("w")
    with pytest.raises(ValueError, match="suffix"):
        params.save(tmp_path / "x.bin")
    with pytest.raises(AssertionError, match=r"'other_'.*'net_w'"):
        params.load(tmp_path / "x.params", restore_prefix="other_")
    with pytest.raises(FileNotFoundError):
        params.load(tmp_path / "x.params")
    with pytest.raises(AssertionError, match="bogus"):
        params.load(tmp_path / "x.params", cast_dtype=True, dtype_source="bogus")
    save_arrays(tmp_path / "list.params", {"0": np.ones(2)}, named=False)
    with pytest.raises(TypeError, match=r"list\.params.*without names"):
        params.load(tmp_path / "list.params")


def test_empty_dict_is_saved_as_an_empty_file(tmp_path: Any) -> None:
    ParameterDict().save(tmp_path / "x.params")
    assert load_arrays(tmp_path / "x.params") == {}


def test_attached_get_compares_with_what_is_now(fake: FakeSession) -> None:
    params = ParameterDict(session=fake.session)
    weight = params.get("w", init="zeros")
    params.zero_grad()
    weight.lr_mult = 3.0
    assert params.get("w", lr_mult=3.0) is weight
    with pytest.raises(AssertionError, match="lr_mult"):
        params.get("w", lr_mult=1.0)
    params.get("w", shape=(2,))
    assert fake.calls.infos["w"].current.shape == (2,)
    assert fake.calls.infos["w"].current.init == InitializerSpec("zero")


def test_proxies_of_what_a_server_holds(fake: FakeSession) -> None:
    mine = ParameterDict("net_", session=fake.session)
    mine.get("w", shape=(2,), dtype="float16")
    mine.get_constant("c", [1])
    mine.zero_grad()
    fake.calls.log.clear()
    found = ParameterDict._from_infos(fake.session, "net_", fake.calls.infos.values())
    assert [type(each) for each in found.values()] == [Parameter, Constant]
    assert found["net_w"].dtype is np.float16
    found.zero_grad()
    assert calls_of(fake) == ["describe", "zero_grad"]


def test_verbose_logs_row_sparse_without_fetching(
    fake: FakeSession, caplog: pytest.LogCaptureFixture
) -> None:
    params = ParameterDict(session=fake.session)
    params.get("table", shape=(4, 2), stype="row_sparse")
    with caplog.at_level(logging.INFO):
        params.initialize(init.One(), verbose=True)
    assert "Initialized table as One()" in caplog.text
