"""The actors of a cluster's shards: found by their names, and asked."""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

import ray
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    GetTimeoutError,
    RayActorError,
    RayError,
)

from paramd.errors import ServerUnavailable
from paramd_server.ray.plan import ShardPlan, ShardStatus, shard_actor_name

__all__ = [
    "ANSWER_S",
    "addresses_now",
    "answer_of",
    "await_addresses",
    "await_gone",
    "find_actors",
    "stop_servers",
]

# How long an actor may take to answer, while Ray may be starting it again.
ANSWER_S: Final = 60.0
# How long one question to an actor may wait there.
_TURN_S: Final = 2.0
# When a session cannot reach a shard, it asks where that is for so long.
_RESOLVE_S: Final = 2.0
_GONE_S: Final = 10.0
_RETRY_S: Final = 0.05
_SHORTEST_S: Final = 0.1


def addresses_now(name: str, namespace: str, num_shards: int) -> list[str]:
    """Where each shard serves; '' for those that do not, or do not say so soon."""
    asked: dict[int, Any] = {}
    for shard in range(num_shards):
        # Without an actor the cluster has been stopped, and may be started again.
        with suppress(ValueError, RayError):
            actor: Any = ray.get_actor(shard_actor_name(name, shard), namespace=namespace)
            asked[shard] = actor.await_address.remote(0.0)
    answers = list(asked.values())
    ready, _ = (
        ray.wait(answers, num_returns=len(answers), timeout=_RESOLVE_S) if asked else ([], [])
    )
    found = [""] * num_shards
    for shard, answer in asked.items():
        # One that is being started again does not say.
        if answer in ready:
            with suppress(RayError):
                found[shard] = ray.get(answer)
    return found


def find_actors(name: str, namespace: str) -> list[Any]:
    """The actors of all shards, in their order."""
    try:
        first: Any = ray.get_actor(shard_actor_name(name, 0), namespace=namespace)
        plan: ShardPlan = answer_of(first.plan, time.monotonic() + ANSWER_S)
        others = range(1, plan.num_shards)
        return [
            first,
            *(ray.get_actor(shard_actor_name(name, each), namespace=namespace) for each in others),
        ]
    except ValueError as err:
        raise ValueError(
            f"there is no cluster {name!r} in the namespace {namespace!r}: "
            "paramd_server.ray.start() makes one"
        ) from err


def await_addresses(actors: Sequence[Any], timeout: float) -> list[str]:
    """Where all shards serve, once they do."""
    give_up_at = time.monotonic() + timeout
    found = []
    for shard, actor in enumerate(actors):
        while not (address := answer_of(actor.await_address, give_up_at, _TURN_S)):
            status: ShardStatus = answer_of(actor.status, give_up_at)
            if status.failure:
                raise ServerUnavailable(status.failure)
            if time.monotonic() > give_up_at:
                raise ServerUnavailable(f"shard {shard} does not serve within {timeout:g} s")
        found.append(address)
    return found


def answer_of(method: Any, give_up_at: float, *arguments: object) -> Any:
    """What an actor answers, although Ray may be starting it again.

    Raises:
        ServerUnavailable: where it does not in time, or is gone for good.
    """
    while True:
        try:
            # What lies in the store already is taken whatever the time.
            left_s = max(_SHORTEST_S, give_up_at - time.monotonic())
            return ray.get(method.remote(*arguments), timeout=left_s)
        except ActorUnavailableError as err:
            if time.monotonic() > give_up_at:
                raise ServerUnavailable(f"an actor is still being started again: {err}") from err
            time.sleep(_RETRY_S)
        except GetTimeoutError as err:
            raise ServerUnavailable("an actor does not answer: is Ray starting it again?") from err
        except RayActorError as err:
            raise ServerUnavailable(f"the actor of a shard is gone: {err}") from err


def stop_servers(actors: Sequence[Any], timeout: float | None) -> list[str]:
    """Ends the servers, all at the same time. Gives what went wrong, in words."""
    asked = [actor.stop.remote() for actor in actors]
    ready, _ = ray.wait(asked, num_returns=len(asked), timeout=timeout)
    wrong = []
    for shard, answer in enumerate(asked):
        if answer not in ready:
            wrong.append(f"shard {shard} had not saved its state after {timeout:g} s")
            continue
        try:
            status: int = ray.get(answer)
        except ActorDiedError:
            # Somebody has stopped it before.
            continue
        except RayError as err:
            wrong.append(f"shard {shard} could not be asked to save its state: {err}")
            continue
        if status not in (0, -signal.SIGTERM):
            wrong.append(f"shard {shard} ended with status {status}: its log says why")
    return wrong


def await_gone(name: str, namespace: str, num_shards: int) -> None:
    """Waits until the actors' names are free again."""
    give_up_at = time.monotonic() + _GONE_S
    for shard in range(num_shards):
        with suppress(ValueError):
            while time.monotonic() < give_up_at:
                ray.get_actor(shard_actor_name(name, shard), namespace=namespace)
                time.sleep(_RETRY_S)
