"""How parameters that are spread come to be: declared, initialized, given a shape.

The home shard decides: of several clients the first one there wins, and all others complete what it
has decided. Where a client computes the value itself, or replaces one, no shard can tell whose
part belongs to whose; so one client does that at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from typing import Final

from paramd.context import Context
from paramd.errors import (
    AttributeMismatchError,
    ContextNotAvailableError,
    InitializerError,
    InvalidArgumentError,
    ParameterNotFoundError,
    ShapeMismatchError,
    UnknownShapeError,
)
from paramd.initial_values import check
from paramd.placement import layout_of
from paramd.spec import (
    InitializeEntry,
    ParameterSpec,
    Shape,
    StoredInfo,
    check_name,
    merge_shapes,
    shape_is_known,
)
from paramd.transport.cluster.catalogue import Catalogue, Survey
from paramd.transport.cluster.infos import Lack, local_spec, whole_shape
from paramd.transport.cluster.shards import Shards
from paramd.transport.coordination import alone

__all__ = ["FirstValues", "merged"]

Declaration = tuple[ParameterSpec, frozenset[str]]

_CLAIM: Final = "paramd: first values"
_LEASE_SECONDS: Final = 10.0
_DEVICE_NAMES: Final = {1: "cpu", 2: "gpu", 3: "cpu_pinned", 4: "cpu_shared"}


class FirstValues:
    """Declares and initializes parameters on the shards of a cluster. Thread-safe.

    Args:
        shards: of the cluster.
        catalogue: knows where parameters are.
    """

    def __init__(self, shards: Shards, catalogue: Catalogue) -> None:
        self._shards = shards
        self._catalogue = catalogue

    def alone(self) -> AbstractContextManager[None]:
        """A block in which no other client gives first values that no shard could compute."""
        return alone(self._shards.coordinator, _CLAIM, _LEASE_SECONDS)

    # Declaring

    def declare(self, declarations: Sequence[Declaration]) -> list[StoredInfo]:
        """Creates parameters, or attaches to them: see `Calls.declare`. Atomic on each shard."""
        specs = [(self._at_home(spec), compared) for spec, compared in declarations]
        try:
            homes = self._declare_at_home(specs)
        except AttributeMismatchError:
            # It may be there in one piece, because it became known piece by piece, or was before.
            again = self._as_there(specs)
            if again == specs:
                raise
            homes = self._declare_at_home(again)
        surveys = self._catalogue.complete(list(homes.values()), are_new=True)
        return [surveys[spec.name].info for spec, _ in declarations]

    def _at_home(self, spec: ParameterSpec) -> ParameterSpec:
        check_name(spec.name)
        layout = layout_of(
            spec.name, spec.shape, spec.stype, len(self._shards), self._shards.split_elements
        )
        return local_spec(spec, layout.parts[layout.home]) if layout.is_spread else spec

    def _declare_at_home(self, specs: Sequence[Declaration]) -> dict[str, StoredInfo]:
        by_home: dict[int, list[Declaration]] = {}
        for spec, compared in specs:
            by_home.setdefault(self._catalogue.home(spec.name), []).append((spec, compared))
        found = self._shards.run(
            {
                home: partial(self._shards.calls[home].declare, each)
                for home, each in by_home.items()
            }
        )
        return {info.current.name: info for infos in found.values() for info in infos}

    def _as_there(self, specs: Sequence[Declaration]) -> list[Declaration]:
        """The declarations, of each parameter in the piece in which its home shard has it."""
        changed = []
        for spec, compared in specs:
            home = self._shards.calls[self._catalogue.home(spec.name)]
            try:
                (there,) = home.describe([spec.name])
            except ParameterNotFoundError:
                changed.append((spec, compared))
                continue
            now = there.current
            if now.part != spec.part and whole_shape(now) == whole_shape(spec):
                spec = replace(spec, shape=now.shape, part=now.part)
            changed.append((spec, compared))
        return changed

    # Initializing

    def initialize(
        self,
        entries: Sequence[InitializeEntry],
        contexts: Sequence[Context],
        *,
        force_reinit: bool,
    ) -> list[tuple[str, StoredInfo]]:
        """Gives parameters their first values: see `Calls.initialize`."""
        names = [entry.name for entry in entries]
        if len(set(names)) < len(names):
            raise InvalidArgumentError(
                "a parameter is initialized once in a call, but one comes twice"
            )
        surveys = self._catalogue.survey(names)
        self._check(entries, contexts, surveys, force_reinit=force_reinit)
        replaced = force_reinit and any(survey.placed.is_spread for survey in surveys.values())
        if not replaced and not _halves(entries, surveys):
            return self._initialize(entries, contexts, surveys, force_reinit=force_reinit)
        with self.alone():
            surveys = self._catalogue.survey(names)
            return self._initialize(entries, contexts, surveys, force_reinit=force_reinit)

    def _initialize(
        self,
        entries: Sequence[InitializeEntry],
        contexts: Sequence[Context],
        surveys: Mapping[str, Survey],
        *,
        force_reinit: bool,
    ) -> list[tuple[str, StoredInfo]]:
        halves = _halves(entries, surveys)
        # Their client's value comes next, and to every shard.
        awaited = {
            entry.name
            for entry in entries
            if entry.init.client_side and surveys[entry.name].lacking(Lack.CLIENT_VALUE)
        }
        outcomes: dict[str, tuple[str, StoredInfo]] = {}
        for forced in (False, True):
            chosen = [
                entry
                for entry in entries
                if (force_reinit or entry.name in halves) == forced and entry.name not in awaited
            ]
            outcomes |= self._initialize_at_home(chosen, contexts, forced=forced)
            if forced:
                self._replace_elsewhere(chosen, contexts, outcomes, surveys)
        outcomes |= {name: ("deferred", surveys[name].info) for name in awaited}
        for entry in entries:
            word, home = outcomes[entry.name]
            survey = surveys[entry.name]
            if word == "deferred" and home.state == "initialized" and survey.others:
                # The value stays until the client's comes, on every shard.
                outcomes[entry.name] = word, survey.info
        completed = self._catalogue.complete(
            [
                home
                for name, (word, home) in outcomes.items()
                if not (word == "deferred" and home.state == "initialized") and name not in awaited
            ]
        )
        return [
            (
                outcomes[entry.name][0],
                completed[entry.name].info if entry.name in completed else outcomes[entry.name][1],
            )
            for entry in entries
        ]

    def _replace_elsewhere(
        self,
        entries: Sequence[InitializeEntry],
        contexts: Sequence[Context],
        outcomes: Mapping[str, tuple[str, StoredInfo]],
        surveys: Mapping[str, Survey],
    ) -> None:
        """Replaces the values of the other shards, whatever they are the first values of."""
        by_shard: dict[int, list[InitializeEntry]] = {}
        for entry in entries:
            if outcomes[entry.name][0] == "initialized":
                for shard in surveys[entry.name].others:
                    by_shard.setdefault(shard, []).append(entry)
        self._shards.run(
            {
                shard: partial(
                    self._shards.calls[shard].initialize, each, contexts, force_reinit=True
                )
                for shard, each in by_shard.items()
            }
        )

    def _initialize_at_home(
        self, entries: Sequence[InitializeEntry], contexts: Sequence[Context], *, forced: bool
    ) -> dict[str, tuple[str, StoredInfo]]:
        by_home: dict[int, list[InitializeEntry]] = {}
        for entry in entries:
            by_home.setdefault(self._catalogue.home(entry.name), []).append(entry)
        found = self._shards.run(
            {
                home: partial(
                    self._shards.calls[home].initialize, each, contexts, force_reinit=forced
                )
                for home, each in by_home.items()
            }
        )
        return {
            info.current.name: (word, info)
            for outcomes in found.values()
            for word, info in outcomes
        }

    def _check(
        self,
        entries: Sequence[InitializeEntry],
        contexts: Sequence[Context],
        surveys: Mapping[str, Survey],
        *,
        force_reinit: bool,
    ) -> None:
        """Raises what a shard would, before any of them has changed anything."""
        shards = {shard for survey in surveys.values() for shard in survey.placed.shards}
        self.check_contexts(contexts, shards)
        for entry in entries:
            info = surveys[entry.name].info
            spec = info.current
            if info.state == "initialized" and not force_reinit:
                continue
            if not shape_is_known(spec.shape) and not spec.allow_deferred_init:
                raise UnknownShapeError(
                    f"Cannot initialize Parameter '{spec.name}' because it has invalid shape: "
                    f"{spec.shape}",
                    parameter=spec.name,
                )
            check(entry.init, spec.name, spec.shape, spec.dtype)
            if spec.stype == "csr" and entry.init.name in ("zero", "one", "constant"):
                raise InitializerError(
                    f"Parameter '{spec.name}': a csr parameter cannot be filled with one number",
                    parameter=spec.name,
                )

    def check_contexts(self, contexts: Sequence[Context], shards: set[int]) -> None:
        """Checks that shards have contexts.

        Raises:
            InvalidArgumentError: for an empty list.
            ContextNotAvailableError: where one lacks one.
        """
        if not contexts:
            raise InvalidArgumentError(
                "a parameter lives on at least one context, but none was given"
            )
        for shard in sorted(shards):
            # Once a session: what a server has stays the same while it runs.
            answer = self._shards.connections[shard].greeted()
            types = {_DEVICE_NAMES.get(number, "") for number in answer.device_types}
            for context in contexts:
                gpu = context.device_type == "gpu"
                if context.device_type not in types or (
                    gpu and context.device_id >= answer.num_gpus
                ):
                    has = f"{', '.join(sorted(types))}; gpus: {answer.num_gpus}"
                    raise ContextNotAvailableError(
                        f"shard {shard}, {self._shards.address(shard)}, has no context {context}; "
                        f"it has {has}"
                    )

    # Shapes

    def settle(self, shapes: Mapping[str, Shape]) -> None:
        """Gives parameters their shapes, and the shards their parts.

        Args:
            shapes: by name; those that are known already stay.

        Raises:
            ShapeMismatchError: where a known dimension would change; nothing has been changed then.
        """
        surveys = self._catalogue.survey(shapes)
        for name, shape in shapes.items():
            known = surveys[name].info.current.shape
            if known is not None and (
                len(known) != len(shape)
                or any(old not in (0, -1, new) for old, new in zip(known, shape, strict=True))
            ):
                raise ShapeMismatchError(
                    f"Parameter '{name}': Expected shape {shape} is incompatible with given shape "
                    f"{known}",
                    parameter=name,
                )
        vague = {
            name: shape
            for name, shape in shapes.items()
            if not shape_is_known(surveys[name].info.current.shape)
        }
        by_home = self._catalogue.by_home(vague)
        self._shards.run(
            {
                home: partial(self._settle_at_home, home, {name: vague[name] for name in names})
                for home, names in by_home.items()
            }
        )
        self._catalogue.survey(vague)

    def _settle_at_home(self, home: int, shapes: Mapping[str, Shape]) -> None:
        calls = self._shards.calls[home]
        by_shape: dict[Shape, list[str]] = {}
        for name, shape in shapes.items():
            (info,) = calls.describe([name])
            layout = layout_of(
                name, shape, info.current.stype, len(self._shards), self._shards.split_elements
            )
            if layout.is_spread:
                part = layout.parts[home]
                calls.set_attribute([name], "shape", part.local_shape, part)
            else:
                by_shape.setdefault(shape, []).append(name)
        for shape, names in by_shape.items():
            calls.set_attribute(names, "shape", shape)


def _halves(entries: Sequence[InitializeEntry], surveys: Mapping[str, Survey]) -> set[str]:
    """Those that have no value as a whole, though the home shard has one, and get a new one."""
    return {
        entry.name
        for entry in entries
        if surveys[entry.name].lacking(Lack.LOST)
        or (not entry.init.client_side and surveys[entry.name].lacking(Lack.CLIENT_VALUE))
    }


def merged(known: Shape | None, given: Shape) -> Shape | None:
    """The shape that a value gives to a parameter; None where it contradicts what is known."""
    try:
        shape = merge_shapes(known, given)
    except ValueError:
        return None
    return shape if shape == given and 0 not in given else None
