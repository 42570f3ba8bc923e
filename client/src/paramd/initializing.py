"""`initialize` of one proxy or many: one Declare, one Initialize, at most one SetData."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

from paramd.context import Context
from paramd.files import RowSparseRows
from paramd.initializer import InitDesc, Initializer, create, to_spec
from paramd.link import (
    Held,
    InitializerLike,
    Link,
    describe,
    first_value,
    perform,
    session_of,
)
from paramd.ndarray import wrap
from paramd.random import next_key
from paramd.session import Session
from paramd.spec import InitializeEntry, Selector, StoredInfo, shape_is_known
from paramd.transport.protocols import SessionCalls

__all__ = ["initialize", "warn_repeated"]

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Choice:
    """What a parameter is initialized with.

    Attributes:
        link: the proxy.
        info: as the parameter was before.
        entry: what is sent.
        held: the initializer, where this process has to compute it.
    """

    link: Link
    info: StoredInfo
    entry: InitializeEntry
    held: Held | None


def initialize(
    links: Sequence[Link],
    init: InitializerLike | None,
    contexts: Sequence[Context],
    default_init: InitializerLike,
    *,
    force_reinit: bool,
) -> list[str]:
    """Initializes parameters.

    Args:
        links: proxies of one session.
        init: comes before the declared initializers, if it is not None.
        contexts: of the copies.
        default_init: for those without a declared initializer.
        force_reinit: replaces values that are there.

    Returns:
        Names of those that had got a value through their proxy before, and keep it.
    """
    if not links:
        return []
    session = session_of(links)
    choices = _choose(session, links, init, default_init)
    # Before anything is changed, so that an initializer that fails leaves everything as it was. A
    # worker that comes late sees the value of the first, and computes nothing.
    values = {
        choice.link.name: first_value(choice.link.name, choice.held, choice.info)
        for choice in choices
        if choice.held is not None
        and shape_is_known(choice.info.current.shape)
        and (force_reinit or choice.info.state != "initialized")
    }

    def call(calls: SessionCalls) -> list[tuple[str, StoredInfo]]:
        entries = [choice.entry for choice in choices]
        return calls.initialize(entries, contexts, force_reinit=force_reinit)

    outcomes = perform(session, links, call)
    repeated: list[str] = []
    filled: list[tuple[_Choice, StoredInfo]] = []
    computed: list[tuple[_Choice, StoredInfo]] = []
    for choice, (outcome, info) in zip(choices, outcomes, strict=True):
        known = choice.link.note(session, info)
        if outcome == "already_initialized":
            if known.is_valued:
                repeated.append(choice.link.name)
        else:
            known.held = choice.held
        if outcome == "initialized":
            filled.append((choice, info))
        elif outcome == "deferred" and choice.link.name in values:
            computed.append((choice, info))
        known.is_valued = True
    if computed:
        writes = [values[choice.link.name] for choice, _ in computed]
        session.calls.set_data(
            writes, initialize=True, force_reinit=force_reinit, contexts=contexts
        )
    for choice, _ in computed:
        choice.link.note_value(session)
    _log(session, filled + computed, default_init)
    return repeated


def warn_repeated(names: Sequence[str], *, stacklevel: int) -> None:
    """Warns of parameters that have a value, which an `initialize` did not replace.

    Args:
        names: of them.
        stacklevel: as of `warnings.warn`, as if the caller of this had warned.
    """
    for name in names:
        warnings.warn(
            f"Parameter '{name}' is already initialized, ignoring. "
            "Set force_reinit=True to re-initialize.",
            stacklevel=stacklevel,
        )


def _choose(
    session: Session,
    links: Sequence[Link],
    init: InitializerLike | None,
    default_init: InitializerLike,
) -> list[_Choice]:
    choices = []
    for link, info in zip(links, describe(session, links), strict=True):
        declared = info.current.init
        initializer: InitializerLike | None = default_init if init is None else init
        if init is None and declared is not None:
            # Another worker may have declared what this proxy holds no object of.
            spec, initializer = declared, link.own_init(declared)
        else:
            spec = to_spec(default_init if init is None else init, link.name)
        seed, draw = next_key(link.name)
        held = None
        if spec.client_side and initializer is not None:
            held = Held(initializer, seed, draw)
        entry = InitializeEntry(name=link.name, init=spec, seed=seed, draw=draw)
        choices.append(_Choice(link, info, entry, held))
    return choices


def _log(
    session: Session,
    initialized: Sequence[tuple[_Choice, StoredInfo]],
    default_init: InitializerLike,
) -> None:
    """Logs through the default initializer's print function, if it was told to."""
    reporter = create(default_init)
    if not (isinstance(reporter, Initializer) and reporter._verbose):
        return
    for choice, info in initialized:
        held = choice.held
        shown = create(choice.entry.init) if held is None else held.initializer
        if info.current.stype != "default":
            # A table may be larger than this process's memory.
            _LOGGER.info("Initialized %s as %s: %s", choice.link.name, shown, info.current.stype)
            continue
        # One at a time, so that a model larger than this process's memory can be logged.
        selector = Selector(choice.link.name, info.contexts[0])
        _, value = session.calls.get_data([selector], info.contexts[0])[0]
        assert not isinstance(value, RowSparseRows)
        reporter._verbose_print(InitDesc(choice.link.name), shown, wrap(value, info.contexts[0]))
