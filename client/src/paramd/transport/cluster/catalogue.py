"""Where every parameter is, and whether every shard has its part.

The home shard is the truth: a parameter exists where its home shard holds it, and has a value where
that has one. What another shard lacks, because whoever made the parameter died in between or
is not done yet, whoever comes next catches up on.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeVar

from paramd.context import Context
from paramd.errors import (
    AttributeMismatchError,
    DeferredInitializationError,
    InvalidRegionError,
    NoGradientError,
    NotInitializedError,
    ParameterNotFoundError,
    PermissionDeniedError,
    RowIdError,
    ShapeMismatchError,
    UninitializedContextError,
    UninitializedValueError,
    WrongStorageTypeError,
)
from paramd.placement import home_shard, layout_of
from paramd.spec import InitializeEntry, ParameterSpec, Shape, StoredInfo
from paramd.transport.cluster.infos import (
    INCOMPLETE,
    Lack,
    absent,
    lack_of,
    local_spec,
    merged_info,
)
from paramd.transport.cluster.placed import Placed, placed_by
from paramd.transport.cluster.shards import Shards

__all__ = ["STALE", "Catalogue", "StalePlacementError", "Survey"]

T = TypeVar("T")


class StalePlacementError(Exception):
    """What came is not what this client thought to be there. It never reaches a user."""


# What a call gets that goes by a parameter as it was before another client made it anew.
STALE: Final = (
    StalePlacementError,
    ParameterNotFoundError,
    NotInitializedError,
    DeferredInitializationError,
    UninitializedValueError,
    UninitializedContextError,
    NoGradientError,
    ShapeMismatchError,
    InvalidRegionError,
    RowIdError,
    WrongStorageTypeError,
)


@dataclass(frozen=True)
class Survey:
    """What the shards say of one parameter.

    Attributes:
        placed: where it is.
        home: of the home shard.
        others: of the other shards that have parts, by shard.
    """

    placed: Placed
    home: StoredInfo
    others: Mapping[int, StoredInfo]

    @property
    def info(self) -> StoredInfo:
        """The parameter as users see it."""
        if not self.placed.is_spread:
            return self.home
        return merged_info(self.home, list(self.others.values()))

    def lacking(self, *lacks: Lack) -> list[int]:
        """The shards whose parts lack one of these."""
        return [shard for shard, other in self.others.items() if lack_of(self.home, other) in lacks]


class Catalogue:
    """What one session knows of where parameters are. Thread-safe.

    Args:
        shards: of the cluster.
    """

    def __init__(self, shards: Shards) -> None:
        self._shards = shards
        self._lock = threading.Lock()
        self._known: dict[str, Placed] = {}  # guarded by _lock

    def home(self, name: str) -> int:
        """The shard that always has a parameter's spec."""
        return home_shard(name, len(self._shards))

    def would_spread(self, spec: ParameterSpec, shape: Shape) -> bool:
        """Whether a parameter of that shape is spread, or would be."""
        shards, elements = len(self._shards), self._shards.split_elements
        return layout_of(spec.name, shape, spec.stype, shards, elements).is_spread

    def by_home(self, names: Iterable[str]) -> dict[int, list[str]]:
        """Names by their home shards, each once."""
        found: dict[int, list[str]] = {}
        for name in dict.fromkeys(names):
            found.setdefault(self.home(name), []).append(name)
        return found

    def placed(self, names: Iterable[str]) -> dict[str, Placed]:
        """Where parameters are. Asks for those that are not known yet, and completes them.

        Raises:
            ParameterNotFoundError: where there is none of a name.
        """
        wanted = list(dict.fromkeys(names))
        with self._lock:
            found = {name: self._known[name] for name in wanted if name in self._known}
        missing = [name for name in wanted if name not in found]
        if missing:
            found |= {name: survey.placed for name, survey in self.survey(missing).items()}
        return found

    def again(self, names: Iterable[str], call: Callable[[Mapping[str, Placed]], T]) -> T:
        """Makes a call about parameters, and again where they are not what they were thought to be.

        Args:
            names: of the parameters.
            call: gets where each is; changes nothing on a shard where it raises one of STALE.
        """
        wanted = list(dict.fromkeys(names))
        placed = self.placed(wanted)
        try:
            return call(placed)
        except STALE as err:
            surveys = self.survey(wanted)
            fresh = {name: survey.placed for name, survey in surveys.items()}
            completed = any(survey.placed.is_spread for survey in surveys.values())
            if fresh == placed and not completed and not isinstance(err, StalePlacementError):
                raise
        try:
            return call(fresh)
        except StalePlacementError as err:
            raise ShapeMismatchError(f"{err}: it changed during the call") from None

    def forget(self, names: Iterable[str]) -> None:
        """Forgets parameters that are gone."""
        with self._lock:
            for name in names:
                self._known.pop(name, None)

    def describe(self, names: Sequence[str]) -> list[StoredInfo]:
        """Describes parameters as users see them; one round trip where it is known where they are.

        Raises:
            ParameterNotFoundError: where there is none of a name.
        """
        with self._lock:
            known = [self._known[name] for name in dict.fromkeys(names) if name in self._known]
        if len(known) == len(set(names)):
            quick = self._look(known)
            if quick is not None:
                return [quick[name].info for name in names]
        surveys = self.survey(names)
        return [surveys[name].info for name in names]

    def _look(self, placed: Sequence[Placed]) -> dict[str, Survey] | None:
        """What all shards say; None where it is not what was thought, or something lacks."""
        names: dict[int, list[str]] = {}
        for each in placed:
            for shard in each.shards:
                names.setdefault(shard, []).append(each.name)
        try:
            found = self._describe(names)
        except ParameterNotFoundError:
            return None
        surveys = {}
        for each in placed:
            others = {shard: found[shard][each.name] for shard in each.shards if shard != each.home}
            survey = Survey(each, found[each.home][each.name], others)
            if self._place(survey.home) != each or any(
                lack_of(survey.home, other) is not Lack.NOTHING for other in others.values()
            ):
                return None
            surveys[each.name] = survey
        return surveys

    def survey(self, names: Iterable[str]) -> dict[str, Survey]:
        """Asks the home shards, and completes what other shards lack and can be caught up on.

        Raises:
            ParameterNotFoundError: where there is none of a name.
        """
        return self.complete(list(self.at_home(names).values()))

    def at_home(self, names: Iterable[str]) -> dict[str, StoredInfo]:
        """What the home shards say, and nothing more.

        Raises:
            ParameterNotFoundError: where there is none of a name.
        """
        wanted = list(dict.fromkeys(names))
        try:
            found = self._describe(self.by_home(wanted))
        except ParameterNotFoundError:
            self.forget(wanted)
            raise
        infos = {name: info for shard in found.values() for name, info in shard.items()}
        return {name: infos[name] for name in wanted}

    def complete(self, homes: Sequence[StoredInfo], *, are_new: bool = False) -> dict[str, Survey]:
        """Sees to it that every shard has its part, as far as the home shard knows it.

        Args:
            homes: what the home shards say.
            are_new: whether the other shards will hardly have them.
        """
        surveys = {info.current.name: Survey(self._place(info), info, {}) for info in homes}
        missing: dict[int, list[Survey]] = {}
        for survey in surveys.values():
            for shard in survey.placed.shards:
                if shard != survey.placed.home:
                    missing.setdefault(shard, []).append(survey)
        found = self._shards.run(
            {
                shard: partial(self._complete_on, shard, each, is_new=are_new)
                for shard, each in missing.items()
            }
        )
        for name, survey in surveys.items():
            others = {shard: infos[name] for shard, infos in found.items() if name in infos}
            surveys[name] = Survey(survey.placed, survey.home, others)
        with self._lock:
            for name, survey in surveys.items():
                # Where a parameter is that has no value yet, another client may decide.
                settled = survey.placed.state == "initialized"
                if not settled or survey.lacking(*INCOMPLETE):
                    self._known.pop(name, None)
                else:
                    self._known[name] = survey.placed
        return surveys

    def _place(self, info: StoredInfo) -> Placed:
        return placed_by(info, self.home(info.current.name), len(self._shards))

    def _describe(self, names: Mapping[int, list[str]]) -> dict[int, dict[str, StoredInfo]]:
        found = self._shards.run(
            {
                shard: partial(self._shards.calls[shard].describe, each)
                for shard, each in names.items()
            }
        )
        return {
            shard: {info.current.name: info for info in infos} for shard, infos in found.items()
        }

    def _complete_on(
        self, shard: int, surveys: Sequence[Survey], *, is_new: bool
    ) -> dict[str, StoredInfo]:
        """Declares and, where that can be done, initializes parts on one shard."""
        homes = {survey.home.current.name: survey.home for survey in surveys}
        specs = {
            survey.home.current.name: local_spec(
                survey.home.current, survey.placed.layout.parts[shard]
            )
            for survey in surveys
        }
        found: dict[str, StoredInfo] = {}
        if not is_new:
            with suppress(ParameterNotFoundError):
                found = self._look_on(shard, specs)
        try:
            self._catch_up_on(shard, specs, homes, found)
        except PermissionDeniedError:
            # Who may only read waits for somebody else to do it.
            found |= self._look_one_by_one(shard, specs)
            for name, home in homes.items():
                found.setdefault(name, absent(home))
        return found

    def _look_on(self, shard: int, specs: Mapping[str, ParameterSpec]) -> dict[str, StoredInfo]:
        """What a shard has of parts; nothing of those that are to be declared."""
        infos = self._shards.calls[shard].describe(list(specs))
        return {
            info.current.name: info
            for info in infos
            if info.current.part == specs[info.current.name].part
        }

    def _look_one_by_one(
        self, shard: int, specs: Mapping[str, ParameterSpec]
    ) -> dict[str, StoredInfo]:
        found: dict[str, StoredInfo] = {}
        for name, spec in specs.items():
            with suppress(ParameterNotFoundError):
                found |= self._look_on(shard, {name: spec})
        return found

    def _catch_up_on(
        self,
        shard: int,
        specs: Mapping[str, ParameterSpec],
        homes: Mapping[str, StoredInfo],
        found: dict[str, StoredInfo],
    ) -> None:
        missing = {name: spec for name, spec in specs.items() if name not in found}
        if missing:
            found |= self._declare_on(shard, missing)
        left_over = [
            name for name, info in found.items() if lack_of(homes[name], info) is Lack.LEFT_OVER
        ]
        for name in left_over:
            found[name] = self._replace_on(shard, specs[name]) or found[name]
        for forced, lack in ((False, Lack.FIRST_VALUE), (True, Lack.NEW_VALUE)):
            lacking = [homes[name] for name in found if lack_of(homes[name], found[name]) is lack]
            found |= self._initialize_on(shard, lacking, forced=forced)

    def _declare_on(self, shard: int, specs: Mapping[str, ParameterSpec]) -> dict[str, StoredInfo]:
        calls = self._shards.calls[shard]
        try:
            infos = calls.declare([(spec, frozenset()) for spec in specs.values()])
        except AttributeMismatchError:
            if len(specs) > 1:
                return {
                    name: info
                    for name, spec in specs.items()
                    for info in self._declare_on(shard, {name: spec}).values()
                }
            ((name, spec),) = specs.items()
            info = self._replace_on(shard, spec)
            if info is None:
                raise
            return {name: info}
        return dict(zip(specs, infos, strict=True))

    def _replace_on(self, shard: int, spec: ParameterSpec) -> StoredInfo | None:
        """Puts a new part in the place of one that was left over of a parameter that is gone.

        Returns:
            None where the home shard says otherwise by now.
        """
        home = self.home(spec.name)
        (now,) = self._shards.calls[home].describe([spec.name])
        placed = self._place(now)
        if now.state != "declared":
            # Somebody has given it a value since, here too.
            (there,) = self._shards.calls[shard].describe([spec.name])
            if there.current.part == spec.part:
                return there
        if placed.layout.parts.get(shard) != spec.part:
            return None
        self.delete_on(shard, [spec.name])
        (info,) = self._shards.calls[shard].declare([(spec, frozenset())])
        return info

    def delete_on(self, shard: int, names: Sequence[str]) -> None:
        """Removes what one shard has of parameters; what it has not is passed over."""
        calls = self._shards.calls[shard]
        try:
            calls.delete(names)
        except ParameterNotFoundError:
            if len(names) > 1:
                for name in names:
                    self.delete_on(shard, [name])

    def _initialize_on(
        self, shard: int, homes: Sequence[StoredInfo], *, forced: bool
    ) -> dict[str, StoredInfo]:
        by_contexts: dict[tuple[Context, ...], list[InitializeEntry]] = {}
        for home in homes:
            first = home.first_value
            assert first is not None
            entry = InitializeEntry(home.current.name, first.init, first.seed, first.draw)
            by_contexts.setdefault(first.contexts, []).append(entry)
        found: dict[str, StoredInfo] = {}
        for contexts, entries in by_contexts.items():
            outcomes = self._shards.calls[shard].initialize(entries, contexts, force_reinit=forced)
            found |= {info.current.name: info for _, info in outcomes}
        return found
