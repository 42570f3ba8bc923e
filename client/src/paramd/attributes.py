"""Attributes of parameters: comparing them in `get`, and setting one on many at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from paramd.constant import Constant
from paramd.declaration import (
    check_grad_req,
    check_new_shape,
    merged_shape,
    mismatch,
    multiplier_of,
)
from paramd.initializer import to_spec
from paramd.link import perform, session_of, set_attribute
from paramd.parameter import Parameter
from paramd.spec import ParameterSpec
from paramd.wire.dtypes import dtype_of

__all__ = ["merge_attributes", "set_everywhere"]

_COMPARED: Final = frozenset(
    {
        "grad_req",
        "lr_mult",
        "wd_mult",
        "allow_deferred_init",
        "differentiable",
        "stype",
        "grad_stype",
    }
)


def merge_attributes(parameter: Parameter, desired: Mapping[str, Any]) -> None:
    """Compares attributes with those of a parameter, and fills in what it does not know.

    Args:
        parameter: found by `ParameterDict.get`.
        desired: arguments of `Parameter`; None agrees with everything.

    Raises:
        AttributeMismatchError: where one differs; nothing is changed then.
        TypeError: for an argument that Parameter does not have.
    """
    given = {key: value for key, value in desired.items() if value is not None}
    if not given:
        return
    spec = parameter._current()
    changes: dict[str, Any] = {}
    for key, value in given.items():
        if key == "shape":
            merged = merged_shape(parameter.name, value, spec.shape)
            if merged != spec.shape:
                changes["shape"] = merged
        elif key == "init":
            if spec.init is None and parameter._link.init is None:
                changes["init"] = value
            elif not _is_same_init(parameter, spec, value):
                raise mismatch(parameter.name, "init", value, parameter.init)
        elif key == "dtype":
            if dtype_of(value) != spec.dtype:
                raise mismatch(parameter.name, "dtype", value, spec.dtype)
        elif key in _COMPARED:
            if value != getattr(spec, key):
                raise mismatch(parameter.name, key, value, getattr(spec, key))
        elif key == "session":
            _check_session(parameter, value)
        else:
            raise TypeError(f"Parameter has no argument {key!r}")
    for key, value in changes.items():
        parameter._change(key, value)


def _is_same_init(parameter: Parameter, spec: ParameterSpec, value: Any) -> bool:
    wanted = to_spec(value, parameter.name)
    own = parameter.init
    if own is not None and to_spec(own, parameter.name).client_side and wanted.client_side:
        return bool(own == value)
    return wanted == (spec.init if own is None else to_spec(own, parameter.name))


def _check_session(parameter: Parameter, session: Any) -> None:
    if parameter._link.session is not None and parameter._link.session is not session:
        raise mismatch(parameter.name, "session", session, parameter._link.session)


def set_everywhere(parameters: Sequence[Parameter], attribute: str, value: Any) -> None:
    """Sets an attribute of parameters: one round trip for those that the server knows.

    Raises:
        AssertionError: where the value does not fit one of them; none is changed then.
    """
    if attribute == "dtype":
        _cast(parameters, value)
    elif attribute in ("shape", "grad_req", "lr_mult", "wd_mult", "init"):
        _set(parameters, attribute, value)
    else:
        for parameter in parameters:
            setattr(parameter, attribute, value)


def _set(parameters: Sequence[Parameter], attribute: str, value: Any) -> None:
    if attribute == "grad_req":
        value = check_grad_req(value)
        for constant in parameters:
            if isinstance(constant, Constant):
                constant.grad_req = value  # It warns, and stays as it is.
        parameters = [each for each in parameters if not isinstance(each, Constant)]
    elif attribute in ("lr_mult", "wd_mult"):
        value = multiplier_of("*", attribute, value)
    attached, declared = _split(parameters)
    if attribute == "shape":
        for parameter in declared:
            value = check_new_shape(parameter.name, parameter._link.spec.shape, value)
        if attached:
            value = check_new_shape(attached[0].name, None, value)
    if attached:
        links = [each._link for each in attached]
        set_attribute(session_of(links), links, attribute, value)
    for parameter in declared:
        parameter._change(attribute, value)


def _cast(parameters: Sequence[Parameter], dtype: Any) -> None:
    new = dtype_of(dtype)
    attached, declared = _split(parameters)
    if attached:
        links = [each._link for each in attached]
        names = [each.name for each in attached]
        perform(session_of(links), links, lambda calls: calls.cast(names, new))
    for parameter in declared:
        parameter._link.change("dtype", new)
    for parameter in parameters:
        parameter._dtype_as_given = new.type if dtype is None else dtype


def _split(parameters: Sequence[Parameter]) -> tuple[list[Parameter], list[Parameter]]:
    """Those that a session knows, and those that are only declared."""
    attached: list[Parameter] = []
    declared: list[Parameter] = []
    for parameter in parameters:
        known = parameter._link.attached_session() is not None
        (attached if known else declared).append(parameter)
    return attached, declared
