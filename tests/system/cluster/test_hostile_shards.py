"""Servers that claim to be shards of a cluster, and calls that no shard would make."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

import paramd
from paramd import Parameter, Trainer
from paramd.v1 import cluster_service_pb2 as pb
from paramd_server.security import Right
from tests.support.cluster_process import ClusterProcess, cluster_of_processes
from tests.support.raw_calls import refused
from tests.support.raw_workers import COMMITTED, RawWorker
from tests.support.security import TOKENS, write_tokens
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

GO_ON = 2
BIG = 2**63 - 1


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterProcess]:
    directory = tmp_path_factory.mktemp("cluster")
    options = ["--split-elements", "4", "--cluster-id", "ours"]
    with cluster_of_processes(directory, options=options) as found:
        yield found


@pytest.fixture
def worker(cluster: ClusterProcess) -> Iterator[RawWorker]:
    """A worker that has made a step. In the end nobody has lost anything, and it makes others."""
    generation = cluster.await_formed()
    with (
        paramd.connect(cluster.target, timeout=60.0) as session,
        RawWorker(cluster.addresses, "raw") as raw,
    ):
        parameter = Parameter("t", shape=(10, 3), session=session)
        parameter.initialize("zeros")
        rate = {"learning_rate": 1.0}
        trainer = Trainer(
            [parameter], "sgd", rate, "dist_async", staleness=5, name="t", session=session
        )
        assert raw.join("t") == 0
        assert raw.step("t", 0).state == COMMITTED
        yield raw
        # Once a shard has been told to register again, a push may have to be sent again.
        operation, clock = raw.operation(), raw.num_steps("t")[0]
        wait_until(lambda: raw.step("t", clock, operation).state == COMMITTED, "it steps")
        wait_until(lambda: raw.num_steps("t") == [clock + 1] * 2, "both shards have it")
        assert raw.values("t") == [{clock + 1.0}] * 2
        assert cluster.await_formed() == generation
        assert cluster.said(0, "going back", "lost", "ERROR") == []
        assert cluster.said(1, "ERROR") == []
        trainer.delete()
        session.delete("t")


def _call(cluster: ClusterProcess, method: str, request: Any, shard: int = 0) -> bytes:
    options = [("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(cluster.addresses[shard], options=options) as channel:
        call: Any = channel.unary_unary(f"/paramd.v1.ClusterService/{method}")
        answer: bytes = call(request.SerializeToString(), timeout=30.0)
        return answer


def _registration(**other: Any) -> pb.RegisterShardRequest:
    settings = {"cluster_id": "ours", "shard": 1, "num_shards": 2, "split_elements": 4}
    return pb.RegisterShardRequest(**{**settings, "epoch": 1, **other})


@pytest.mark.parametrize(
    "wrong",
    [
        {"cluster_id": "theirs"},
        {"num_shards": 3},
        {"shard": 0},
        {"shard": 2},
        {"shard": 2**32 - 1},
        {"split_elements": 5},
        {"split_elements": -1},
        # The place is taken, whatever it says.
        {},
        {"whole_steps": True, "snapshot": 1, "snapshots": [1, 2]},
        {"generation": 2**64 - 1, "position": 2**64 - 1},
        {"wait_ms": -(2**63)},
    ],
)
def test_wrong_registrations(
    cluster: ClusterProcess, worker: RawWorker, wrong: dict[str, Any]
) -> None:
    with refused("CLUSTER_MISMATCH"):
        _call(cluster, "RegisterShard", _registration(**wrong))


@pytest.mark.parametrize(
    ("method", "request_"),
    [
        ("Follow", pb.FollowRequest(shard=1, epoch=1)),
        ("Follow", pb.FollowRequest(shard=1, epoch=1, generation=5, position=2**64 - 1)),
        ("Follow", pb.FollowRequest(shard=7, wait_ms=BIG)),
        ("LeaveCluster", pb.LeaveClusterRequest(shard=1, epoch=1)),
        ("LeaveCluster", pb.LeaveClusterRequest(shard=0)),
        ("ReportPart", pb.ReportPartRequest(shard=1, epoch=1, number=1, error="broken")),
    ],
)
def test_calls_of_who_is_not_that_shard(
    cluster: ClusterProcess, worker: RawWorker, method: str, request_: Any
) -> None:
    with refused("CLUSTER_MISMATCH"):
        _call(cluster, method, request_)


def _epoch(cluster: ClusterProcess) -> int:
    with RawWorker(cluster.addresses, "asks") as raw:
        return int(raw.shards[1].status().epoch)


@pytest.mark.parametrize("position", [1_000_000, 2**64 - 1])
def test_a_position_beyond_the_head(
    cluster: ClusterProcess, worker: RawWorker, position: int
) -> None:
    """Under the name of a shard: it has to register again, and has missed nothing."""
    generation = cluster.await_formed()
    request = pb.FollowRequest(
        shard=1, epoch=_epoch(cluster), generation=generation, position=position
    )
    with refused("CLUSTER_MISMATCH"):
        _call(cluster, "Follow", request)


@pytest.mark.parametrize(
    "report",
    [
        {"number": 12345, "error": "broken"},
        {"number": 12345, "part": b"{}"},
        {"number": 12345, "part": b"\xff no JSON"},
        {"number": 0},
        {"number": 2**64 - 1, "directory": "../../x", "part": b"[]"},
    ],
)
def test_reports_of_unknown_snapshots(
    cluster: ClusterProcess, worker: RawWorker, report: dict[str, Any]
) -> None:
    request = pb.ReportPartRequest(shard=1, epoch=_epoch(cluster), **report)
    assert _call(cluster, "ReportPart", request) == b""
    with paramd.connect(cluster.target, timeout=60.0) as session:
        assert session.save_snapshot().num_shards == 2


def test_a_push_that_is_asked_about_and_comes_back(
    cluster: ClusterProcess, worker: RawWorker
) -> None:
    """The coordinator gives up a push that nobody commits; its worker sends it all the same."""
    generation = cluster.await_formed()
    operation = worker.operation()
    parts = worker.stage("t", operation, 1)
    old = pb.KeptPush(trainer="t", operation=operation)
    request = pb.FollowRequest(
        shard=1, epoch=_epoch(cluster), generation=generation, position=0, old=[old]
    )
    # As the shard itself would ask; the position is of before, so that nothing is forgotten.
    with refused("CLUSTER_MISMATCH"):
        _call(cluster, "Follow", request)
    state = worker.commit("t", operation, 1, parts).state
    assert state != COMMITTED, "a shard may have let it go"
    parts = worker.stage("t", operation, 1)
    wait_until(lambda: worker.commit("t", operation, 1, parts).state == COMMITTED, "offered again")
    assert worker.await_step("t", operation).clock == 2


def test_another_server_of_the_same_number(
    cluster: ClusterProcess, worker: RawWorker, tmp_path: Path
) -> None:
    second = ClusterProcess(tmp_path, options=["--split-elements", "4", "--cluster-id", "ours"])
    second.coordinator = cluster.addresses[0]
    try:
        second.start(1)
        wait_until(lambda: second.said(1, "another server is shard 1") != [], "it is refused")
        assert second.hello(1) is None, "it serves nobody"
    finally:
        second.close()


@pytest.mark.parametrize("method", ["RegisterShard", "Follow", "LeaveCluster", "ReportPart"])
def test_a_shard_that_is_not_the_coordinator(
    cluster: ClusterProcess, worker: RawWorker, method: str
) -> None:
    request_class = getattr(pb, f"{method}Request")
    with refused("CLUSTER_MISMATCH") as refusal:
        _call(cluster, method, request_class(shard=1), shard=1)
    assert "shard 0" in refusal.message


def test_a_replaced_token_is_found(tmp_path: Path) -> None:
    tokens, admin = tmp_path / "tokens", tmp_path / "admin.token"
    write_tokens(tokens)
    admin.write_text(TOKENS[Right.ADMIN])
    options = ["--split-elements", "4", "--token-file", str(tokens)]
    options += ["--peer-token-file", str(admin)]
    with cluster_of_processes(tmp_path, start=False, options=options) as cluster:
        cluster.start()
        with paramd.connect(
            cluster.target, timeout=60.0, token=TOKENS[Right.TRAIN], insecure=True
        ) as session:
            parameter = Parameter("t", shape=(10, 3), session=session)
            parameter.initialize("zeros")
            rate = {"learning_rate": 1.0}
            trainer = Trainer([parameter], "sgd", rate, "dist_async", staleness=1, name="t")
            grads = {"t": -paramd.nd.ones((10, 3))}
            trainer.step(1, grads=grads)
            fresh = TOKENS[Right.ADMIN][::-1]
            # The new file of the shard first: the old token is still in use.
            write_tokens(tokens, {**TOKENS, Right.ADMIN: fresh})
            wait_until(lambda: cluster.said(1, "UNAUTH", "token") != [], "it is refused")
            admin.write_text(fresh)
            for _ in range(3):
                trainer.step(1, grads=grads)
            values = trainer.step(1, grads=grads, pull=True)
            assert values is not None
            assert set(values["t"].ravel()) == {5.0}
            assert trainer.info().num_steps == 5
