"""Lists of real servers, right and wrong."""

from __future__ import annotations

import pickle
from collections.abc import Iterator

import pytest

import paramd
from paramd.errors import ClusterMismatchError, ServerUnavailable
from tests.support.clusters import small_cluster


@pytest.fixture(scope="module")
def addresses(target: str) -> list[str]:
    return target.split(",")


@pytest.fixture(scope="module")
def stranger() -> Iterator[list[str]]:
    """The shards of another cluster of three."""
    with small_cluster(3) as target:
        yield target.split(",")


def test_reordered_servers_are_told_the_right_order(addresses: list[str], target: str) -> None:
    first, second, third = addresses
    with pytest.raises(ClusterMismatchError, match=f"right order is '{target}'"):
        paramd.connect(",".join([third, first, second]))


def test_missing_server_is_named(addresses: list[str]) -> None:
    with pytest.raises(ClusterMismatchError, match="3 shards; the list lacks shard 1"):
        paramd.connect(f"{addresses[0]},{addresses[2]}")
    with pytest.raises(ClusterMismatchError, match=r"is shard 2/3 .*name all 3 shards"):
        paramd.connect(addresses[2])


def test_server_that_comes_twice_is_named(addresses: list[str]) -> None:
    with pytest.raises(ClusterMismatchError, match="comes twice, as shard 0 and as shard 3"):
        paramd.connect(",".join([*addresses, addresses[0]]))


def test_servers_of_other_clusters_are_refused(addresses: list[str], stranger: list[str]) -> None:
    with pytest.raises(ClusterMismatchError, match="different clusters"):
        paramd.connect(",".join([*addresses[:2], stranger[2]]))
    with small_cluster(1) as alone:
        for mixed in ([*addresses, alone], [alone, *addresses[1:]]):
            with pytest.raises(ClusterMismatchError, match=f"{alone} is shard 0/1"):
                paramd.connect(",".join(mixed))


def test_server_that_is_not_there_is_named(addresses: list[str]) -> None:
    with pytest.raises(ServerUnavailable, match=r"127\.0\.0\.1:1 "):
        paramd.connect(",".join([*addresses[:2], "127.0.0.1:1"]), timeout=0.5)


def test_session_shows_the_list_and_carries_it(target: str) -> None:
    with paramd.connect(target) as session:
        assert session.target == target
        assert repr(session) == f"<paramd.Session '{target}' open>"
        assert len(session.status().shards) == 3
        with pickle.loads(pickle.dumps(session)) as again:
            assert again.target == target
            assert again.identity != session.identity
        identity = session.identity
        greeted = {worker.identity for shard in session.status().shards for worker in shard.workers}
        assert identity in greeted
        assert [
            len({w.identity for w in shard.workers} & {identity})
            for shard in session.status().shards
        ] == [1, 1, 1]


def test_embedded_shards_end_with_their_session() -> None:
    with paramd.connect("local", num_shards=2) as session:
        assert len(session.status().shards) == 2
        parameter = paramd.Parameter("w", shape=(3,))
        parameter.initialize("ones")
        assert parameter.data().asnumpy().tolist() == [1, 1, 1]
    with pytest.raises(paramd.errors.SessionClosedError):
        session.status()
