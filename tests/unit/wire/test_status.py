"""The error table: every class survives, and every detail is small."""

from __future__ import annotations

import inspect

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paramd import errors
from paramd.errors import ParamdError
from paramd.v1 import error_pb2
from paramd.wire.status import MAX_DETAIL_BYTES, code_of, decode_error, encode_error

CLASSES = [
    cls
    for _, cls in inspect.getmembers(errors, inspect.isclass)
    if issubclass(cls, ParamdError) and cls.reason
]


def test_reasons_are_unique() -> None:
    assert len({cls.reason for cls in CLASSES}) == len(CLASSES) > 30


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_class_crosses_the_wire(cls: type[ParamdError]) -> None:
    error = cls("what happened", parameter="net_weight")
    code = code_of(error)
    assert code not in (grpc.StatusCode.OK, grpc.StatusCode.UNKNOWN)
    found = decode_error(code, encode_error(error), "")
    assert type(found) is cls
    assert str(found) == "what happened"
    assert found.parameter == "net_weight"


def test_only_the_internal_error_travels_as_internal() -> None:
    for cls in CLASSES:
        internal = code_of(cls("x")) is grpc.StatusCode.INTERNAL
        assert internal == (cls is errors.InternalServerError), cls


@given(text=st.text(max_size=4000), parameter=st.text(max_size=3000))
def test_details_are_small_and_readable(text: str, parameter: str) -> None:
    detail = encode_error(errors.InvalidArgumentError(text * 3, parameter=parameter))
    assert len(detail) <= MAX_DETAIL_BYTES
    parsed = error_pb2.ErrorDetail.FromString(detail)
    assert parsed.reason == "INVALID_ARGUMENT"


def test_an_unknown_reason_falls_back_on_the_code() -> None:
    detail = error_pb2.ErrorDetail(reason="FROM_THE_FUTURE", message="new").SerializeToString()
    found = decode_error(grpc.StatusCode.UNAVAILABLE, detail, "")
    assert isinstance(found, errors.ServerUnavailable)
    assert str(found) == "new"


@pytest.mark.parametrize("code", list(grpc.StatusCode))
def test_every_code_without_a_detail_is_an_error_of_ours(code: grpc.StatusCode) -> None:
    assert isinstance(decode_error(code, None, "text"), ParamdError)


def test_a_detail_that_is_no_message_is_an_error_of_ours() -> None:
    found = decode_error(grpc.StatusCode.NOT_FOUND, b"\xff\xff\xff", "text")
    assert isinstance(found, ParamdError)
