"""The calls of one session with the shards of a cluster, as if they were one server."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Final, TypeVar

import numpy as np

from paramd.context import Context
from paramd.errors import (
    InvalidArgumentError,
    ShapeMismatchError,
    UninitializedContextError,
)
from paramd.placement import home_shard
from paramd.spec import (
    InitializeEntry,
    LoadOptions,
    ParameterSpec,
    Selector,
    StoredInfo,
    TensorHead,
    Version,
    shape_is_known,
)
from paramd.transport.calls import Calls
from paramd.transport.cluster.catalogue import STALE, Catalogue, StalePlacementError
from paramd.transport.cluster.first_values import FirstValues, merged
from paramd.transport.cluster.infos import absent, merged_info, merged_status
from paramd.transport.cluster.loading import load
from paramd.transport.cluster.placed import Placed, placed_by
from paramd.transport.cluster.reading import ReadPlan, RowsPlan, plan_reads
from paramd.transport.cluster.saving import save
from paramd.transport.cluster.shards import Shards
from paramd.transport.cluster.slicing import check_row_ids
from paramd.transport.cluster.training import ClusterTrainingCalls
from paramd.transport.cluster.whole_steps import whole_step
from paramd.transport.cluster.writing import plan_writes
from paramd.transport.protocols import Received
from paramd.transport.receiving import Out, SinkFactory
from paramd.transport.records import SessionStatus, TensorValue, TensorWrite

__all__ = ["ClusterCalls"]

T = TypeVar("T")


# Writes that leave the same when they are made twice.
_REPEATABLE: Final = ("assign", "assign_rows")


class _HalfWritten(Exception):
    """A write that a shard refused and another one took, so that it cannot be made again."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


class ClusterCalls:
    """The calls of one session with a cluster: see `Calls`. Thread-safe.

    What one call changes is changed in one step on each shard, and not on all of them at once: a
    reader may see the new value of one shard's part with the old one of another's. What can be
    checked is checked before anything is sent. A call that fails on one shard may have
    succeeded on others; the error is then the first shard's that failed, with notes on the others.

    Args:
        shards: of the cluster.

    Attributes:
        training: the calls about trainers.
        snapshots: the calls about snapshots, which are the coordinator's.
    """

    def __init__(self, shards: Shards) -> None:
        self._shards = shards
        self._catalogue = Catalogue(shards)
        self._first_values = FirstValues(shards, self._catalogue)
        self.training = ClusterTrainingCalls(shards, self._catalogue)
        self.snapshots = shards.calls[0].snapshots

    # What parameters are

    def declare(
        self, declarations: Sequence[tuple[ParameterSpec, frozenset[str]]]
    ) -> list[StoredInfo]:
        """Creates parameters, or attaches to those that exist."""
        return self._first_values.declare(declarations)

    def describe(self, names: Sequence[str]) -> list[StoredInfo]:
        """Describes parameters, in the order asked for."""
        return self._catalogue.describe(names) if names else []

    def list_parameters(self, prefix: str = "") -> list[StoredInfo]:
        """Describes all parameters whose name begins with `prefix`, in the order of their names.

        No shard knows in which order parameters of different home shards were created.
        """
        found = self._shards.run_all(
            lambda shard: {
                info.current.name: info
                for info in self._shards.calls[shard].list_parameters(prefix)
            }
        )
        infos = []
        for shard, held in enumerate(found):
            for name, info in held.items():
                if home_shard(name, len(self._shards)) != shard:
                    continue
                where = placed_by(info, shard, len(self._shards))
                others = [
                    found[other].get(name) or absent(info)
                    for other in where.shards
                    if other != shard
                ]
                infos.append(merged_info(info, others))
        return sorted(infos, key=lambda info: info.current.name)

    def delete(self, names: Sequence[str]) -> None:
        """Removes parameters: from their home shards, and then what other shards have of them."""
        self._catalogue.at_home(names)  # All or none, where one is unknown.
        by_home = self._catalogue.by_home(names)
        everywhere = range(len(self._shards))
        try:
            self._on_shards(by_home, lambda calls, each: calls.delete(each))
        finally:
            self._catalogue.forget(names)
        elsewhere = {
            shard: [name for name in dict.fromkeys(names) if self._catalogue.home(name) != shard]
            for shard in everywhere
        }
        self._shards.run(
            {
                shard: partial(self._catalogue.delete_on, shard, each)
                for shard, each in elsewhere.items()
                if each
            }
        )

    def initialize(
        self,
        entries: Sequence[InitializeEntry],
        contexts: Sequence[Context],
        *,
        force_reinit: bool,
    ) -> list[tuple[str, StoredInfo]]:
        """Gives parameters their first values."""
        return self._first_values.initialize(entries, contexts, force_reinit=force_reinit)

    def set_attribute(self, names: Sequence[str], attribute: str, value: Any) -> None:
        """Changes one attribute."""
        if attribute == "shape":
            self._first_values.settle(dict.fromkeys(names, tuple(value)))
            return
        self._everywhere(names, lambda calls, each: calls.set_attribute(each, attribute, value))
        if attribute == "grad_req":
            self._catalogue.forget(names)  # It is asked for again, and known then.

    def zero_grad(self, names: Sequence[str]) -> None:
        """Clears gradient buffers."""
        self._everywhere(names, lambda calls, each: calls.zero_grad(each))

    def cast(self, names: Sequence[str], dtype: np.dtype[Any]) -> None:
        """Casts values and gradients."""
        self._everywhere(names, lambda calls, each: calls.cast(each, dtype))

    def reset_ctx(self, names: Sequence[str], contexts: Sequence[Context]) -> None:
        """Moves parameters to other contexts."""
        surveys = self._catalogue.survey(names)
        shards = {shard for survey in surveys.values() for shard in survey.placed.shards}
        self._first_values.check_contexts(contexts, shards)
        for name, survey in surveys.items():
            if survey.info.state == "declared":
                raise UninitializedContextError(
                    f"Cannot reset context for Parameter '{name}' because it has not been "
                    "initialized",
                    parameter=name,
                )
        self._everywhere(names, lambda calls, each: calls.reset_ctx(each, contexts))

    # Values

    def get_data(
        self,
        selectors: Sequence[Selector],
        current_context: Context,
        *,
        out: Sequence[Out] | None = None,
    ) -> Received:
        """Pulls values; those of one shard are of one moment."""
        return self._get("get_data", selectors, current_context, out)

    def seen_in_place(self, _selector: Selector, _current_context: Context) -> TensorHead | None:
        """None: where a parameter is, and as what, is the business of several servers."""
        return None

    def get_values(
        self,
        selectors: Sequence[Selector],
        current_context: Context,
        *,
        out: Sequence[Out] | None = None,
    ) -> list[TensorValue]:
        """Pulls values as `get_data`, without what is said of them."""
        return [value for _, value in self.get_data(selectors, current_context, out=out)]

    def get_grad(
        self,
        selectors: Sequence[Selector],
        current_context: Context,
        *,
        out: Sequence[Out] | None = None,
    ) -> Received:
        """Pulls gradient buffers, as `get_data`."""
        return self._get("get_grad", selectors, current_context, out)

    def _get(
        self,
        method: str,
        selectors: Sequence[Selector],
        current_context: Context,
        out: Sequence[Out] | None,
    ) -> Received:
        gradient = method == "get_grad"

        def call(placed: Mapping[str, Placed]) -> Received:
            plan = plan_reads(placed, selectors, out, gradient=gradient)
            return plan.merge(
                whole_step(
                    lambda: self._shards.run(self._reads(plan, method, current_context)),
                    self._shards.calls[0].training,
                )
            )

        return self._catalogue.again([selector.name for selector in selectors], call)

    def _reads(
        self, plan: ReadPlan, method: str, current_context: Context
    ) -> dict[int, Callable[[], Received]]:
        return {
            shard: partial(
                getattr(self._shards.calls[shard], method),
                selectors,
                current_context,
                out=plan.outs[shard],
            )
            for shard, selectors in plan.selectors.items()
        }

    def pull_rows(
        self,
        name: str,
        ids: np.ndarray[Any, Any],
        context: Context | None,
        current_context: Context,
        *,
        out: Out = None,
    ) -> tuple[TensorHead, np.ndarray[Any, Any]]:
        """Pulls rows of a row_sparse parameter; each block of one shard is of one moment."""
        if ids.ndim != 1 or ids.dtype.kind not in "iu":
            raise ShapeMismatchError(
                f"parameter {name!r}: row ids are whole numbers of one dimension, but got "
                f"{ids.dtype} of shape {ids.shape}",
                parameter=name,
            )

        def call(placed: Mapping[str, Placed]) -> tuple[TensorHead, np.ndarray[Any, Any]]:
            where = placed[name]
            if not where.is_spread or where.stype != "row_sparse":
                calls = self._shards.calls[where.home]
                head, rows = calls.pull_rows(name, ids, context, current_context, out=out)
                if head.shape != where.shape and where.state == "initialized":
                    raise StalePlacementError(
                        f"Parameter '{name}' of shape {where.shape} came as {head.shape}"
                    )
                return head, rows
            check_row_ids(name, ids, where.whole[0])
            plan = RowsPlan(where, ids, out)
            heads = self._shards.run(
                {
                    shard: partial(
                        self._shards.calls[shard].exchange_rows,
                        name,
                        mine,
                        context,
                        current_context,
                        partial(plan.receiver, shard),
                    )
                    for shard, mine in plan.ids.items()
                }
            )
            return plan.merge(heads)

        return self._catalogue.again([name], call)

    def set_data(
        self,
        writes: Sequence[TensorWrite],
        *,
        initialize: bool = False,
        force_reinit: bool = False,
        contexts: Sequence[Context] = (),
    ) -> list[Version]:
        """Writes values, in one step on each shard."""
        names = [write.name for write in writes]
        if initialize:
            self._give_shapes(writes)
            return self._set_first_values(
                writes, self._catalogue.placed(names), contexts, force_reinit=force_reinit
            )

        self._give_shapes([write for write in writes if _is_whole(write)], deferred_only=True)
        return self._write(writes, lambda calls, each: calls.set_data(each), gradient=False)

    def set_grad(self, writes: Sequence[TensorWrite], current_context: Context) -> list[Version]:
        """Writes gradient buffers, in one step on each shard."""
        return self._write(
            writes, lambda calls, each: calls.set_grad(each, current_context), gradient=True
        )

    def _write(
        self,
        writes: Sequence[TensorWrite],
        send: Callable[[Calls, list[TensorWrite]], list[Version]],
        *,
        gradient: bool,
    ) -> list[Version]:
        def call(placed: Mapping[str, Placed]) -> list[Version]:
            plan = plan_writes(placed, writes, gradient=gradient)
            written: list[Calls] = []

            def note(calls: Calls, each: list[TensorWrite]) -> list[Version]:
                versions = send(calls, each)
                written.append(calls)
                return versions

            try:
                return plan.merge(self._on_shards(plan.writes, note))
            except STALE as err:
                if written and any(write.mode not in _REPEATABLE for write in writes):
                    raise _HalfWritten(err) from err
                raise

        try:
            return self._catalogue.again([write.name for write in writes], call)
        except _HalfWritten as half:
            raise half.cause from None

    def _give_shapes(self, writes: Sequence[TensorWrite], *, deferred_only: bool = False) -> None:
        """Lets values tell the shapes of parameters that wait for theirs."""
        placed = self._catalogue.placed([write.name for write in writes])
        vague = {
            write.name: write.value.shape
            for write in writes
            if not shape_is_known(placed[write.name].shape)
            and merged(placed[write.name].shape, write.value.shape) is not None
        }
        if deferred_only and vague:
            infos = self._catalogue.describe(list(vague))
            vague = {
                info.current.name: vague[info.current.name]
                for info in infos
                if info.state == "deferred"
            }
        if vague:
            self._first_values.settle(vague)

    def _set_first_values(
        self,
        writes: Sequence[TensorWrite],
        placed: Mapping[str, Placed],
        contexts: Sequence[Context],
        *,
        force_reinit: bool,
    ) -> list[Version]:
        """Writes first values that this client computed: of what is spread one client at a time."""

        def send(chosen: Sequence[TensorWrite], *, forced: bool) -> dict[str, Version]:
            plan = plan_writes(placed, chosen, gradient=False, first=True)
            versions = self._on_shards(
                plan.writes,
                lambda calls, each: calls.set_data(
                    each, initialize=True, force_reinit=forced, contexts=contexts
                ),
            )
            names = [write.name for write in chosen]
            return dict(zip(names, plan.merge(versions), strict=True))

        spread = [write for write in writes if placed[write.name].is_spread]
        alone = [write for write in writes if not placed[write.name].is_spread]
        versions = send(alone, forced=force_reinit)
        if spread:
            with self._first_values.alone():
                infos = self._catalogue.describe([write.name for write in spread])
                keep = {
                    info.current.name: info.version
                    for info in infos
                    if info.state == "initialized" and not force_reinit
                }
                versions |= keep
                versions |= send([write for write in spread if write.name not in keep], forced=True)
        return [versions[write.name] for write in writes]

    # Files

    def save(self, names: Sequence[str], write: SinkFactory) -> None:
        """Reads parameters for a file on the caller's side: see `paramd...cluster.saving`."""
        save(self._shards, self._catalogue, names, write)

    def save_on_server(self, names: Sequence[str], path: str, strip_prefix: str) -> tuple[int, int]:
        """Refuses: no server has the whole of a file.

        Raises:
            InvalidArgumentError: says what to do instead.
        """
        raise self._no_server_files(path)

    def load(self, tensors: Callable[[], Iterable[TensorWrite]], options: LoadOptions) -> list[str]:
        """Loads parameters from a file's tensors: see `paramd...cluster.loading`."""
        if options.path:
            raise self._no_server_files(options.path)
        return load(self._shards, self._catalogue, self._first_values, tensors, options)

    def _no_server_files(self, path: str) -> InvalidArgumentError:
        return InvalidArgumentError(
            f"'server:{path}': no server has all of it, for there are {len(self._shards)} shards. "
            f"Use a file of this process ('{path}'), or let every shard save its part with "
            "session.save_snapshot()"
        )

    # Servers

    def status(self) -> SessionStatus:
        """What the shards hold, and who works with them."""
        return merged_status(self._shards.run_all(lambda shard: self._shards.calls[shard].status()))

    def _on_shards(
        self, items: Mapping[int, Sequence[Any]], call: Callable[[Calls, Any], T]
    ) -> dict[int, T]:
        """Makes a call to each shard with what is for it."""
        return self._shards.run(
            {shard: partial(call, self._shards.calls[shard], each) for shard, each in items.items()}
        )

    def _everywhere(self, names: Sequence[str], call: Callable[[Calls, list[str]], None]) -> None:
        """Makes a call about parameters to every shard that has something of them."""

        def calls(placed: Mapping[str, Placed]) -> None:
            by_shard: dict[int, list[str]] = {}
            for name in names:
                for shard in placed[name].shards:
                    by_shard.setdefault(shard, []).append(name)
            self._on_shards(by_shard, call)

        self._catalogue.again(names, calls)


def _is_whole(write: TensorWrite) -> bool:
    return write.context is None and write.region is None and write.mode == "assign"
