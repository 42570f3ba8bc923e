"""Starts the shards of a cluster on Ray, finds them, and stops them."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import ray
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

import paramd
from paramd.errors import ServerUnavailable
from paramd_server.config import parse_size
from paramd_server.ray.actors import (
    ANSWER_S,
    addresses_now,
    answer_of,
    await_addresses,
    await_gone,
    find_actors,
    stop_servers,
)
from paramd_server.ray.plan import (
    ShardPlan,
    ShardStatus,
    check_name,
    check_options,
    shard_actor_name,
)
from paramd_server.ray.shard_actor import ShardActor

__all__ = ["NAME", "Cluster", "attach", "connect", "start", "target"]

# Of clusters and of the namespace of their actors, where nothing else is said.
NAME: Final = "paramd"
_STRATEGIES: Final = ("SPREAD", "STRICT_SPREAD", "PACK", "STRICT_PACK")
# Several callers wait for an address while another one stops the shard.
_CONCURRENCY: Final = 16


class Cluster:
    """The shards of a cluster on Ray, as `start` or `attach` gives it.

    `with cluster:` stops it at the end of the block. Where `start` was not told detached=True, the
    shards end with the process that started them, and with the last reference to its `Cluster`.

    Attributes:
        name: of the cluster.
        namespace: Ray's, in which its actors are.
    """

    def __init__(self, name: str, namespace: str, actors: Sequence[Any], group: Any) -> None:
        self.name = name
        self.namespace = namespace
        self._actors = tuple(actors)
        self._group = group

    def __len__(self) -> int:
        return len(self._actors)

    def __repr__(self) -> str:
        return f"<paramd_server.ray.Cluster {self.name!r} of {len(self)} shards>"

    def __enter__(self) -> Cluster:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def target(self) -> str:
        """The addresses of all shards now, for `paramd.connect`.

        Raises:
            ServerUnavailable: where they do not serve within a minute.
        """
        return ",".join(await_addresses(self._actors, ANSWER_S))

    def connect(self, **options: Any) -> paramd.Session:
        """Opens a session that follows shards which move to another address.

        Args:
            options: of `paramd.connect`.
        """
        return connect(self.name, namespace=self.namespace, **options)

    def shards(self) -> tuple[ShardStatus, ...]:
        """How each shard is now, in their order.

        Raises:
            ServerUnavailable: where an actor does not say so within a minute.
        """
        give_up_at = time.monotonic() + ANSWER_S
        return tuple(answer_of(actor.status, give_up_at) for actor in self._actors)

    def stop(self, timeout: float | None = None) -> None:
        """Ends all shards in order, saving what they hold, and removes the actors.

        Stopping twice is the same.

        Args:
            timeout: seconds for all of it; what has not ended then is killed, and what it has not
                saved is lost. None: as each shard takes.

        Raises:
            ServerUnavailable: where a shard could not save what it held. All are gone all the same.
        """
        wrong = stop_servers(self._actors, timeout)
        for actor in self._actors:
            ray.kill(actor, no_restart=True)
        remove_placement_group(self._group)
        await_gone(self.name, self.namespace, len(self))
        if wrong:
            raise ServerUnavailable(f"cluster {self.name!r} has ended, but {'; '.join(wrong)}")


def start(
    num_shards: int = 2,
    *,
    name: str = NAME,
    namespace: str = NAME,
    snapshot_dir: str | os.PathLike[str] | None = None,
    snapshot_every: float = 0.0,
    memory_limit: str | int | None = None,
    num_cpus: float = 1.0,
    resources: Mapping[str, float] | None = None,
    strategy: str = "SPREAD",
    port: int = 0,
    insecure: bool = False,
    options: Mapping[str, str] | None = None,
    detached: bool = False,
    timeout: float = 120.0,
) -> Cluster:
    """Starts a cluster: one named, restartable Ray actor with one server for each shard.

    Call `ray.init` before. Without TLS the shards serve on loopback, so all nodes of the Ray
    cluster have to be one machine; see docs/ray.md for several.

    Args:
        num_shards: how many there are.
        name: of the cluster: its actors are called NAME-shard-I.
        namespace: Ray's, for the actors; every job finds them there.
        snapshot_dir: where the shards save their state, and begin with it when they are started
            again; a path that all nodes share, so that a shard finds it on any of them.
        snapshot_every: seconds from one snapshot to the next; 0 for none but those asked for.
        memory_limit: for each shard, such as '8G'; Ray reserves as much. None: nine tenths of its
            node, and Ray reserves nothing.
        num_cpus: that Ray reserves for each shard.
        resources: further ones that Ray reserves for each shard, such as {"GPU": 1}.
        strategy: of the placement group: 'SPREAD' (different nodes where there are),
            'STRICT_SPREAD', 'PACK' or 'STRICT_PACK'.
        port: of shard 0, and shard I has the port I further; 0 for free ones, which they keep.
        insecure: serve on the nodes' addresses without TLS.
        options: further ones of `paramd-server`, such as {"--tls-cert": "/etc/paramd/server.pem"};
            with a certificate the shards serve on the nodes' addresses. Files are the nodes' own.
        detached: whether the shards go on when this process ends, until somebody stops them.
        timeout: seconds until all have to serve.

    Returns:
        The cluster, which serves.

    Raises:
        ValueError: for a wrong argument, and where a cluster of that name is there already
            (`attach` gives it).
        ServerUnavailable: where it does not come up, with the reason. Nothing is left of it.
    """
    if not ray.is_initialized():
        raise RuntimeError("call ray.init() first: paramd_server.ray.start() uses that cluster")
    if num_shards < 1:
        raise ValueError(f"num_shards is 1 or more, but got {num_shards!r}")
    if strategy not in _STRATEGIES:
        raise ValueError(f"strategy is one of {', '.join(_STRATEGIES)}, but got {strategy!r}")
    further = check_options(options)
    loopback_of = "" if insecure or "--tls-cert" in further else _only_machine()
    directory = None if snapshot_dir is None else Path(snapshot_dir).absolute()
    limit = parse_size(str(memory_limit)) if memory_limit is not None else None
    plans = [
        ShardPlan(
            name=check_name("name", name),
            namespace=check_name("namespace", namespace),
            shard=shard,
            num_shards=num_shards,
            port=port,
            loopback_of=loopback_of,
            insecure=insecure,
            snapshot_dir=directory,
            snapshot_every_s=snapshot_every,
            memory_limit=limit,
            options=further,
        )
        for shard in range(num_shards)
    ]
    _check_free(name, namespace)
    bundle = {"CPU": num_cpus, **(resources or {})} | ({"memory": limit} if limit else {})
    lifetime = "detached" if detached else None
    deadline = time.monotonic() + timeout
    group = placement_group([bundle] * num_shards, strategy=strategy, lifetime=lifetime)
    actors: list[Any] = []
    try:
        if not group.wait(timeout):
            raise ServerUnavailable(
                f"Ray has no room for {num_shards} shards with {bundle} each ({strategy}): "
                f"{timeout:g} s went by"
            )
        for plan in plans:
            actors.append(_actor(plan, bundle, group, lifetime))
        await_addresses(actors, deadline - time.monotonic())
    except BaseException:
        for actor in actors:
            ray.kill(actor, no_restart=True)
        remove_placement_group(group)
        raise
    return Cluster(name, namespace, actors, group)


def attach(name: str = NAME, *, namespace: str = NAME) -> Cluster:
    """The cluster of a name that another process has started.

    Args:
        name: of the cluster.
        namespace: Ray's, in which its actors are.

    Raises:
        ValueError: where there is none.
        ServerUnavailable: where its actors do not answer.
    """
    actors = find_actors(name, namespace)
    group = answer_of(actors[0].placement_group, time.monotonic() + ANSWER_S)
    return Cluster(name, namespace, actors, group)


def target(name: str = NAME, *, namespace: str = NAME, timeout: float = ANSWER_S) -> str:
    """The addresses of all shards of a cluster now, for `paramd.connect`.

    Args:
        name: of the cluster.
        namespace: Ray's, in which its actors are.
        timeout: seconds until all have to serve.

    Raises:
        ValueError: where there is no such cluster.
        ServerUnavailable: where a shard does not serve in time.
    """
    return ",".join(await_addresses(find_actors(name, namespace), timeout))


def connect(name: str = NAME, *, namespace: str = NAME, **options: Any) -> paramd.Session:
    """Opens a session with a cluster, from any process of the Ray cluster.

    When a shard cannot be reached, the session asks its actor where it is now, and goes on there.

    Args:
        name: of the cluster.
        namespace: Ray's, in which its actors are.
        options: of `paramd.connect`.

    Raises:
        ValueError: where there is no such cluster.
        ServerUnavailable: where a shard does not serve in time.
    """
    addresses = await_addresses(find_actors(name, namespace), ANSWER_S)
    resolve = partial(addresses_now, name, namespace, len(addresses))
    return paramd.connect(",".join(addresses), resolve=resolve, **options)


def _only_machine() -> str:
    """The address of the one machine on which all nodes are."""
    machines = {node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
    if len(machines) > 1:
        raise ValueError(
            f"the Ray cluster has {len(machines)} machines, and without TLS the shards are for "
            "one: give options={'--tls-cert': ..., '--tls-key': ...}, or insecure=True"
        )
    machine: str = machines.pop()
    return machine


def _actor(plan: ShardPlan, bundle: Mapping[str, float], group: Any, lifetime: str | None) -> Any:
    reserved = dict(bundle)
    actor: Any = ray.remote(ShardActor)
    try:
        return actor.options(
            name=shard_actor_name(plan.name, plan.shard),
            namespace=plan.namespace,
            lifetime=lifetime,
            max_restarts=-1,
            max_concurrency=_CONCURRENCY,
            num_cpus=reserved.pop("CPU"),
            num_gpus=reserved.pop("GPU", 0),
            memory=reserved.pop("memory", None),
            resources=reserved,
            scheduling_strategy=PlacementGroupSchedulingStrategy(
                group, placement_group_bundle_index=plan.shard
            ),
        ).remote(plan)
    except ValueError as err:
        # Ray's word for a name that somebody has taken meanwhile.
        raise ValueError(f"cluster {plan.name!r} cannot be started: {err}") from err


def _check_free(name: str, namespace: str) -> None:
    try:
        ray.get_actor(shard_actor_name(name, 0), namespace=namespace)
    except ValueError:
        return
    raise ValueError(
        f"a cluster {name!r} is there already, in the namespace {namespace!r}: attach() gives it; "
        "or give another name"
    )
