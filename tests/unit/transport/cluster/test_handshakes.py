"""Lists of servers: which are the shards of one cluster, and what is said of the others."""

from __future__ import annotations

import pytest

from paramd.errors import ClusterMismatchError
from paramd.transport.cluster.handshakes import (
    Handshakes,
    Place,
    addresses_of,
    check_places,
    check_single,
)
from paramd.v1 import session_service_pb2 as pb

ADDRESSES = ("a:1", "b:2", "c:3")


def place(shard: int, num_shards: int = 3, cluster: str = "x", split: int = 9) -> Place:
    return Place(cluster, shard, num_shards, split)


def answer(shard: int, num_shards: int = 3, cluster: str = "x") -> pb.HelloResponse:
    return pb.HelloResponse(
        cluster=pb.Cluster(id=cluster, shard=shard, num_shards=num_shards, split_elements=9)
    )


def test_targets_are_taken_apart() -> None:
    assert addresses_of("a:1") == ("a:1",)
    assert addresses_of("a:1, b:2,unix:/s") == ("a:1", "b:2", "unix:/s")


@pytest.mark.parametrize("target", ["a:1,b:2,a:1", "unix:/s,unix://s", "unix:/t/../s,unix:/s"])
def test_one_server_is_one_shard(target: str) -> None:
    with pytest.raises(ClusterMismatchError, match="comes twice, as shard 0 and as shard"):
        addresses_of(target)


def test_right_lists_pass() -> None:
    check_places(ADDRESSES, [place(0), place(1), place(2)])
    check_single("a:1", pb.HelloResponse())
    check_single("a:1", answer(0, 1))


@pytest.mark.parametrize(
    ("places", "words"),
    [
        ([place(1), place(0), place(2)], r"b:2 is shard 0/3.*right order is 'b:2,a:1,c:3'"),
        ([place(2), place(0), place(1)], "right order is 'b:2,c:3,a:1'"),
        ([place(0), place(1), place(2, cluster="y")], "c:3 is .*'y'.*different clusters"),
        ([place(0), place(1), place(1)], "b:2 and c:3 both say that they are shard 1"),
        ([place(0, 4), place(1, 4), place(3, 4)], "has 4 shards; the list lacks shard 2"),
        ([place(0, 2), place(1, 2), place(0, 1)], r"number of shards: \[1, 2\]"),
        ([place(0), place(1), place(2, split=8)], "--split-elements"),
    ],
)
def test_wrong_lists_are_told_apart(places: list[Place], words: str) -> None:
    with pytest.raises(ClusterMismatchError, match=words):
        check_places(ADDRESSES, places)


def test_one_shard_alone_is_refused() -> None:
    with pytest.raises(ClusterMismatchError, match=r"shard 1/3 of cluster 'x'.*all 3 shards"):
        check_single("a:1", answer(1))


def test_shard_that_comes_back_as_another_is_refused() -> None:
    handshakes = Handshakes(ADDRESSES)
    for shard in range(3):
        handshakes.check(shard)(answer(shard))
    handshakes.establish()
    assert handshakes.split_elements == 9
    handshakes.check(1)(answer(1))
    for other in (answer(2), answer(1, cluster="y"), answer(1, 4), pb.HelloResponse()):
        with pytest.raises(ClusterMismatchError, match=r"b:2 was shard 1/3 .* when this session"):
            handshakes.check(1)(other)
    handshakes.check(1)(answer(1))
