"""The parameters of a server as a section of a snapshot."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from paramd.context import Context
from paramd.errors import MemoryLimitError
from paramd.spec import InitializerSpec, ParameterSpec, check_name
from paramd.wire.dtypes import dtype_of
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
from paramd_server.core.stored_parameter import Deferred, StoredParameter

__all__ = ["ParametersSection"]


class ParametersSection:
    """Every parameter: specs, deferred initializations, copies, gradients, counters.

    Args:
        registry: of the server.
    """

    name = "parameters"

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def save(self) -> SavedSection:
        """See Section."""
        documents: list[dict[str, Any]] = []
        arrays: list[SavedArray] = []
        with self._registry.hold(self._registry.names()) as parameters:
            for index, parameter in enumerate(parameters):
                document, more = self._save_one(str(index), parameter)
                documents.append(document)
                arrays += more
        return SavedSection({"parameters": documents}, arrays, blank=not documents)

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

    def _save_one(
        self, key: str, parameter: StoredParameter
    ) -> tuple[dict[str, Any], list[SavedArray]]:
        devices = self._registry.devices
        copies, arrays = save_buffers(f"{key}/value", parameter.copies, devices)
        gradients, more = save_buffers(f"{key}/gradient", parameter.gradients, devices)
        arrays += more
        sparse = []
        for number, (context, gradient) in enumerate(parameter.sparse_gradients.items()):
            place = f"{key}/rows/{number}"
            rows, more = save_buffers(place, {context: gradient.rows}, devices)
            ids = whole_array(f"{place}/ids", gradient.ids)
            arrays += [*more, ids]
            sparse.append({"ids": ids.key, "rows": rows})
        document = {
            "declared": _save_spec(parameter.declared),
            "current": _save_spec(parameter.current),
            "deferred": _save_deferred(parameter.deferred),
            "counter": parameter.counter,
            "gradient_counter": parameter.gradient_counter,
            "fresh_gradients": [str(context) for context in parameter.fresh_gradients],
            "copies": copies,
            "gradients": gradients,
            "sparse_gradients": sparse,
        }
        return document, arrays

    def _restore_one(self, document: Mapping[str, Any], arrays: ArraysReader) -> StoredParameter:
        devices = self._registry.devices
        parameter = StoredParameter(
            _restore_spec(document["declared"]), devices, self._registry.epoch
        )
        current = parameter.current = _restore_spec(document["current"])
        parameter.deferred = _restore_deferred(document["deferred"])
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
    }


def _restore_spec(document: Mapping[str, Any]) -> ParameterSpec:
    shape, init = document["shape"], document["init"]
    dtype: np.dtype[Any] = dtype_of(document["dtype"])
    return ParameterSpec(
        name=document["name"],
        shape=None if shape is None else tuple(int(each) for each in shape),
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
    )


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


def _save_deferred(deferred: Deferred | None) -> dict[str, Any] | None:
    if deferred is None:
        return None
    return {
        "init": _save_init(deferred.init),
        "contexts": [str(context) for context in deferred.contexts],
        "seed": deferred.seed,
        "draw": deferred.draw,
    }


def _restore_deferred(document: Mapping[str, Any] | None) -> Deferred | None:
    if document is None:
        return None
    contexts = tuple(Context.from_string(text) for text in document["contexts"])
    return Deferred(
        _restore_init(document["init"]), contexts, int(document["seed"]), int(document["draw"])
    )
