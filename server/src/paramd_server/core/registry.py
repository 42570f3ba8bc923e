"""The parameters of a server by name."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace

from paramd.errors import (
    AttributeMismatchError,
    InvalidArgumentError,
    ParameterNotFoundError,
)
from paramd.spec import ParameterSpec, StoredInfo, shape_is_known
from paramd_server.arrays.devices import Devices
from paramd_server.core.parts import merge_part, shown_shape, whole_shape
from paramd_server.core.shared_copies import changing
from paramd_server.core.stored_parameter import StoredParameter

__all__ = ["Registry"]

# The attributes that an attaching client may have stated.
_COMPARED = (
    "dtype",
    "stype",
    "grad_stype",
    "grad_req",
    "lr_mult",
    "wd_mult",
    "init",
    "allow_deferred_init",
    "differentiable",
)


class Registry:
    """Finds, creates, lists and deletes parameters.

    Args:
        devices: where buffers come from.
        epoch: of the server.
        check: checks a declared spec beyond its form, such as the initializer's arguments.
    """

    def __init__(
        self, devices: Devices, epoch: int, check: Callable[[ParameterSpec], None]
    ) -> None:
        self.devices = devices
        self.epoch = epoch
        self._check = check
        self._lock = threading.RLock()
        # In order of creation; guarded by _lock, which is taken before any parameter's lock.
        self._parameters: dict[str, StoredParameter] = {}
        self._listeners: list[Callable[[str], None]] = []

    def __len__(self) -> int:
        return len(self._parameters)

    def declare(
        self, declarations: Sequence[tuple[ParameterSpec, Collection[str]]]
    ) -> list[StoredInfo]:
        """Creates parameters, or attaches to them.

        Args:
            declarations: each spec with the names of the attributes that must agree. A part
                must agree always, for a client that states one knows the whole shape.

        Returns:
            What is now, in the order of the declarations.

        Raises:
            AttributeMismatchError: where one does not agree; nothing is changed then.
        """
        for spec, _ in declarations:
            self._check(spec)
        with self._lock, ExitStack() as stack:
            # What a shape is now must not change between the comparison and the merge.
            names = {spec.name for spec, _ in declarations} & self._parameters.keys()
            stack.enter_context(self.hold(sorted(names)))
            merged: dict[str, ParameterSpec] = {}
            for spec, compared in declarations:
                known = self._parameters.get(spec.name)
                base = known.declared if known is not None else merged.get(spec.name)
                if base is None:
                    merged[spec.name] = _normal(spec)
                    continue
                _compare(base, spec, compared)
                now = merged.get(spec.name) or (known.current if known is not None else base)
                compares_shape = "shape" in compared or spec.part is not None
                merged[spec.name] = _merge_shape(now, spec) if compares_shape else now
            for name, spec in merged.items():
                parameter = self._parameters.get(name)
                if parameter is None:
                    self._parameters[name] = StoredParameter(spec, self.devices, self.epoch)
                    continue
                parameter.current = replace(parameter.current, shape=spec.shape, part=spec.part)
            return self.describe([spec.name for spec, _ in declarations])

    def describe(self, names: Sequence[str]) -> list[StoredInfo]:
        """Describes parameters by name. Raises ParameterNotFoundError."""
        infos = []
        for parameter in self._find(names):
            with parameter.lock:
                infos.append(parameter.info())
        return infos

    def page(self, prefix: str, after: str, size: int) -> tuple[list[StoredInfo], str]:
        """Describes the parameters under a prefix, a page at a time.

        Args:
            prefix: of the names.
            after: the last name of the page before; '' for the first page.
            size: the most parameters of a page.

        Returns:
            The page, in order of creation, and what to pass as `after` for the next; '' if this
            is the last.

        Raises:
            InvalidArgumentError: where `after` has been deleted meanwhile.
        """
        with self._lock:
            names = list(self._parameters)
            if after and after not in self._parameters:
                raise InvalidArgumentError(f"the page token {after[:80]!r} is not valid any more")
        start = names.index(after) + 1 if after else 0
        chosen = [name for name in names[start:] if name.startswith(prefix)]
        infos = []
        for name in chosen[:size]:
            with self._lock:
                parameter = self._parameters.get(name)
            if parameter is not None:
                with parameter.lock:
                    infos.append(parameter.info())
        return infos, chosen[size - 1] if len(chosen) > size else ""

    def listen(self, listener: Callable[[str], None]) -> None:
        """Has a function called with the name of each parameter that is deleted, without locks."""
        self._listeners.append(listener)

    def delete(self, names: Sequence[str]) -> None:
        """Removes parameters. Raises ParameterNotFoundError, and removes none then."""
        with self._lock, self.hold(names) as parameters, changing(parameters):
            for parameter in parameters:
                parameter.deleted = True
                del self._parameters[parameter.name]
        for name in names:
            for listener in self._listeners:
                listener(name)

    def hold(self, names: Sequence[str]) -> AbstractContextManager[list[StoredParameter]]:
        """Locks parameters, all together, for as long as a block runs.

        The locks are taken in the order of the names, so that two such blocks cannot wait for
        each other.

        Args:
            names: of the parameters.

        Returns:
            What locks them, and gives them in the order of the names.

        Raises:
            ParameterNotFoundError: where a name is unknown, or where the block is entered deleted.
        """
        return _Hold(self._find(names))

    @contextmanager
    def hold_all(self) -> Iterator[list[StoredParameter]]:
        """Locks all parameters, as `hold` does; gives them in order of creation."""
        with self._lock:
            found = list(self._parameters.values())
        taken: list[StoredParameter] = []
        try:
            for parameter in sorted(found, key=lambda each: each.name):
                parameter.lock.acquire()
                taken.append(parameter)
            yield [parameter for parameter in found if not parameter.deleted]
        finally:
            for parameter in taken:
                parameter.lock.release()

    def names(self) -> list[str]:
        """The names of all parameters, in order of creation."""
        with self._lock:
            return list(self._parameters)

    def take_up(self, parameters: Sequence[StoredParameter]) -> None:
        """Puts the parameters of a snapshot into an empty registry, in order of creation.

        Raises:
            ValueError: where there are parameters already, or two of one name.
        """
        with self._lock:
            found = {parameter.name: parameter for parameter in parameters}
            if self._parameters or len(found) < len(parameters):
                raise ValueError("the server holds parameters already, or a name comes twice")
            self._parameters = found

    def _find(self, names: Sequence[str]) -> list[StoredParameter]:
        with self._lock:
            found = [self._parameters.get(name) for name in names]
        parameters = []
        for name, parameter in zip(names, found, strict=True):
            if parameter is None:
                raise ParameterNotFoundError(
                    f"the server holds no parameter {name!r}", parameter=name
                )
            parameters.append(parameter)
        return parameters


class _Hold:
    """See `Registry.hold`. A class, because every small call comes here, and generators cost."""

    __slots__ = ("_found", "_taken")

    def __init__(self, found: list[StoredParameter]) -> None:
        self._found = found
        self._taken: list[StoredParameter] = []

    def __enter__(self) -> list[StoredParameter]:
        found = self._found
        ordered = found if len(found) < 2 else sorted(set(found), key=_name_of)
        try:
            for parameter in ordered:
                parameter.lock.acquire()
                self._taken.append(parameter)
            for parameter in found:
                parameter.check_not_deleted()
        except BaseException:
            self.__exit__()
            raise
        return found

    def __exit__(self, *_failure: object) -> None:
        while self._taken:
            self._taken.pop().lock.release()


def _name_of(parameter: StoredParameter) -> str:
    return parameter.name


def _normal(spec: ParameterSpec) -> ParameterSpec:
    if spec.constant or not spec.differentiable:
        return replace(spec, grad_req="null")
    return spec


def _mismatch(name: str, attribute: str, desired: object, stored: object) -> AttributeMismatchError:
    return AttributeMismatchError(
        f"Cannot retrieve Parameter '{name}' because desired attribute does not match with stored "
        f"for attribute '{attribute}': desired '{desired}' vs stored '{stored}'",
        parameter=name,
    )


def _compare(declared: ParameterSpec, spec: ParameterSpec, compared: Collection[str]) -> None:
    desired_spec = _normal(spec)
    if declared.constant != spec.constant:
        kinds = {True: "Constant", False: "Parameter"}
        raise _mismatch(spec.name, "kind", kinds[spec.constant], kinds[declared.constant])
    for attribute in _COMPARED:
        if attribute not in compared:
            continue
        desired, stored = getattr(desired_spec, attribute), getattr(declared, attribute)
        # As in ParameterDict.get: None agrees with everything.
        if desired is not None and stored is not None and desired != stored:
            raise _mismatch(spec.name, attribute, desired, stored)


def _merge_shape(now: ParameterSpec, spec: ParameterSpec) -> ParameterSpec:
    try:
        merged = merge_part(now, spec.shape, spec.part)
    except ValueError as err:
        desired, stored = whole_shape(spec), whole_shape(now)
        if desired != stored:
            raise _mismatch(spec.name, "shape", desired, stored) from err
        raise _mismatch(spec.name, "part", shown_shape(spec), shown_shape(now)) from err
    return now if shape_is_known(now.shape) else merged
