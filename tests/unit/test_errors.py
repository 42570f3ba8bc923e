"""The table of errors, and the page that documents it."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest

from paramd import errors
from paramd.errors import ParamdError
from paramd.wire.status import MAX_DETAIL_BYTES, code_of, decode_error, encode_error

PAGE = (Path(__file__).parents[2] / "docs" / "errors.md").read_text()
CLASSES = [
    each
    for each in vars(errors).values()
    if isinstance(each, type) and issubclass(each, ParamdError) and each is not ParamdError
]
WITH_REASON = [each for each in CLASSES if each.reason]


def test_each_class_is_exported() -> None:
    assert {each.__name__ for each in CLASSES} <= set(errors.__all__)


def test_reasons_are_unique() -> None:
    assert len({each.reason for each in WITH_REASON}) == len(WITH_REASON)


@pytest.mark.parametrize("cls", WITH_REASON)
def test_an_error_survives_the_wire(cls: type[ParamdError]) -> None:
    sent = cls("parameter 'wéight' is wrong", parameter="wéight")
    came = decode_error(code_of(sent), encode_error(sent), "")
    assert type(came) is cls
    assert str(came) == str(sent)
    assert came.parameter == "wéight"


@pytest.mark.parametrize("cls", WITH_REASON)
def test_each_reason_is_documented(cls: type[ParamdError]) -> None:
    line = next(line for line in PAGE.splitlines() if line.startswith(f"| `{cls.reason}` |"))
    assert f"`{cls.__name__}`" in line
    assert code_of(cls()).name in line


def test_a_detail_stays_under_its_limit() -> None:
    detail = encode_error(errors.ShapeMismatchError("ü" * 5000, parameter="ü" * 5000))
    assert len(detail) <= MAX_DETAIL_BYTES


def test_an_unknown_reason_falls_back_on_the_status() -> None:
    detail = encode_error(errors.ShapeMismatchError("text")).replace(
        b"SHAPE_MISMATCH", b"SOMETHING_ELSE"
    )
    assert isinstance(
        decode_error(grpc.StatusCode.UNAVAILABLE, detail, ""), errors.ServerUnavailable
    )


def test_a_key_error_shows_its_message_as_it_is() -> None:
    assert str(errors.ParameterNotFoundError("no 'w'")) == "no 'w'"
