"""paramd has every member that MXNet has, with the same parameters in the same order."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

import paramd
from tests.conformance.oracle import Oracle
from tests.conformance.reference_members import OTHER_MEMBERS, UNLIKE
from tests.conformance.signatures import describe_members


@pytest.fixture(scope="module")
def mxnet(oracle: Oracle) -> dict[str, Any]:
    return oracle.inspect()


@pytest.fixture(scope="module")
def ours() -> dict[str, Any]:
    described: dict[str, Any] = describe_members(paramd.gluon, paramd)
    return described


def test_mxnet_was_inspected(mxnet: dict[str, Any]) -> None:
    assert len(mxnet["members"]["Parameter"]) > 20
    assert {"Mixed", "Load", "Bilinear"} <= {n.split(".")[-1] for n in mxnet["members"]}


def test_no_member_is_missing(mxnet: dict[str, Any], ours: dict[str, Any]) -> None:
    missing = [
        f"{cls}.{member}"
        for cls, members in mxnet["members"].items()
        for member in members
        if member not in ours["members"].get(cls, {}) and f"{cls}.{member}" not in UNLIKE
    ]
    missing += [name for name in mxnet["functions"] if name not in ours["functions"]]
    missing += [name for name in mxnet["exported"] if not hasattr(paramd.gluon, name)]
    assert missing == []


def test_signatures_begin_with_mxnets(mxnet: dict[str, Any], ours: dict[str, Any]) -> None:
    wrong = {}
    pairs = [(n, f, ours["functions"].get(n)) for n, f in mxnet["functions"].items()]
    for cls, members in mxnet["members"].items():
        for member, theirs in members.items():
            pairs.append((f"{cls}.{member}", theirs, ours["members"].get(cls, {}).get(member)))
    for name, theirs, mine in pairs:
        if mine is None or name in UNLIKE:
            continue
        problem = _signature_problem(theirs, mine)
        if problem:
            wrong[name] = problem
    assert wrong == {}


def _signature_problem(theirs: dict[str, Any], mine: dict[str, Any]) -> str:
    if theirs["kind"] == "attribute":
        return ""
    if theirs["kind"] != mine["kind"]:
        return f"a {theirs['kind']} there, a {mine['kind']} here"
    if theirs["kind"] == "property":
        return "" if mine["settable"] >= theirs["settable"] else "cannot be set"
    wanted = [p for p in theirs["parameters"] if "VAR_" not in p[1]]
    kinds = {p[0]: p for p in mine["parameters"]}
    positional = [p[0] for p in mine["parameters"] if "POSITIONAL" in p[1]]
    if positional[: len(wanted)] != [p[0] for p in wanted]:
        return f"{[p[0] for p in wanted]} there, {positional} here"
    for name, _, default in wanted:
        if kinds[name][2] != default:
            return f"{name}={default} there, {name}={kinds[name][2]} here"
    extra = [p[0] for p in mine["parameters"] if p[2] == "required" and "VAR_" not in p[1]]
    if not set(extra) <= {p[0] for p in wanted}:
        return f"needs {extra}"
    return ""


def test_unlike_members_are_really_unlike(mxnet: dict[str, Any], ours: dict[str, Any]) -> None:
    for name in UNLIKE:
        cls, _, member = name.rpartition(".")
        theirs = mxnet["members"].get(cls, mxnet["functions"]).get(member)
        mine = ours["members"].get(cls, ours["functions"]).get(member)
        assert theirs is not None, f"{name} is not in MXNet"
        assert mine is None or _signature_problem(theirs, mine), f"{name} is alike now"


@pytest.mark.parametrize(("owner", "member", "arguments", "source"), OTHER_MEMBERS)
def test_members_of_other_versions_exist(
    owner: str, member: str, arguments: tuple[str, ...], source: str
) -> None:
    value = inspect.getattr_static(getattr(paramd, owner), member)
    if isinstance(value, property):
        assert arguments == ()
        return
    signature = inspect.signature(getattr(getattr(paramd, owner), member))
    takes = set(signature.parameters)
    assert set(arguments) <= takes, f"{source}: {owner}.{member}{signature}"
