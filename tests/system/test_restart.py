"""A server that is asked to stop saves what it holds, and the next start takes it up."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import ml_dtypes
import numpy as np
import pytest

import paramd
from paramd.errors import FileFailedError, ServerUnavailable
from paramd.spec import InitializerSpec, ParameterSpec
from paramd.v1 import parameter_pb2
from paramd.v1 import parameter_service_pb2 as pb
from paramd.v1 import session_service_pb2 as session_pb
from paramd.wire.messages import spec_to_wire
from tests.support.contexts import device, is_main_memory
from tests.support.raw_calls import (
    SHAPE,
    VALUE,
    RawClient,
    data_stream,
    grad_stream,
    refused,
    selector,
)
from tests.support.server_process import (
    START_S,
    ServerProcess,
    run_server,
    serve,
    server_environment,
)

LARGE = (64 << 20,)  # 256 MiB: time enough to kill whoever writes it.
NAME = "layer/0 μ\n" + "x" * 1000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "state"


def start(folder: Path, *arguments: str, **more: Any) -> Any:
    return serve(folder.parent, "--snapshot-dir", str(folder), *arguments, **more)


def stop(server: ServerProcess) -> None:
    server.terminate()
    assert server.await_end() == 0, server.log
    assert server.trouble() == []


def committed(folder: Path) -> list[int]:
    return sorted(int(each.parent.name) for each in folder.glob("snapshots/*/COMMITTED"))


def save_once(folder: Path, value: float) -> None:
    """One start and stop, which leaves 'w' with a value."""
    with start(folder) as server, RawClient(server.address) as client:
        if not client.infos():
            client.create("w", SHAPE)
        client.set("w", np.full(SHAPE, value, "f4"))
        stop(server)


def value_of(folder: Path, *arguments: str) -> float:
    with start(folder, *arguments) as server, RawClient(server.address) as client:
        return float(client.get("w")[0, 0])


def build(client: RawClient) -> None:
    """One parameter of each kind, written to and pushed to."""
    client.create("z", SHAPE, grad_req="add", lr_mult=0.1, wd_mult=1e-300)
    client.create("a", SHAPE, contexts=(device(0), device(3)), init=InitializerSpec("normal"))
    client.create(NAME, (3,), grad_req="null")
    client.create("table", (10, 3), stype="row_sparse", grad_stype="row_sparse")
    client.create("embedding", (10, 3), grad_stype="row_sparse", grad_req="add")
    for name in ("f2", "f8", "u1", "i1", "<i4", "<i8", "?"):
        dtype = np.dtype(name)
        client.create(f"of {dtype}", (7,), dtype=dtype)
        client.set(f"of {dtype}", np.arange(7).astype(dtype))
    bfloat16 = np.dtype(ml_dtypes.bfloat16)
    client.create("of bfloat16", (7,), dtype=bfloat16)
    client.set("of bfloat16", np.array([0.0, -0.0, np.nan, np.inf, 1, 2, 3], bfloat16))
    client.set("z", np.full(SHAPE, -0.0, "f4"))
    client.set("a", VALUE, context=device(3))
    client.push("z", VALUE)
    client.push("z", VALUE)
    client.push("embedding", np.arange(30, dtype="f4").reshape(10, 3))
    client.push("embedding", np.ones((10, 3), "f4"))
    client.declare(
        ParameterSpec("declared", shape=SHAPE, init=InitializerSpec("uniform", {"scale": 0.1}))
    )
    client.declare(ParameterSpec("deferred", shape=(0, 5), allow_deferred_init=True))
    client.declare(ParameterSpec("formless", allow_deferred_init=True))
    client.initialize("deferred", init=InitializerSpec("uniform", {"scale": 0.3}))
    client.initialize("formless", contexts=(device(1), device(0)))


def without_epoch(seen: dict[str, Any]) -> dict[str, Any]:
    cleaned = {}
    for key, value in seen.items():
        if not key.endswith(("grad", ")")):
            info = parameter_pb2.ParameterInfo.FromString(value)
            info.version.epoch = 0
            value = info.SerializeToString(deterministic=True)
        cleaned[key] = value
    return cleaned


def test_everything_is_as_it_was(folder: Path) -> None:
    with start(folder) as server, RawClient(server.address) as client:
        build(client)
        before, order = client.everything(), [each.current.name for each in client.infos()]
        epoch, used = client.status().epoch, client.used_bytes()
        stop(server)
    for _ in range(2):
        with start(folder) as server, RawClient(server.address) as client:
            assert client.status().epoch != epoch
            assert client.used_bytes() == used
            assert [each.current.name for each in client.infos()] == order
            assert without_epoch(client.everything()) == without_epoch(before)
            stop(server)


def test_deferred_parameter_becomes_what_it_would_have_become(folder: Path) -> None:
    spec = ParameterSpec("w", shape=(0, 5), allow_deferred_init=True)
    values = []
    for restarts in (False, True):
        shutil.rmtree(folder, ignore_errors=True)
        with start(folder) as server, RawClient(server.address) as client:
            client.declare(spec)
            client.initialize("w", init=InitializerSpec("uniform", {"scale": 0.3}))
            if not restarts:
                values.append(_shaped(client))
            stop(server)
        if restarts:
            with start(folder) as server, RawClient(server.address) as client:
                values.append(_shaped(client))
    np.testing.assert_array_equal(values[0], values[1])
    assert np.ptp(values[0]) > 0


def _shaped(client: RawClient) -> Any:
    client.call(
        "Declare",
        pb.DeclareRequest(
            declarations=[
                pb.Declaration(
                    spec=spec_to_wire(ParameterSpec("w", shape=(4, 5), allow_deferred_init=True)),
                    compared=["shape"],
                )
            ]
        ),
    )
    return client.get("w")


def test_call_whose_reply_was_lost_is_answered_and_not_repeated(folder: Path) -> None:
    identity = os.urandom(16)
    with start(folder) as server, RawClient(server.address, identity) as client:
        client.create("w", SHAPE, grad_req="add")
        messages = list(grad_stream(client.operation(), ("w", VALUE)))
        answer = client.call("SetGrad", messages)
        with RawClient(server.address) as other:
            write = list(data_stream(other.operation(), ("w", VALUE), mode="add"))
            other.call("SetData", write)
        stop(server)
    for _ in range(2):
        with start(folder) as server, RawClient(server.address) as client:
            assert client.call("SetGrad", messages) == answer
            client.call("SetData", write)
            np.testing.assert_array_equal(client.get_grad("w"), VALUE)
            np.testing.assert_array_equal(client.get("w"), VALUE)
            stop(server)
    with start(folder) as server, RawClient(server.address, identity, sequence=50) as client:
        client.push("w", VALUE)  # acknowledges everything before
        with refused("OPERATION_EXPIRED"):
            client.call("SetGrad", messages)
        np.testing.assert_array_equal(client.get_grad("w"), 2 * VALUE)


def test_work_that_is_done_once_stays_done(folder: Path) -> None:
    def once(client: RawClient, name: str, action: int, ticket: Any) -> int:
        request = session_pb.OnceRequest(
            name=name,
            action=action,  # type: ignore[arg-type]
            operation=ticket,
            lease_ms=60_000,
        )
        return int(client.call("Once", request).state)

    with start(folder) as server, RawClient(server.address) as client:
        mine, other = client.operation(), client.operation()
        assert once(client, "done", session_pb.ONCE_ACTION_CLAIM, mine)
        once(client, "done", session_pb.ONCE_ACTION_COMPLETE, mine)
        once(client, "half done", session_pb.ONCE_ACTION_CLAIM, other)
        stop(server)
    with start(folder) as server, RawClient(server.address) as client:
        ticket = client.operation()
        claim = session_pb.ONCE_ACTION_CLAIM
        assert once(client, "done", claim, ticket) == session_pb.ONCE_STATE_DONE
        assert once(client, "half done", claim, ticket) == session_pb.ONCE_STATE_CLAIMED
        # A reply that was lost: who did it says so again.
        complete = session_pb.ONCE_ACTION_COMPLETE
        assert once(client, "done", complete, mine) == session_pb.ONCE_STATE_DONE


def test_workers_are_counted_on(folder: Path) -> None:
    with start(folder) as server:
        with paramd.connect(server.address, worker="Ada") as session:
            w = session.parameters().get("w", shape=SHAPE)
            w.initialize()
            w.grad()[:] = VALUE
        stop(server)
    with start(folder) as server, RawClient(server.address) as client:
        (worker,) = (each for each in client.status().workers if each.worker == "Ada")
        assert (worker.num_pushes, worker.num_pushed_tensors) == (1, 1)


def test_session_goes_on_over_a_restart(folder: Path) -> None:
    """A session that knows nothing of the restart pushes all the while; no push counts twice."""
    socket = f"unix:{folder.parent / 's'}"
    count = 300
    pushed = threading.Event()

    def push() -> None:
        with paramd.connect(socket, timeout=60.0) as session:
            w = session.parameters().get("w", shape=SHAPE, grad_req="add")
            w.initialize()
            gradient = w.grad()
            for _ in range(count):
                gradient += VALUE
                pushed.set()

    thread = threading.Thread(target=push)
    with start(folder, listen=(socket,)) as server:
        thread.start()
        assert pushed.wait(START_S)
        stop(server)
    with start(folder, listen=(socket,)) as server:
        stop(server)
    with start(folder, listen=(socket,)) as server, RawClient(server.address) as client:
        thread.join(60)
        assert not thread.is_alive()
        np.testing.assert_array_equal(client.get_grad("w"), count * VALUE)


def test_calls_that_do_not_end_are_cut_off_and_do_not_keep_it_from_saving(folder: Path) -> None:
    size = (16 << 20,)
    with start(folder, "--grace", "0.5") as server, RawClient(server.address) as client:
        client.create("big", size, grad_req="null")
        client.set("big", np.ones(size, "f4"))
        reading = client.start("GetData", pb.GetDataRequest(tensors=[selector("big")]))
        next(reading)
        half = list(data_stream(client.operation(), ("big", np.full(size, 2, "f4"))))[:5]
        going_on = threading.Event()

        def slowly() -> Iterator[Any]:
            yield from half
            going_on.wait(START_S)

        writing = client.start("SetData", slowly(), ends=False)
        stop(server)
        going_on.set()
        with pytest.raises(grpc.RpcError):
            list(reading)
        assert writing.exception() is not None
    with start(folder) as server, RawClient(server.address) as client:
        np.testing.assert_array_equal(client.get("big"), np.ones(size, "f4"))


def test_the_last_two_are_kept(folder: Path) -> None:
    for value in (1, 2, 3, 4):
        save_once(folder, value)
    assert committed(folder) == [3, 4]
    assert sorted(each.name for each in (folder / "snapshots").iterdir()) == [
        "00000003",
        "00000004",
        "lock-0-of-1",
    ]
    assert value_of(folder) == 4
    assert value_of(folder, "--restore", "4") == 4


def test_none_starts_with_nothing_and_an_empty_server_saves_nothing(folder: Path) -> None:
    save_once(folder, 1)
    for _ in range(3):
        with start(folder, "--restore", "none") as server, RawClient(server.address) as client:
            assert client.infos() == []
            stop(server)
    assert committed(folder) == [1]
    assert value_of(folder) == 1


def test_deleted_parameters_do_not_come_back(folder: Path) -> None:
    save_once(folder, 1)
    with start(folder) as server, RawClient(server.address) as client:
        client.call("Delete", pb.DeleteRequest(operation=client.operation(), names=["w"]))
        stop(server)
    with start(folder) as server, RawClient(server.address) as client:
        assert client.infos() == []


def test_a_server_without_a_directory_saves_nothing(tmp_path: Path) -> None:
    with serve(tmp_path) as server, RawClient(server.address) as client:
        client.create("w", SHAPE)
        stop(server)
    assert not list(tmp_path.glob("**/snapshots"))


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("part-0-of-1.000.safetensors", "flipped"),
        ("part-0-of-1.000.safetensors", "missing"),
        ("part-0-of-1.json", "cut"),
        ("manifest.json", "missing"),
        ("COMMITTED", "swapped"),
    ],
)
def test_damage_stops_the_start_and_names_the_file(folder: Path, file: str, damage: str) -> None:
    save_once(folder, 1)
    save_once(folder, 2)
    path = folder / "snapshots" / "00000002" / file
    content = path.read_bytes()
    if damage == "flipped":
        path.write_bytes(content[:-20] + bytes([content[-20] ^ 1]) + content[-19:])
    elif damage == "cut":
        path.write_bytes(content[:-1])
    elif damage == "swapped":
        shutil.copyfile(path.parent.parent / "00000001" / file, path)
    else:
        path.unlink()
    ended = run_server("--listen", "127.0.0.1:0", "--snapshot-dir", str(folder))
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    assert "--restore 1" in ended.stderr
    # A marker that can be read is another one's, as it says: then the manifest is wrong.
    places = ("COMMITTED", "manifest.json") if file == "COMMITTED" else (file,)
    assert any(f"00000002/{place}" in ended.stderr for place in places)
    assert committed(folder) == [1, 2]
    assert value_of(folder, "--restore", "1") == 1


def test_what_is_whole_is_said_of_the_older_one(folder: Path) -> None:
    for value in (1, 2):
        save_once(folder, value)
    for number in (1, 2):
        path = folder / "snapshots" / f"0000000{number}" / "part-0-of-1.000.safetensors"
        content = bytearray(path.read_bytes())
        content[-1] ^= 0xFF
        path.write_bytes(content)
    ended = run_server("--listen", "127.0.0.1:0", "--snapshot-dir", str(folder))
    assert ended.returncode == 1
    assert "no older one" in ended.stderr
    assert "array 'operations/" in ended.stderr or "array 'parameters/" in ended.stderr


@pytest.mark.parametrize("wanted", ["7", "00"])
def test_number_that_is_not_there(folder: Path, wanted: str) -> None:
    save_once(folder, 1)
    ended = run_server(
        "--listen", "127.0.0.1:0", "--snapshot-dir", str(folder), "--restore", wanted
    )
    assert ended.returncode == 1
    assert "there are: 1" in ended.stderr


@pytest.mark.parametrize("wanted", ["newest", "-1", "", "1.5"])
def test_restore_that_makes_no_sense(folder: Path, wanted: str) -> None:
    ended = run_server(
        "--listen", "127.0.0.1:0", "--snapshot-dir", str(folder), "--restore", wanted
    )
    assert ended.returncode == 1
    assert "--restore" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_state_that_does_not_fit_into_memory(folder: Path) -> None:
    with start(folder) as server, RawClient(server.address) as client:
        client.create("big", (1 << 20,), grad_req="null")
        client.set("big", np.ones(1 << 20, "f4"))
        stop(server)
    ended = run_server(
        "--listen", "127.0.0.1:0", "--snapshot-dir", str(folder), "--memory-limit", "1M"
    )
    assert ended.returncode == 1
    assert "'big'" in ended.stderr
    assert "memory limit" in ended.stderr


def test_unfinished_snapshot_is_passed_over_and_removed(folder: Path) -> None:
    save_once(folder, 1)
    unfinished = folder / "snapshots" / "00000002"
    shutil.copytree(folder / "snapshots" / "00000001", unfinished)
    (unfinished / "COMMITTED").unlink()
    with start(folder) as server, RawClient(server.address) as client:
        assert client.get("w")[0, 0] == 1
        assert "never finished" in server.log
        stop(server)
    assert committed(folder) == [1, 3]
    assert not unfinished.exists()


def test_two_servers_cannot_have_one_directory(folder: Path) -> None:
    with start(folder) as server, RawClient(server.address) as client:
        client.create("w", SHAPE)
        ended = run_server("--listen", "127.0.0.1:0", "--snapshot-dir", str(folder))
        assert ended.returncode == 1
        assert "in use" in ended.stderr
        stop(server)


def test_clients_cannot_name_files_among_the_snapshots(folder: Path) -> None:
    with start(folder) as server, RawClient(server.address) as client:
        client.create("w", SHAPE)
        for path in ("snapshots/x.params", "a/../snapshots/1/part-0-of-1.000.safetensors"):
            with refused("PATH_NOT_ALLOWED"):
                client.call("Save", pb.SaveRequest(names=["w"], path=path))
        client.call("Save", pb.SaveRequest(names=["w"], path="w.params"))


def test_disk_that_is_full_ends_with_an_error_and_keeps_the_older_one(folder: Path) -> None:
    save_once(folder, 1)
    with start(folder) as server, RawClient(server.address) as client:
        client.create("big", (1 << 20,), grad_req="null")
        client.set("big", np.ones(1 << 20, "f4"))
        # No file of more than 1 MiB can be written, as if the disk were full.
        limit = (1 << 20, 1 << 20)
        resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, limit)
        server.terminate()
        assert server.await_end() == 1
        assert any("cannot be saved" in line for line in server.trouble())
        assert "Traceback" not in server.log
    assert committed(folder) == [1]
    assert len(list((folder / "snapshots").iterdir())) == 2
    assert value_of(folder) == 1


def test_directory_that_is_gone_ends_with_an_error(folder: Path) -> None:
    with start(folder) as server, RawClient(server.address) as client:
        client.create("w", SHAPE)
        shutil.rmtree(folder)
        folder.write_text("a file")
        server.terminate()
        assert server.await_end() == 1
        assert str(folder) in server.log
        assert "Traceback" not in server.log
    ended = run_server("--listen", "127.0.0.1:0", "--snapshot-dir", str(folder))
    assert ended.returncode != 0
    assert "Traceback" not in ended.stderr


@pytest.fixture
def saving(folder: Path) -> Iterator[ServerProcess]:
    """A server that has begun to write its second snapshot, of 256 MiB."""
    save_once(folder, 1)
    with start(folder) as server:
        with RawClient(server.address) as client:
            client.create("big", LARGE, grad_req="null")
            client.set("big", np.ones(LARGE, "f4"))
        server.terminate()
        deadline = time.monotonic() + START_S
        while not (folder / "snapshots" / "00000002").exists():
            assert time.monotonic() < deadline
            time.sleep(0.001)
        yield server


def test_killed_while_saving_leaves_the_older_one(folder: Path, saving: ServerProcess) -> None:
    saving.process.kill()
    assert saving.await_end() == -signal.SIGKILL
    assert committed(folder) == [1], "it was faster than the test"
    assert (folder / "snapshots" / "00000002").exists()
    assert value_of(folder) == 1
    # That server has saved another one, and removed the ruins.
    assert not any(each.name.endswith("2") for each in (folder / "snapshots").iterdir())
    assert committed(folder) == [1, 3]


def test_further_signals_while_saving_do_no_harm(folder: Path, saving: ServerProcess) -> None:
    saving.terminate()
    saving.process.send_signal(signal.SIGINT)
    assert saving.await_end() == 0
    assert committed(folder) == [1, 2]
    with start(folder) as server, RawClient(server.address) as client:
        assert client.status().num_parameters == 2


@pytest.mark.skipif(not is_main_memory(), reason="what is taken up is copied to other devices")
def test_saving_and_taking_up_copy_nothing(folder: Path) -> None:
    size = 4 * LARGE[0]
    with start(folder) as server:
        with RawClient(server.address) as client:
            client.create("big", LARGE, grad_req="null")
            client.set("big", np.ones(LARGE, "f4"))
        server.reset_peak()
        server.terminate()
        peak = server.memory_bytes("VmHWM")
        while server.process.poll() is None:
            # The last line before it is gone says the most.
            try:
                peak = max(peak, server.memory_bytes("VmHWM"))
            except (AssertionError, FileNotFoundError, ProcessLookupError):
                break
            time.sleep(0.01)
        assert server.await_end() == 0
        assert peak < 1.5 * size, f"{peak >> 20} MiB"
    with start(folder) as server, RawClient(server.address) as client:
        assert server.memory_bytes("VmHWM") < 1.5 * size
        assert client.used_bytes() < 1.01 * size


def test_server_whose_parent_is_killed_saves(folder: Path) -> None:
    program = (
        "import sys, os, time, numpy as np, paramd\n"
        f"session = paramd.connect('local', snapshot_dir={str(folder)!r})\n"
        "w = session.parameters().get('w', shape=(4, 5))\n"
        "w.initialize()\n"
        "w.set_data(np.full((4, 5), 7, 'f4'))\n"
        "print(session._embedded.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program], env=server_environment(), stdout=subprocess.PIPE
    )
    assert parent.stdout is not None
    assert int(parent.stdout.readline()) > 0
    parent.kill()
    parent.wait()
    parent.stdout.close()
    # The start waits for the server that still saves.
    assert value_of(folder) == 7


def test_embedded_server_goes_on_where_it_was(folder: Path) -> None:
    for count in range(3):
        with paramd.connect("local", snapshot_dir=folder) as session:
            w = session.parameters().get("w", shape=SHAPE, grad_req="null")
            if count == 0:
                w.initialize(paramd.init.Zero())
            data = w.data()
            data += 1
            np.testing.assert_array_equal(data.asnumpy(), np.full(SHAPE, count + 1, "f4"))
    assert committed(folder) == [2, 3]


def test_embedded_server_that_cannot_save_says_so(folder: Path) -> None:
    session = paramd.connect("local", snapshot_dir=folder)
    w = session.parameters().get("w", shape=SHAPE)
    w.initialize()
    shutil.rmtree(folder)
    folder.write_text("a file")
    with pytest.raises(FileFailedError, match="cannot be saved"):
        session.close()
    session.close()


def test_embedded_server_says_what_is_wrong_with_its_snapshot(folder: Path) -> None:
    save_once(folder, 1)
    path = folder / "snapshots" / "00000001" / "manifest.json"
    path.write_text(path.read_text().replace("part", "past"))
    with pytest.raises(ServerUnavailable, match=r"manifest\.json"):
        paramd.connect("local", snapshot_dir=folder)


def test_manifest_says_what_is_in_it(folder: Path) -> None:
    save_once(folder, 1)
    path = folder / "snapshots" / "00000001"
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest["number"] == 1
    assert manifest["num_shards"] == 1
    (part,) = manifest["parts"]
    assert {name: os.stat(path / name).st_size for name in part["files"]} == part["files"]
    names = {"manifest.json", "COMMITTED", *part["files"]}
    assert {each.name for each in path.iterdir()} == names
