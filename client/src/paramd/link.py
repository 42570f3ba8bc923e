"""What ties proxies to the server: declaring them once for each session, and asking what is now.

The functions take several proxies at once, because a call of `ParameterDict` is one round trip and
not one for each name. A proxy by itself is the case of one.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

from paramd.context import Context
from paramd.declaration import different_from_default
from paramd.errors import (
    DeferredInitializationError,
    ParamdError,
    ParameterNotFoundError,
)
from paramd.initializer import AnyInitializer, compute, to_spec
from paramd.session import Session, current_session
from paramd.spec import InitializerSpec, ParameterSpec, StoredInfo, shape_is_known
from paramd.transport.calls import TensorWrite
from paramd.transport.protocols import SessionCalls

__all__ = [
    "Attachment",
    "Held",
    "InitializerLike",
    "Link",
    "attach",
    "describe",
    "first_value",
    "perform",
    "session_of",
    "set_attribute",
    "supply",
]

Result = TypeVar("Result")

InitializerLike = AnyInitializer | str
"""An initializer, or what `init.create` makes one of."""


@dataclass(frozen=True)
class Held:
    """An initializer that only this process can compute, for a parameter that waits for it."""

    initializer: InitializerLike
    seed: int
    draw: int


@dataclass
class Attachment:
    """What a proxy knows of its parameter on one server.

    Attributes:
        info: as the server described it last. Only what can never change is read from it.
        is_valued: it got its value through this proxy, or was adopted by its `initialize`.
        held: what this proxy computes as soon as the shape is known.
    """

    info: StoredInfo
    is_valued: bool = False
    held: Held | None = None


class Link:
    """One proxy's declaration, and its attachments.

    Args:
        spec: as declared; its `init` counts only where `init` is None.
        init: the declared initializer, an object or a name.
        session: the one session that it belongs to, or None for the current one at each use.
        stated: the attributes that must agree with what is declared already; None for those that
            differ from the defaults.
    """

    def __init__(
        self,
        spec: ParameterSpec,
        init: InitializerLike | None,
        *,
        session: Session | None,
        stated: frozenset[str] | None = None,
    ) -> None:
        self.spec = spec
        self.init = init
        self.session = session
        has_init = init is not None or spec.init is not None
        self.stated = different_from_default(spec, has_init=has_init) if stated is None else stated
        # What was assigned after it was attached: no declaration any more, but perhaps an object
        # that only this process has.
        self.assigned_init: InitializerLike | None = None
        self.was_attached = False
        self._attachments: weakref.WeakKeyDictionary[Session, Attachment] = (
            weakref.WeakKeyDictionary()
        )

    @property
    def name(self) -> str:
        """The parameter's name."""
        return self.spec.name

    @property
    def declared_spec(self) -> ParameterSpec:
        """The declaration with its initializer as data.

        Raises:
            AssertionError: where `init` is no initializer.
        """
        if self.init is None:
            return self.spec
        return replace(self.spec, init=to_spec(self.init, self.name))

    def own_init(self, spec: InitializerSpec | None) -> InitializerLike | None:
        """The initializer of this proxy that a spec stands for, or None."""
        for init in (self.assigned_init, self.init):
            if init is not None and to_spec(init, self.name) == spec:
                return init
        return None

    def find_session(self) -> Session:
        """The session that serves it now.

        Raises:
            NoSessionError: where there is none.
        """
        return current_session() if self.session is None else self.session

    def attachment(self, session: Session) -> Attachment | None:
        """Its attachment to a session, or None."""
        return self._attachments.get(session)

    def attached_session(self) -> Session | None:
        """The session that knows its attributes, or None while the declaration is all there is.

        Raises:
            NoSessionError: where it was attached, and now no session serves it.
        """
        if not self.was_attached:
            return None
        session = self.find_session()
        return session if session in self._attachments else None

    def note(self, session: Session, info: StoredInfo) -> Attachment:
        """Keeps what the server has just said."""
        known = self._attachments.get(session)
        if known is None or known.info.version.epoch != info.version.epoch:
            # Another start of the server: nothing of before holds.
            known = self._attachments[session] = Attachment(info)
            self.was_attached = True
        known.info = info
        return known

    def forget(self, session: Session | None = None) -> None:
        """Detaches it from one session, or from all."""
        if session is None:
            self._attachments.clear()
            self.was_attached = False
        else:
            self._attachments.pop(session, None)

    def note_value(self, session: Session) -> None:
        """Keeps that the value came through this proxy, so that `initialize` would repeat it."""
        known = self._attachments.get(session)
        if known is not None:
            known.is_valued = True
            known.held = None

    def known_spec(self) -> ParameterSpec:
        """What can never change: from the server where it is attached, else as declared."""
        session = self.attached_session()
        known = None if session is None else self._attachments.get(session)
        return self.spec if known is None else known.info.current

    def change(self, attribute: str, value: Any) -> None:
        """Changes the declaration of a proxy that is not attached."""
        if attribute == "init":
            self.init = value
            self.spec = replace(self.spec, init=None)
        elif attribute == "grad_req" and not self.spec.differentiable:
            return
        else:
            self.spec = replace(self.spec, **{attribute: value})
        self.stated |= {attribute}


def session_of(links: Sequence[Link]) -> Session:
    """The session that serves all of them; the current one if there are none.

    Raises:
        NoSessionError: where there is none.
        ValueError: where they belong to several.
    """
    sessions = [link.find_session() for link in links]
    for link, session in zip(links, sessions, strict=True):
        if session is not sessions[0]:
            raise ValueError(
                f"parameters {links[0].name!r} and {link.name!r} belong to different sessions, so "
                "one call cannot serve both"
            )
    return sessions[0] if sessions else current_session()


def attach(session: Session, links: Sequence[Link]) -> None:
    """Declares those that the session does not know yet: one round trip, or none.

    Raises:
        AttributeMismatchError: where one contradicts what is declared; then none is attached.
    """
    new = [link for link in links if link.attachment(session) is None]
    if not new:
        return
    infos = session.calls.declare([(link.declared_spec, link.stated) for link in new])
    for link, info in zip(new, infos, strict=True):
        link.note(session, info)


def describe(session: Session, links: Sequence[Link]) -> list[StoredInfo]:
    """What the server says of them now. Declares those that it does not know yet."""
    before = {id(link) for link in links if link.attachment(session) is not None}
    attach(session, links)
    known = [link for link in links if id(link) in before]

    def ask(calls: SessionCalls) -> list[StoredInfo]:
        return calls.describe([link.name for link in known])

    if known:
        for link, info in zip(known, _reattaching(session, known, ask), strict=True):
            link.note(session, info)
    found = [link.attachment(session) for link in links]
    return [attachment.info for attachment in found if attachment is not None]


def perform(
    session: Session, links: Sequence[Link], call: Callable[[SessionCalls], Result]
) -> Result:
    """Makes a call about parameters, attaching them before.

    Where the call finds that a value waits for an initializer that one of these proxies holds, the
    value is computed and sent, and the call made again. Where the server has been started anew
    since, the parameters are declared to it again.

    Args:
        session: serves them.
        links: all that the call is about.
        call: changes nothing when it raises.
    """
    attach(session, links)
    try:
        return _reattaching(session, links, call)
    except DeferredInitializationError:
        if not supply(session, links, describe(session, links)):
            raise
    return call(session.calls)


def set_attribute(session: Session, links: Sequence[Link], attribute: str, value: Any) -> None:
    """Changes an attribute of attached parameters, in one round trip for one value.

    Args:
        session: serves them.
        links: their proxies.
        attribute: 'shape', 'grad_req', 'lr_mult', 'wd_mult' or 'init'.
        value: checked, except for an initializer, which may choose by the name.

    Raises:
        AssertionError: where the value fits one of them not.
    """
    names = [link.name for link in links]
    if attribute != "init" or value is None:
        if attribute == "init":
            for link in links:
                link.assigned_init = None
        perform(session, links, lambda calls: calls.set_attribute(names, attribute, value))
        return
    for spec, group in _by_spec(value, links):
        named = [link.name for link in group]
        perform(session, group, partial(_set_init, names=named, spec=spec))
    for link in links:
        link.assigned_init = value


def _by_spec(
    init: InitializerLike, links: Sequence[Link]
) -> list[tuple[InitializerSpec, list[Link]]]:
    """Links by what an initializer is for them: nearly always all are one group."""
    groups: list[tuple[InitializerSpec, list[Link]]] = []
    for link in links:
        spec = to_spec(init, link.name)
        for known, group in groups:
            if known == spec:
                group.append(link)
                break
        else:
            groups.append((spec, [link]))
    return groups


def _set_init(calls: SessionCalls, *, names: Sequence[str], spec: InitializerSpec) -> None:
    calls.set_attribute(names, "init", spec)


def _reattaching(
    session: Session, links: Sequence[Link], call: Callable[[SessionCalls], Result]
) -> Result:
    try:
        return call(session.calls)
    except ParameterNotFoundError:
        if not _forget_old_epoch(session, links):
            raise
    attach(session, links)
    return call(session.calls)


def _forget_old_epoch(session: Session, links: Sequence[Link]) -> bool:
    """Detaches what a server knew that has ended. A deleted parameter stays as it is."""
    epochs = session.calls.status().epochs
    old = [
        link
        for link in links
        if (known := link.attachment(session)) is not None
        and known.info.version.epoch not in epochs
    ]
    for link in old:
        link.forget(session)
    return bool(old)


def supply(session: Session, links: Sequence[Link], infos: Sequence[StoredInfo]) -> bool:
    """Computes and sends the values that wait for the initializers that these proxies hold.

    Args:
        session: serves them.
        links: some proxies.
        infos: what the server says of each.

    Returns:
        Whether a value was sent: one stream for all that go to the same contexts.
    """
    waiting: dict[tuple[Context, ...], list[TensorWrite]] = {}
    supplied = []
    for link, info in zip(links, infos, strict=True):
        known = link.attachment(session)
        if known is None or known.held is None or not info.awaits_client_value:
            continue
        write = first_value(link.name, known.held, info)
        waiting.setdefault(info.contexts, []).append(write)
        supplied.append(known)
    for contexts, writes in waiting.items():
        session.calls.set_data(writes, initialize=True, contexts=contexts)
    for known in supplied:
        known.held = None
    return bool(supplied)


def first_value(name: str, held: Held, info: StoredInfo) -> TensorWrite:
    """Computes what an initializer of this process gives to a parameter.

    Raises:
        ParamdError: where the shape is not known.
    """
    shape = info.current.shape
    if shape is None or not shape_is_known(shape):
        raise ParamdError(f"parameter {name!r} has no known shape: {shape}", parameter=name)
    value = compute(
        held.initializer, name, shape, info.current.dtype, seed=held.seed, draw=held.draw
    )
    return TensorWrite(name, value)
