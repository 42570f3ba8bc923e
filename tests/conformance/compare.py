"""Compares what two libraries did with one program, step by step."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.conformance.interpreter import decode_array, dtype_name

__all__ = ["Difference", "compare_programs"]

Outcome = Mapping[str, Any]

# Errors that Python itself raises out of MXNet's code: their texts say nothing about the program.
_ACCIDENTS = frozenset(("AttributeError", "TypeError", "KeyError", "IndexError"))
_SHAPE = re.compile(r"(?<!\w)\(\d+(?:, ?-?\d+)*,?\)")
_CONTEXT = re.compile(r"(?:cpu|gpu|cpu_pinned)\(\d+\)")
_QUOTED = re.compile(r"'([^'\s]{1,40})'")
# Two-sample Kolmogorov-Smirnov statistic at a significance of 1e-6: sqrt(-ln(alpha / 2) / 2).
_KS_LIMIT = 2.69
# What may lie between two computed values, relative to the larger of the value and 1: the two
# libraries round in another order, MXNet's float16 after every operation. MXNet takes rates and the
# like as float32, which its float64 shows.
_CLOSE = {"float16": 4e-3, "float32": 4e-6, "float64": 4e-6}


@dataclass(frozen=True)
class Difference:
    """One step that went differently.

    Attributes:
        step: its position in the program.
        what: which part of the outcome differs.
        mxnet: what MXNet did.
        paramd: what paramd did.
    """

    step: int
    what: str
    mxnet: Any
    paramd: Any

    def __str__(self) -> str:
        return (
            f"step {self.step}, {self.what}:\n    MXNet  {_short(self.mxnet)}"
            f"\n    paramd {_short(self.paramd)}"
        )


def compare_programs(
    program: Sequence[Mapping[str, Any]], mxnet: Sequence[Outcome], paramd: Sequence[Outcome]
) -> list[Difference]:
    """Compares the outcomes of all steps of a program.

    Returns:
        The differences, in the order of the steps; none when both did the same.
    """
    names = _names_in(mxnet)
    differences = []
    for index, (step, theirs, ours) in enumerate(zip(program, mxnet, paramd, strict=True)):
        for what, their_part, our_part in _compare_step(step, theirs, ours, names):
            differences.append(Difference(index, what, their_part, our_part))
    return differences


def _compare_step(
    step: Mapping[str, Any], theirs: Outcome, ours: Outcome, names: frozenset[str]
) -> list[tuple[str, Any, Any]]:
    loose = step.get("loose")
    found = []
    if ("error" in theirs) != ("error" in ours):
        found.append(("outcome", _result(theirs), _result(ours)))
    elif "error" in theirs:
        found += _compare_errors(theirs, ours, names, facts=loose != "class")
    elif loose in ("distribution", "shape"):
        found += _compare_roughly(theirs["value"], ours["value"], loose)
    elif loose == "close":
        found += _compare_values(
            *_without_rounding(theirs["value"], ours["value"]), step.get("member", ""), names
        )
    elif loose == "unordered":
        their_items, our_items = (sorted(map(json.dumps, s["value"])) for s in (theirs, ours))
        found += _compare_values(their_items, our_items, "", names)
    else:
        found += _compare_values(theirs["value"], ours["value"], step.get("member", ""), names)
    their_warnings, our_warnings = theirs["warnings"], ours["warnings"]
    same = len(their_warnings) == len(our_warnings) and all(
        their[0][0] in our[0] and all(name in our[1] for name in names if name in their[1])
        for their, our in zip(their_warnings, our_warnings, strict=True)
    )
    if not same:
        found.append(("warnings", their_warnings, our_warnings))
    if _named(theirs, names) - _named(ours, names):
        found.append(("logs", theirs["logs"], ours["logs"]))
    return found


def _named(outcome: Outcome, names: frozenset[str]) -> set[str]:
    return {name for name in names for text in outcome.get("logs", ()) if name in text}


def _compare_errors(
    theirs: Outcome, ours: Outcome, names: frozenset[str], *, facts: bool
) -> list[tuple[str, Any, Any]]:
    expected = theirs["error"][0]
    if expected not in ours["error"]:
        return [("error class", _result(theirs), _result(ours))]
    if not facts or expected in _ACCIDENTS:
        return []
    missing = [
        fact for fact in _facts(theirs["message"], names) if fact not in _flat(ours["message"])
    ]
    if missing:
        return [(f"facts in message {missing}", theirs["message"], ours["message"])]
    return []


def _facts(message: str, names: frozenset[str]) -> list[str]:
    # NumPy 2 calls bool_ bool.
    quoted = {
        text.removeprefix("numpy.").replace("bool_", "bool") for text in _QUOTED.findall(message)
    }
    found = {name for name in names if re.search(rf"\b{re.escape(name)}\b", message)}
    facts = quoted | found | set(_SHAPE.findall(message)) | set(_CONTEXT.findall(message))
    return sorted(_flat(fact) for fact in facts)


def _flat(text: str) -> str:
    return re.sub(r"[\s'\"]", "", text).replace(",)", ")")


def _compare_values(
    theirs: Any, ours: Any, member: str, names: frozenset[str]
) -> list[tuple[str, Any, Any]]:
    if isinstance(theirs, Mapping) and isinstance(ours, Mapping):
        if "error" in theirs and "error" in ours:
            return _compare_errors(theirs, ours, names, facts=True)
        if "kind" not in theirs and "kind" not in ours and theirs.keys() == ours.keys():
            found = []
            for key in theirs:
                for what, a, b in _compare_values(theirs[key], ours[key], key, names):
                    found.append((f"{key}: {what}", a, b))
            return found
    if isinstance(theirs, str) and isinstance(ours, str):
        theirs = theirs.replace("numpy.bool_'", "numpy.bool'")  # NumPy 2 renamed it.
    if member == "dtype":
        theirs, ours = _plain_dtype(theirs), _plain_dtype(ours)
    return [] if theirs == ours else [("value", theirs, ours)]


def _without_rounding(theirs: Any, ours: Any) -> tuple[Any, Any]:
    """Gives our value as theirs where they differ by rounding only, at any depth."""
    if isinstance(theirs, Mapping) and isinstance(ours, Mapping):
        if "data" in theirs and "dtype" in theirs:
            return theirs, theirs if _is_close(theirs, ours) else ours
        pairs = {
            key: _without_rounding(value, ours[key]) for key, value in theirs.items() if key in ours
        }
        return theirs, {**ours, **{key: pair[1] for key, pair in pairs.items()}}
    if isinstance(theirs, list) and isinstance(ours, list) and len(theirs) == len(ours):
        return theirs, [_without_rounding(*pair)[1] for pair in zip(theirs, ours, strict=True)]
    if isinstance(theirs, float) and isinstance(ours, float):
        return theirs, theirs if np.isclose(ours, theirs, rtol=1e-12, atol=0.0) else ours
    return theirs, ours


def _is_close(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> bool:
    if any(theirs[key] != ours.get(key) for key in theirs if key != "data"):
        return False
    limit = _CLOSE.get(theirs["dtype"], 0.0)
    a, b = (decode_array(form).astype(np.float64) for form in (theirs, ours))
    with np.errstate(invalid="ignore"):
        near = np.abs(a - b) <= limit * np.maximum(np.abs(a), 1.0)
    return bool((near | (a == b) | (np.isnan(a) & np.isnan(b))).all())


def _plain_dtype(value: Any) -> Any:
    if isinstance(value, Mapping) and value.get("kind") == "dtype":
        return value["name"]
    return dtype_name(value)


def _compare_roughly(theirs: Any, ours: Any, how: str) -> list[tuple[str, Any, Any]]:
    """Compares arrays of random values; `how` is 'shape' or 'distribution'."""
    if isinstance(theirs, list) and isinstance(ours, list) and len(theirs) == len(ours):
        pairs = zip(theirs, ours, strict=True)
        return [found for pair in pairs for found in _compare_roughly(*pair, how)]
    if not isinstance(theirs, Mapping) or not isinstance(ours, Mapping):
        return [] if theirs == ours else [("value", theirs, ours)]
    if any(
        theirs.get(key) != ours.get(key) for key in ("kind", "dtype", "shape", "stype", "context")
    ):
        return [("form of the array", theirs, ours)]
    if how == "shape":
        return []
    a, b = (np.sort(decode_array(form).astype(np.float64).ravel()) for form in (theirs, ours))
    spread = np.sqrt(a.std() * b.std())
    # About 4.5 standard deviations of either statistic, for the 2,000 values that the cases draw.
    if abs(a.std() - b.std()) > 0.1 * spread or abs(a.mean() - b.mean()) > 0.15 * spread:
        return [("distribution", _summary(a), _summary(b))]
    both = np.concatenate([a, b])
    gap = np.abs(
        np.searchsorted(a, both, side="right") - np.searchsorted(b, both, side="right")
    ).max() / len(a)
    if gap > _KS_LIMIT * np.sqrt(2 / len(a)):
        return [("distribution", _summary(a), _summary(b))]
    return []


def _summary(values: np.ndarray[Any, Any]) -> str:
    return (
        f"mean {values.mean():.4g}, std {values.std():.4g}, {values.min():.4g}..{values.max():.4g}"
    )


def _names_in(outcomes: Sequence[Outcome]) -> frozenset[str]:
    """Names of the parameters that a program made."""
    values = [outcome.get("value") for outcome in outcomes]
    return frozenset(
        str(value["name"])
        for value in values
        if isinstance(value, Mapping) and value.get("kind") in ("Parameter", "Constant")
    )


def _result(outcome: Outcome) -> Any:
    if "error" in outcome:
        return f"{outcome['error'][0]}: {outcome['message']}"
    return outcome["value"]


def _short(value: Any) -> str:
    if isinstance(value, Mapping) and isinstance(value.get("data"), str):
        array = decode_array(value)
        rest = {key: item for key, item in value.items() if key not in ("data", "kind")}
        return f"{array.tolist()!s:.400} {rest}"
    text = value if isinstance(value, str) else json.dumps(value)
    return text[:600]
