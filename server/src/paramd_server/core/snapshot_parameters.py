"""The parameters of a server as a section of a snapshot."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from paramd.context import Context
from paramd.errors import MemoryLimitError
from paramd.spec import FirstValue, InitializerSpec, ParameterSpec, Part, check_name
from paramd.wire.dtypes import dtype_of
from paramd_server.arrays.backend import Buffer
from paramd_server.core.held_buffers import BufferHolds
from paramd_server.core.registry import Registry
from paramd_server.core.row_sparse import RowSparseGradient, check_ids
from paramd_server.core.snapshot import (
    ArraysReader,
    SavedArray,
    SavedSection,
    load_array,
    whole_array,
)
from paramd_server.core.snapshot_buffers import restore_buffers, save_buffers
from paramd_server.core.stored_parameter import StoredParameter

__all__ = ["ParametersSection"]


class _Captured(NamedTuple):
    """A parameter at one moment."""

    parameter: StoredParameter
    declared: ParameterSpec
    current: ParameterSpec
    deferred: FirstValue | None
    first_value: FirstValue | None
    counter: int
    gradient_counter: int
    fresh_gradients: tuple[Context, ...]
    copies: dict[Context, Buffer]
    gradients: dict[Context, Buffer]
    sparse_gradients: dict[Context, RowSparseGradient]


class ParametersSection:
    """Every parameter: specs, deferred initializations, copies, gradients, counters.

    Args:
        registry: of the server.
    """

    name = "parameters"

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def capture(self, holds: BufferHolds) -> Callable[[], SavedSection]:
        """See Section."""
        with self._registry.hold_all() as parameters:
            captured = [_capture(parameter, holds) for parameter in parameters]

        def finish() -> SavedSection:
            documents: list[dict[str, Any]] = []
            arrays: list[SavedArray] = []
            for index, each in enumerate(captured):
                document, more = _save(str(index), each, holds)
                documents.append(document)
                arrays += more
            captured.clear()
            return SavedSection({"parameters": documents}, arrays, blank=not documents)

        return finish

    def restore(self, document: Mapping[str, Any], arrays: ArraysReader) -> None:
        """See Section."""
        parameters = []
        for each in document["parameters"]:
            name = check_name(each["declared"]["name"])
            try:
                parameters.append(self._restore_one(each, arrays))
            except MemoryLimitError as err:
                raise MemoryLimitError(f"parameter {name!r}: {err}", parameter=name) from err
            except (KeyError, TypeError, ValueError) as err:
                raise ValueError(f"parameter {name!r}: {err}") from err
        self._registry.take_up(parameters)

    def _restore_one(self, document: Mapping[str, Any], arrays: ArraysReader) -> StoredParameter:
        devices = self._registry.devices
        parameter = StoredParameter(
            _restore_spec(document["declared"]), devices, self._registry.epoch
        )
        current = parameter.current = _restore_spec(document["current"])
        parameter.deferred = _restore_first_value(document["deferred"])
        parameter.first_value = _restore_first_value(document.get("first_value"))
        parameter.counter = int(document["counter"])
        parameter.gradient_counter = int(document["gradient_counter"])
        parameter.fresh_gradients = {
            Context.from_string(text) for text in document["fresh_gradients"]
        }
        if not document["copies"]:
            return parameter
        shape, dtype = parameter.shape, current.dtype
        parameter.copies = restore_buffers(document["copies"], arrays, shape, dtype, devices)
        parameter.gradients = restore_buffers(document["gradients"], arrays, shape, dtype, devices)
        for each in document["sparse_gradients"]:
            ids = load_array(arrays, each["ids"])
            check_ids(parameter.name, ids, shape[0])
            rows = restore_buffers(each["rows"], arrays, (len(ids), *shape[1:]), dtype, devices)
            for context, buffer in rows.items():
                parameter.sparse_gradients[context] = RowSparseGradient(ids, buffer, shape)
        return parameter


def _capture(parameter: StoredParameter, holds: BufferHolds) -> _Captured:
    # Everybody waits for this: nothing is looked at that can be looked at later.
    for buffers in (parameter.copies, parameter.gradients):
        for buffer in buffers.values():
            holds.add(buffer)
    return _Captured(
        parameter,
        parameter.declared,
        parameter.current,
        parameter.deferred,
        parameter.first_value,
        parameter.counter,
        parameter.gradient_counter,
        tuple(parameter.fresh_gradients),
        dict(parameter.copies),
        dict(parameter.gradients),
        # They are never changed in place, so that a reference is enough.
        dict(parameter.sparse_gradients),
    )


def _save(
    key: str, captured: _Captured, holds: BufferHolds
) -> tuple[dict[str, Any], list[SavedArray]]:
    lock, by_rows = captured.parameter.lock, captured.current.stype == "row_sparse"

    def saved(
        place: str, buffers: Mapping[Context, Buffer]
    ) -> tuple[list[dict[str, Any]], list[SavedArray]]:
        held = {each: holds.find(buffer, by_rows=by_rows) for each, buffer in buffers.items()}
        return save_buffers(place, held, lock)

    copies, arrays = saved(f"{key}/value", captured.copies)
    gradients, more = saved(f"{key}/gradient", captured.gradients)
    arrays += more
    sparse = []
    for number, (context, gradient) in enumerate(captured.sparse_gradients.items()):
        place = f"{key}/rows/{number}"
        rows, more = saved(place, {context: gradient.rows})
        ids = whole_array(f"{place}/ids", gradient.ids)
        arrays += [*more, ids]
        sparse.append({"ids": ids.key, "rows": rows})
    document = {
        "declared": _save_spec(captured.declared),
        "current": _save_spec(captured.current),
        "deferred": _save_first_value(captured.deferred),
        "first_value": _save_first_value(captured.first_value),
        "counter": captured.counter,
        "gradient_counter": captured.gradient_counter,
        "fresh_gradients": [str(context) for context in captured.fresh_gradients],
        "copies": copies,
        "gradients": gradients,
        "sparse_gradients": sparse,
    }
    return document, arrays


def _save_spec(spec: ParameterSpec) -> dict[str, Any]:
    return {
        "name": spec.name,
        "shape": None if spec.shape is None else list(spec.shape),
        "dtype": str(spec.dtype),
        "stype": spec.stype,
        "grad_stype": spec.grad_stype,
        "grad_req": spec.grad_req,
        "lr_mult": spec.lr_mult,
        "wd_mult": spec.wd_mult,
        "init": None if spec.init is None else _save_init(spec.init),
        "allow_deferred_init": spec.allow_deferred_init,
        "differentiable": spec.differentiable,
        "constant": spec.constant,
        "part": None if spec.part is None else _save_part(spec.part),
    }


def _restore_spec(document: Mapping[str, Any]) -> ParameterSpec:
    saved_shape, init = document["shape"], document["init"]
    shape = None if saved_shape is None else tuple(int(each) for each in saved_shape)
    dtype: np.dtype[Any] = dtype_of(document["dtype"])
    # Snapshots of before there were shards say nothing of parts, nor of first values.
    part = _restore_part(document.get("part"))
    if part is not None and part.local_shape != shape:
        raise ValueError(f"a part of shape {part.local_shape} does not have the shape {shape}")
    return ParameterSpec(
        name=document["name"],
        shape=shape,
        dtype=dtype,
        stype=document["stype"],
        grad_stype=document["grad_stype"],
        grad_req=document["grad_req"],
        lr_mult=document["lr_mult"],
        wd_mult=document["wd_mult"],
        init=None if init is None else _restore_init(init),
        allow_deferred_init=document["allow_deferred_init"],
        differentiable=document["differentiable"],
        constant=document["constant"],
        part=part,
    )


def _save_part(part: Part) -> dict[str, Any]:
    return {
        "shape": list(part.shape),
        "begin": part.begin,
        "count": part.count,
        "step": part.step,
    }


def _restore_part(document: Mapping[str, Any] | None) -> Part | None:
    if document is None:
        return None
    shape = tuple(int(each) for each in document["shape"])
    begin, count, step = (int(document[key]) for key in ("begin", "count", "step"))
    if (
        not shape
        or min(*shape, count, step) < 1
        or not 0 <= begin <= shape[0] - 1 - (count - 1) * step
    ):
        raise ValueError(f"{count} rows from {begin} in steps of {step} are no part of {shape}")
    return Part(shape, begin, count, step)


def _save_init(init: InitializerSpec) -> dict[str, Any]:
    return {
        "name": init.name,
        "arguments": dict(init.arguments),
        "client_side": init.client_side,
    }


def _restore_init(document: Mapping[str, Any]) -> InitializerSpec:
    return InitializerSpec(
        document["name"], MappingProxyType(dict(document["arguments"])), document["client_side"]
    )


def _save_first_value(first_value: FirstValue | None) -> dict[str, Any] | None:
    if first_value is None:
        return None
    return {
        "init": _save_init(first_value.init),
        "contexts": [str(context) for context in first_value.contexts],
        "seed": first_value.seed,
        "draw": first_value.draw,
    }


def _restore_first_value(document: Mapping[str, Any] | None) -> FirstValue | None:
    if document is None:
        return None
    return FirstValue(
        _restore_init(document["init"]),
        int(document["seed"]),
        int(document["draw"]),
        tuple(Context.from_string(text) for text in document["contexts"]),
    )
