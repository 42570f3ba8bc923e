"""Whether the servers of a list are the shards of one cluster, in their order."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from paramd.errors import ClusterMismatchError
from paramd.placement import DEFAULT_SPLIT_ELEMENTS
from paramd.transport.channel import grpc_target
from paramd.v1 import session_service_pb2 as pb

__all__ = ["Handshakes", "Place", "addresses_of", "check_single", "check_places"]


@dataclass(frozen=True)
class Place:
    """Which of which cluster a server says that it is.

    Attributes:
        cluster: the cluster's id.
        shard: from 0.
        num_shards: how many there are.
        split_elements: dense parameters of more elements are split.
    """

    cluster: str
    shard: int
    num_shards: int
    split_elements: int

    def __str__(self) -> str:
        return f"shard {self.shard}/{self.num_shards} of cluster {self.cluster!r}"


def place_of(answer: pb.HelloResponse) -> Place:
    """The place that a server states; one that states none is alone."""
    cluster = answer.cluster
    if not cluster.num_shards:
        return Place(cluster.id, 0, 1, DEFAULT_SPLIT_ELEMENTS)
    return Place(
        cluster.id,
        cluster.shard,
        cluster.num_shards,
        cluster.split_elements or DEFAULT_SPLIT_ELEMENTS,
    )


def addresses_of(target: str) -> tuple[str, ...]:
    """The servers that a target names: one, or all shards in their order.

    Raises:
        ValueError: where one of them is no address.
        ClusterMismatchError: where one comes twice.
    """
    addresses = tuple(address.strip() for address in target.split(","))
    if len(addresses) == 1:
        return addresses
    seen: dict[str, int] = {}
    for shard, address in enumerate(addresses):
        if not address:
            raise ValueError(f"target {target!r}: the address of shard {shard} is empty")
        known = seen.setdefault(grpc_target(address), shard)
        if known != shard:
            raise ClusterMismatchError(
                f"target {target!r}: {address!r} comes twice, as shard {known} and as shard "
                f"{shard}; each server is one shard"
            )
    return addresses


def check_single(address: str, answer: pb.HelloResponse) -> None:
    """Checks that a server that is connected to alone is alone.

    Raises:
        ClusterMismatchError: where it is one of several shards.
    """
    place = place_of(answer)
    if place.num_shards != 1:
        raise ClusterMismatchError(
            f"{address} is {place}: name all {place.num_shards} shards, in their order, such as "
            "connect('host0:50051,host1:50051')"
        )


def check_places(addresses: Sequence[str], places: Sequence[Place]) -> None:
    """Checks that servers are the shards of one cluster, in their order.

    Raises:
        ClusterMismatchError: says which is which, and the right order where that is known.
    """
    expected = len(addresses)
    first = places[0]
    wrong = [
        shard
        for shard, place in enumerate(places)
        if (place.shard, place.num_shards) != (shard, expected)
        or (place.cluster, place.split_elements) != (first.cluster, first.split_elements)
    ]
    if not wrong:
        return
    found = "; ".join(
        f"{address} is {place}" for address, place in zip(addresses, places, strict=True)
    )
    raise ClusterMismatchError(
        f"these {expected} servers are not the shards of one cluster in their order: {found}. "
        f"{_advice(addresses, places)}"
    )


def _advice(addresses: Sequence[str], places: Sequence[Place]) -> str:
    clusters = {place.cluster for place in places}
    if len(clusters) > 1:
        return "They belong to different clusters"
    numbers = {place.num_shards for place in places}
    if len(numbers) > 1:
        return f"They disagree on the number of shards: {sorted(numbers)}"
    if len({place.split_elements for place in places}) > 1:
        return "They split parameters at different sizes: give all the same --split-elements"
    total = numbers.pop()
    by_shard: dict[int, list[str]] = {}
    for address, place in zip(addresses, places, strict=True):
        by_shard.setdefault(place.shard, []).append(address)
    twice = {shard: named for shard, named in by_shard.items() if len(named) > 1}
    if twice:
        shard, named = next(iter(twice.items()))
        return f"{' and '.join(named)} both say that they are shard {shard}"
    missing = [shard for shard in range(total) if shard not in by_shard]
    if missing:
        named_shards = ", ".join(map(str, missing))
        return f"The cluster has {total} shards; the list lacks shard {named_shards}"
    order = ",".join(by_shard[shard][0] for shard in range(total))
    return f"The right order is {order!r}"


class Handshakes:
    """What the servers of one session said of themselves, at first and when they come back.

    Thread-safe.

    Args:
        addresses: of the shards, in the order of the target.
    """

    def __init__(self, addresses: Sequence[str]) -> None:
        self._addresses = tuple(addresses)
        self._lock = threading.Lock()
        self._places: list[Place | None] = [None] * len(addresses)  # guarded by _lock
        self._established = False  # guarded by _lock
        self.split_elements = DEFAULT_SPLIT_ELEMENTS
        # Of the cluster, as the coordinator said it last.
        self.generation = 0

    def check(self, shard: int) -> Callable[[pb.HelloResponse], None]:
        """What the connection of a shard calls with each answer to its handshake."""

        def check(answer: pb.HelloResponse) -> None:
            self._note(shard, place_of(answer))
            if not shard:
                self.generation = answer.cluster.generation

        return check

    def establish(self) -> None:
        """Checks the list, once all have been greeted; from now on each is to stay what it is.

        Raises:
            ClusterMismatchError: where they are not the shards of one cluster in their order.
        """
        with self._lock:
            places = [place for place in self._places if place is not None]
            assert len(places) == len(self._addresses), "a shard has not been greeted"
            check_places(self._addresses, places)
            self.split_elements = places[0].split_elements
            self._established = True

    def _note(self, shard: int, place: Place) -> None:
        with self._lock:
            known = self._places[shard]
            if self._established and known is not None and place != known:
                raise ClusterMismatchError(
                    f"the server at {self._addresses[shard]} was {known} when this session began, "
                    f"and now is {place}"
                )
            self._places[shard] = place
