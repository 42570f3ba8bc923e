"""A session without a server: it keeps declarations, and what was asked for, in order."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import numpy as np

from paramd.context import Context
from paramd.errors import ParameterNotFoundError
from paramd.session import Session
from paramd.spec import InitializeEntry, ParameterSpec, Selector, StoredInfo, Version
from paramd.transport.calls import TensorWrite

EPOCH = 7


class FakeCalls:
    """The part of `Calls` that proxies use to declare and describe; it holds no values.

    Attributes:
        log: the name of each call, with its names of parameters.
        declarations: each declared spec with the attributes that were to be compared.
        infos: what `describe` answers, by name. Tests put in what they need.
        writes: the tensors that were sent.
    """

    def __init__(self) -> None:
        self.log: list[tuple[str, list[str]]] = []
        self.declarations: list[tuple[ParameterSpec, frozenset[str]]] = []
        self.infos: dict[str, StoredInfo] = {}
        self.writes: list[TensorWrite] = []
        self.epoch = EPOCH

    def declare(self, declarations: list[tuple[ParameterSpec, frozenset[str]]]) -> list[StoredInfo]:
        names = [spec.name for spec, _ in declarations]
        self.log.append(("declare", names))
        self.declarations += declarations
        for spec, _ in declarations:
            self.infos.setdefault(spec.name, stored(spec, epoch=self.epoch))
        return [self.infos[name] for name in names]

    def seen_in_place(self, _selector: Selector, _current_context: Context) -> None:
        """Nothing is: `describe` is asked."""

    def describe(self, names: list[str]) -> list[StoredInfo]:
        self.log.append(("describe", list(names)))
        for name in names:
            if name not in self.infos:
                raise ParameterNotFoundError(f"no {name!r}", parameter=name)
        return [self.infos[name] for name in names]

    def set_attribute(self, names: list[str], attribute: str, value: Any) -> None:
        self.log.append((f"set {attribute}", list(names)))
        for name in names:
            info = self.infos[name]
            self.infos[name] = replace(info, current=replace(info.current, **{attribute: value}))

    def cast(self, names: list[str], dtype: np.dtype[Any]) -> None:
        self.set_attribute(names, "dtype", dtype)

    def zero_grad(self, names: list[str]) -> None:
        self.log.append(("zero_grad", list(names)))

    def reset_ctx(self, names: list[str], contexts: list[Context]) -> None:
        self.log.append(("reset_ctx", list(names)))

    def initialize(
        self, entries: list[InitializeEntry], contexts: list[Context], *, force_reinit: bool
    ) -> list[tuple[str, StoredInfo]]:
        self.log.append(("initialize", [entry.name for entry in entries]))
        outcomes = []
        for entry in entries:
            info = self.infos[entry.name]
            if info.state == "initialized" and not force_reinit:
                outcomes.append(("already_initialized", info))
                continue
            state = "deferred" if entry.init.client_side else "initialized"
            info = replace(info, state=state, contexts=tuple(contexts))
            self.infos[entry.name] = info
            outcomes.append((state, info))
        return outcomes

    def set_data(
        self,
        writes: list[TensorWrite],
        *,
        initialize: bool = False,
        force_reinit: bool = False,
        contexts: tuple[Context, ...] = (),
    ) -> list[Version]:
        self.log.append(("set_data", [write.name for write in writes]))
        self.writes += writes
        for write in writes:
            self.infos[write.name] = replace(self.infos[write.name], state="initialized")
        return [Version(EPOCH, 1) for _ in writes]

    def set_grad(self, writes: list[TensorWrite], current_context: Context) -> list[Version]:
        self.log.append(("set_grad", [write.name for write in writes]))
        self.writes += writes
        return [Version(EPOCH, 1) for _ in writes]

    def status(self) -> Any:
        self.log.append(("status", []))
        return _Status(self.epoch)

    def restart(self) -> None:
        """What a server that was started anew knows: nothing."""
        self.epoch += 1
        self.infos.clear()


class _Status:
    def __init__(self, epoch: int) -> None:
        self.epoch = epoch
        self.epochs = frozenset({epoch})


class FakeSession:
    """Serves proxies that are given `session=fake.session`."""

    def __init__(self) -> None:
        self.calls = FakeCalls()

    @property
    def session(self) -> Session:
        return cast(Session, self)


def stored(spec: ParameterSpec, *, epoch: int = EPOCH, **changes: Any) -> StoredInfo:
    """What a server says of a parameter that was just declared."""
    info = StoredInfo(
        declared=spec,
        current=spec,
        state="declared",
        contexts=(),
        version=Version(epoch, 0),
        awaits_client_value=False,
        value_bytes=0,
        gradient_bytes=0,
    )
    return replace(info, **changes)
