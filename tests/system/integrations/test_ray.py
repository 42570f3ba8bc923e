"""Shards as actors of a real Ray cluster: several raylets on this machine."""

from __future__ import annotations

import os
import pickle
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FunctionType
from typing import Any

import numpy as np
import pytest

ray = pytest.importorskip("ray", reason="Ray is not installed: make frameworks")
cluster_utils = pytest.importorskip("ray.cluster_utils")

import paramd  # noqa: E402
import paramd_server.ray  # noqa: E402
from paramd.errors import ServerUnavailable, UnauthenticatedError  # noqa: E402
from paramd_server.certificates import Authority  # noqa: E402
from paramd_server.ray import Cluster, ShardStatus  # noqa: E402
from paramd_server.security import Right  # noqa: E402
from tests.support.security import TOKENS, Keys, write_pair, write_tokens  # noqa: E402
from tests.support.waiting import wait_until  # noqa: E402

ROOT = Path(__file__).parents[3]
SPLIT = {"--split-elements": "4"}
CPUS = 0.25
OBJECT_STORE = 80 << 20
SHAPE = (10, 3)
# Nothing here leaves the machine, and nothing of Ray is kept in the home directory.
SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DASHBOARD_ENABLED": "0",
}

pytestmark = [
    pytest.mark.slow,
    # Ray's own: sockets and log files that it leaves to the end of the process.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def raylets() -> Iterator[Any]:
    """A Ray cluster of three nodes, to which this process is connected."""
    with ExitStack() as stack, pytest.MonkeyPatch.context() as patch:
        # The paths of Ray's Unix sockets have to be short, so it is not pytest's.
        directory = stack.enter_context(TemporaryDirectory(prefix="ray-"))
        for name, value in SETTINGS.items() | {("RAY_TMPDIR", directory)}:
            patch.setenv(name, value)
        patch.delenv("RAY_ADDRESS", raising=False)
        node = {"num_cpus": 1, "object_store_memory": OBJECT_STORE, "include_dashboard": False}
        cluster = cluster_utils.Cluster(initialize_head=True, head_node_args=node)
        stack.callback(cluster.shutdown)
        for _ in range(2):
            cluster.add_node(**node)
        ray.init(address=cluster.address, log_to_driver=False)
        stack.callback(ray.shutdown)
        yield cluster


@pytest.fixture
def start(raylets: Any, tmp_path: Path) -> Iterator[Callable[..., Cluster]]:
    """Starts a cluster that ends with the test."""
    with ExitStack() as stack:

        def begin(num_shards: int = 2, **options: Any) -> Cluster:
            given: dict[str, Any] = {"num_cpus": CPUS, "options": SPLIT, "snapshot_dir": tmp_path}
            options = given | options
            return stack.enter_context(paramd_server.ray.start(num_shards, **options))

        yield begin


def lives(pid: int) -> bool:
    try:
        # The third field of stat, behind the name in parentheses; Z waits to be reaped.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def serving_again(cluster: Cluster, shard: int, before: ShardStatus) -> ShardStatus:
    """Waits until a shard has another server than before."""
    found: list[ShardStatus] = []

    def there() -> bool:
        found[:] = [cluster.shards()[shard]]
        return bool(found[0].address) and found[0].server_pid != before.server_pid

    wait_until(there, f"shard {shard} serves again", timeout_s=60.0)
    return found[0]


def weight_and_trainer(session: paramd.Session) -> tuple[paramd.Parameter, paramd.Trainer]:
    """A parameter on both shards, to whose every element each asynchronous step adds 1."""
    weight = paramd.Parameter("weight", shape=SHAPE, session=session)
    weight.initialize("zeros")
    return weight, paramd.Trainer([weight], "sgd", {"learning_rate": 1.0}, "dist_async")


def add_ones(weight: paramd.Parameter, trainer: paramd.Trainer, steps: int) -> None:
    for _ in range(steps):
        trainer.step(1, grads={weight.name: -np.ones(SHAPE, np.float32)})


def values_of(weight: paramd.Parameter) -> list[float]:
    """The different values that there are among the elements."""
    return sorted(set(weight.data().asnumpy().ravel().tolist()))


def test_shards_are_named_actors_on_different_nodes(start: Callable[..., Cluster]) -> None:
    cluster = start(3)
    shards = cluster.shards()
    assert [each.shard for each in shards] == [0, 1, 2]
    assert len({each.node_id for each in shards}) == 3
    assert cluster.target == ",".join(each.address for each in shards)
    assert all(each.address.startswith("127.0.0.1:") for each in shards)
    # The server is a child of the actor's process.
    for each in shards:
        stat = Path(f"/proc/{each.server_pid}/stat").read_text()
        assert int(stat.rpartition(")")[2].split()[1]) == each.actor_pid
    assert paramd_server.ray.target() == cluster.target
    assert paramd_server.ray.attach().shards() == shards
    with paramd.connect(cluster.target) as session:
        weight, trainer = weight_and_trainer(session)
        add_ones(weight, trainer, 2)
        assert values_of(weight) == [2.0]
    with cluster.connect() as session, pickle.loads(pickle.dumps(session)) as copy:
        assert copy.exists("weight")
    with pytest.raises(ValueError, match=r"'paramd' is there already.*attach\(\)"):
        start()


def _train(steps: int, rank: int) -> list[int]:
    """A remote task: trains in step with another one. Gives the clocks that it has begun at."""
    # It is carried to the task's process as it is written here, without this module's names.
    import numpy

    import paramd
    import paramd_server.ray

    gone_back = (paramd.errors.RolledBackError, paramd.errors.LeaseEndedError)
    with paramd_server.ray.connect(worker=f"w{rank}", num_workers=2, timeout=20.0) as session:
        weight = paramd.Parameter("weight", shape=(10, 3), session=session)
        weight.initialize("zeros")
        trainer = paramd.Trainer([weight], "sgd", {"learning_rate": 1.0}, "dist_sync")
        begun = [trainer.join()]
        clock = begun[0]
        while clock < steps:
            try:
                trainer.step(2, grads={"weight": -numpy.ones((10, 3), numpy.float32)})
            except gone_back:
                clock = trainer.join()
                begun.append(clock)
            else:
                clock += 1
        session.barrier("done", timeout=60.0)
    return begun


@pytest.mark.timeout(240)
def test_remote_workers_go_on_from_the_snapshot_when_an_actor_is_killed(
    start: Callable[..., Cluster],
) -> None:
    cluster = start()
    # By value: the task's process need not have this module.
    task = ray.remote(num_cpus=CPUS)(_by_value(_train))
    steps = 1500
    work = [task.remote(steps, rank) for rank in range(2)]
    before = cluster.shards()[1]
    with cluster.connect() as session:
        wait_until(lambda: _steps(session) > 20, "training is under way", timeout_s=60.0)
        saved_at = _steps(session)
        session.save_snapshot()
        wait_until(lambda: _steps(session) > saved_at + 20, "it goes on", timeout_s=60.0)
        ray.kill(ray.get_actor("paramd-shard-1", namespace="paramd"), no_restart=False)
        begun = ray.get(work, timeout=200.0)
        after = cluster.shards()[1]
        assert after.restarted
        assert after.actor_pid != before.actor_pid
        assert after.address == before.address
        # They went back to the snapshot, and so every step counts once.
        assert all(saved_at <= clocks[-1] < steps for clocks in begun), begun
        assert max(len(clocks) for clocks in begun) > 1, begun
        weight = session.parameters()["weight"]
        assert values_of(weight) == [float(steps)]
        assert _steps(session) == steps


def _by_value(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of the same code that belongs to no module which others would have to import."""
    assert isinstance(function, FunctionType)
    return FunctionType(function.__code__, {}, function.__name__)


def _steps(session: paramd.Session) -> int:
    trainers = session.trainers()
    return trainers[0].num_steps if trainers else 0


@pytest.mark.timeout(240)
def test_what_lost_its_keeper_saves_itself_and_nothing_is_lost(
    start: Callable[..., Cluster],
) -> None:
    cluster = start()
    with cluster.connect(timeout=60.0) as session:
        weight, trainer = weight_and_trainer(session)
        for shard in (1, 0):
            add_ones(weight, trainer, 5)
            before = cluster.shards()[shard]
            os.kill(before.actor_pid, signal.SIGKILL)
            after = serving_again(cluster, shard, before)
            assert after.address == before.address
            assert after.restarted
            assert not lives(before.server_pid)
        add_ones(weight, trainer, 5)
        assert values_of(weight) == [15.0]
        assert trainer.info().num_lost_steps == 0


@pytest.mark.timeout(240)
def test_a_server_that_is_killed_comes_back_at_its_address(start: Callable[..., Cluster]) -> None:
    cluster = start()
    with cluster.connect(timeout=60.0) as session:
        weight, trainer = weight_and_trainer(session)
        add_ones(weight, trainer, 3)
        session.save_snapshot()
        add_ones(weight, trainer, 2)
        before = cluster.shards()[1]
        os.kill(before.server_pid, signal.SIGKILL)
        after = serving_again(cluster, 1, before)
        assert (after.address, after.actor_pid) == (before.address, before.actor_pid)
        assert (after.num_starts, after.restarted) == (2, False)
        add_ones(weight, trainer, 1)
        # What came after the snapshot is lost there, as asynchronous training accepts, and counted.
        assert values_of(weight) == [4.0, 6.0]
        assert trainer.info().num_lost_steps == 2


@contextmanager
def _port_taken(status: ShardStatus) -> Iterator[None]:
    """Kills a shard's server, and takes its port before there is another one."""
    host, _, port = status.address.rpartition(":")
    os.kill(status.actor_pid, signal.SIGSTOP)
    try:
        os.kill(status.server_pid, signal.SIGKILL)
        with socket.socket() as taken:
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            wait_until(lambda: _bound(taken, host, int(port)), "the port is free")
            taken.listen()
            os.kill(status.actor_pid, signal.SIGCONT)
            yield
    finally:
        os.kill(status.actor_pid, signal.SIGCONT)


def _bound(taken: socket.socket, host: str, port: int) -> bool:
    try:
        taken.bind((host, port))
    except OSError:
        return False
    return True


@pytest.mark.timeout(240)
@pytest.mark.parametrize("shard", [0, 1])
def test_a_session_follows_a_shard_that_serves_elsewhere(
    start: Callable[..., Cluster], shard: int
) -> None:
    cluster = start()
    with cluster.connect(timeout=60.0) as session:
        weight, trainer = weight_and_trainer(session)
        add_ones(weight, trainer, 3)
        session.save_snapshot()
        before = cluster.shards()
        with _port_taken(before[shard]):
            after = serving_again(cluster, shard, before[shard])
            assert after.address != before[shard].address
            assert after.actor_pid == before[shard].actor_pid
            if shard == 0:
                # The others follow the coordinator, and their state with them.
                serving_again(cluster, 1, before[1])
            add_ones(weight, trainer, 3)
            assert values_of(weight) == [6.0]


@pytest.mark.timeout(240)
def test_a_shard_whose_node_is_gone_comes_back_on_another(
    raylets: Any, start: Callable[..., Cluster]
) -> None:
    options = {"num_cpus": 1, "object_store_memory": OBJECT_STORE, "resources": {"place": 1}}
    nodes = {node.node_id: node for node in (raylets.add_node(**options) for _ in range(2))}
    try:
        cluster = start(1, resources={"place": 1})
        with cluster.connect(timeout=90.0) as session:
            weight, trainer = weight_and_trainer(session)
            add_ones(weight, trainer, 3)
            (before,) = cluster.shards()
            session.save_snapshot()
            raylets.remove_node(nodes.pop(before.node_id), allow_graceful=False)
            after = serving_again(cluster, 0, before)
            assert after.node_id in nodes
            add_ones(weight, trainer, 3)
            assert values_of(weight) == [6.0]
        cluster.stop()
    finally:
        for node in nodes.values():
            raylets.remove_node(node)


def test_stop_leaves_no_process_and_keeps_the_state(start: Callable[..., Cluster]) -> None:
    cluster = start()
    with cluster.connect() as session:
        weight, trainer = weight_and_trainer(session)
        add_ones(weight, trainer, 4)
    pids = [pid for each in cluster.shards() for pid in (each.actor_pid, each.server_pid)]
    assert all(map(lives, pids))
    cluster.stop()
    wait_until(lambda: not any(map(lives, pids)), f"{pids} end")
    # Twice is the same.
    cluster.stop()
    groups = ray.util.placement_group_table().values()
    assert {each["state"] for each in groups} <= {"REMOVED"}
    with pytest.raises(ValueError, match="no cluster 'paramd'"):
        paramd_server.ray.target()
    again = start(memory_limit="64M")
    with again.connect() as session:
        assert values_of(session.parameters()["weight"]) == [4.0]
        assert session.trainers()[0].num_steps == 4


def started_elsewhere(raylets: Any, directory: Path, **options: object) -> list[str]:
    """Another process starts a cluster called 'kept', and ends. Gives what it says of the shards.

    Args:
        raylets: the Ray cluster.
        directory: for snapshots.
        options: of `start`.
    """
    program = (
        "import ray, sys, paramd_server.ray\n"
        "ray.init(sys.argv[1], log_to_driver=False)\n"
        f"cluster = paramd_server.ray.start(2, name='kept', num_cpus=0.25, **{options!r},\n"
        "                                  snapshot_dir=sys.argv[2])\n"
        "print(cluster.target, *(each.server_pid for each in cluster.shards()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, raylets.address, str(directory)],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1].split()


def test_a_cluster_ends_with_its_starter(raylets: Any, tmp_path: Path) -> None:
    _, *pids = started_elsewhere(raylets, tmp_path)
    wait_until(lambda: not any(lives(int(pid)) for pid in pids), f"{pids} end")
    wait_until(lambda: not _is_there("kept-shard-0"), "the name is free")
    with pytest.raises(ValueError, match="no cluster 'kept'"):
        paramd_server.ray.attach("kept")


def test_a_detached_cluster_outlives_its_starter(raylets: Any, tmp_path: Path) -> None:
    target, *pids = started_elsewhere(raylets, tmp_path, detached=True)
    with paramd_server.ray.attach("kept") as cluster:
        assert cluster.target == target
        assert [str(each.server_pid) for each in cluster.shards()] == pids
        with paramd_server.ray.connect("kept") as session:
            assert session.target == target
    assert not any(lives(int(pid)) for pid in pids)


def test_a_server_that_cannot_start_says_why(start: Callable[..., Cluster]) -> None:
    with pytest.raises(ServerUnavailable, match=r"(?s)status 1 before it served.*/nowhere/"):
        start(options={"--tls-cert": "/nowhere/cert", "--tls-key": "/nowhere/key"})
    # Nothing is left of it.
    wait_until(lambda: not _is_there("paramd-shard-0"), "the actor is gone")
    assert start().shards()[1].address


def _is_there(actor: str) -> bool:
    try:
        ray.get_actor(actor, namespace="paramd")
    except ValueError:
        return False
    return True


def test_a_cluster_for_which_ray_has_no_room_is_given_up(start: Callable[..., Cluster]) -> None:
    with pytest.raises(ServerUnavailable, match=r"no room for 2 shards with \{'CPU': 64\} each"):
        start(num_cpus=64, timeout=1.0)


def test_insecure_serves_on_the_nodes_addresses(start: Callable[..., Cluster]) -> None:
    cluster = start(insecure=True)
    for each in cluster.shards():
        assert each.address.rpartition(":")[0] == each.node
    with cluster.connect() as session:
        weight, trainer = weight_and_trainer(session)
        add_ones(weight, trainer, 1)
        assert values_of(weight) == [1.0]


def test_tls_and_tokens_secure_the_shards_among_them_too(
    start: Callable[..., Cluster], tmp_path: Path
) -> None:
    authority = Authority.make()
    keys = Keys(tmp_path / "keys")
    keys.directory.mkdir()
    write_pair(keys, "ca", authority.pair)
    # The coordinator is reached by its node's address, so that this has to be in the certificate.
    node = ray.util.get_node_ip_address()
    write_pair(keys, "node", authority.issue("node", [node]))
    tokens = write_tokens(keys.directory / "tokens")
    admin = keys.directory / "admin.token"
    admin.write_text(TOKENS[Right.ADMIN])
    cluster = start(
        options=SPLIT
        | {
            "--tls-cert": str(keys.cert("node")),
            "--tls-key": str(keys.key("node")),
            "--peer-ca": str(keys.cert("ca")),
            "--token-file": str(tokens),
            "--peer-token-file": str(admin),
        }
    )
    assert all(each.address.startswith(f"{node}:") for each in cluster.shards())
    with cluster.connect(tls=keys.tls(), token=TOKENS[Right.TRAIN]) as session:
        weight, trainer = weight_and_trainer(session)
        add_ones(weight, trainer, 2)
        assert values_of(weight) == [2.0]
    with pytest.raises(UnauthenticatedError):
        cluster.connect(tls=keys.tls())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_shards": 0}, "num_shards"),
        ({"name": "a/b"}, "name is"),
        ({"namespace": ""}, "namespace is"),
        ({"strategy": "NEAR"}, "strategy"),
        ({"snapshot_every": 5.0}, "snapshot_every needs snapshot_dir"),
        ({"snapshot_every": -1.0, "snapshot_dir": "/tmp"}, "snapshot_every"),
        ({"memory_limit": "much"}, "a size is"),
        ({"port": 65535}, "port"),
        ({"options": {"tls-cert": "x"}}, "'--tls-cert'"),
        ({"options": {"--shard": "0/2"}}, "--shard is what start"),
    ],
)
def test_wrong_arguments_are_named(raylets: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        paramd_server.ray.start(**arguments)


def test_without_a_ray_cluster_start_says_what_to_do() -> None:
    program = "import paramd_server.ray as r\ntry: r.start()\nexcept RuntimeError as e: print(e)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert "call ray.init() first" in done.stdout


def test_nothing_of_paramd_imports_ray_by_itself() -> None:
    program = "import sys, paramd, paramd_server.__main__\nprint('ray' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "False"


def test_the_example_learns_the_digits(raylets: Any) -> None:
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "examples.ray_training"],
        cwd=ROOT,
        env={**os.environ, "RAY_ADDRESS": raylets.address},
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, f"{time.monotonic() - begun:g} s\n{done.stdout}{done.stderr}"
    reached = re.search(r"200 steps; accuracy on held-out digits: (\S+)", done.stdout)
    assert reached is not None, done.stdout
    assert float(reached[1]) >= 0.93
