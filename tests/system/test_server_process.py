"""The command `paramd-server` as a process: options, addresses, draining, ending."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Final

import grpc
import numpy as np
import pytest

from paramd.v1 import parameter_service_pb2 as pb
from paramd_server.__main__ import main
from tests.support.raw_calls import RawClient, received, selector
from tests.support.server_process import (
    START_S,
    ServerProcess,
    run_server,
    serve,
    server_environment,
)

BIG = (16 << 20,)  # 64 MiB: more than a connection buffers.


def test_serves_tcp_and_unix_and_says_where(tmp_path: Path) -> None:
    socket_file = tmp_path / "s"
    with serve(tmp_path, listen=("127.0.0.1:0", f"unix:{socket_file}", "[::1]:0")) as server:
        content = json.loads(server.port_file.read_text())
        assert list(content) == ["addresses"]
        tcp, unix, six = content["addresses"]
        assert tcp.startswith("127.0.0.1:")
        assert int(tcp.rpartition(":")[2]) > 0
        assert unix == f"unix:{socket_file}"
        assert six.startswith("[::1]:")
        for address in (tcp, unix, six):
            with RawClient(address) as client:
                assert client.health() == 1
                client.create(f"by {address}", (3,))
        with RawClient(tcp) as client:
            assert len(client.infos()) == 3
        server.terminate()
        assert server.await_end() == 0
        assert not server.port_file.exists()
        assert server.trouble() == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_lets_calls_finish_and_ends_with_0(tmp_path: Path, number: signal.Signals) -> None:
    with serve(tmp_path) as server, RawClient(server.address) as client:
        client.create("big", BIG, grad_req="null")
        client.set("big", np.full(BIG, 7, "f4"))
        call = client.start("GetData", pb.GetDataRequest(tensors=[selector("big")]))
        first = next(call)
        server.process.send_signal(number)
        _await_refusal(server)
        assert server.process.poll() is None
        ((_, value),) = received(pb.GetDataResponse, [first, *call])
        np.testing.assert_array_equal(value, np.full(BIG, 7, "f4"))
        assert call.code() is grpc.StatusCode.OK
        assert server.await_end() == 0
        assert server.trouble() == []


_WHILE_DRAINING: Final = (
    grpc.StatusCode.OK,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.CANCELLED,
)


def _await_refusal(server: ServerProcess) -> None:
    """Until a new call is refused as UNAVAILABLE; one that comes in between may be cancelled."""
    deadline = time.monotonic() + START_S
    code = grpc.StatusCode.OK
    while code is not grpc.StatusCode.UNAVAILABLE:
        with RawClient(server.address) as client:
            code = client.start("GetStatus", b"").code()
        assert code in _WHILE_DRAINING
        assert time.monotonic() < deadline, "the server still takes calls"


def test_call_that_does_not_end_is_cut_off_after_the_grace(tmp_path: Path) -> None:
    with serve(tmp_path, "--grace", "0.5") as server, RawClient(server.address) as client:
        client.create("big", BIG, grad_req="null")
        call = client.start("GetData", pb.GetDataRequest(tensors=[selector("big")]))
        next(call)
        began = time.monotonic()
        server.terminate()
        assert server.await_end() == 0
        assert 0.4 < time.monotonic() - began < 10
        with pytest.raises(grpc.RpcError):
            list(call)
        assert server.trouble() == []


def test_second_signal_while_draining_does_no_harm(tmp_path: Path) -> None:
    with serve(tmp_path, "--grace", "1") as server, RawClient(server.address) as client:
        client.create("big", BIG, grad_req="null")
        call = client.start("GetData", pb.GetDataRequest(tensors=[selector("big")]))
        next(call)
        server.terminate()
        _await_refusal(server)
        server.terminate()
        assert server.await_end() == 0
        assert server.trouble() == []


@pytest.mark.parametrize("address", ["0.0.0.0:0", "[::]:0", "example.org:50051", "*:0"])
def test_address_beyond_loopback_needs_insecure(address: str) -> None:
    ended = run_server("--listen", address)
    assert ended.returncode != 0
    assert "--insecure" in ended.stderr
    assert address in ended.stderr
    assert "Traceback" not in ended.stderr


def test_insecure_serves_every_interface(tmp_path: Path) -> None:
    with serve(tmp_path, "--insecure", listen=("0.0.0.0:0",)) as server:
        port = server.address.rpartition(":")[2]
        with RawClient(f"127.0.0.1:{port}") as client:
            assert client.health() == 1


@pytest.mark.parametrize("address", ["", "50051", "127.0.0.1", "127.0.0.1:port", "unix:"])
def test_address_that_is_none(address: str) -> None:
    ended = run_server("--listen", address)
    assert ended.returncode != 0
    assert "listen" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_port_in_use_is_a_clear_error(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        port_file = tmp_path / "ports.json"
        ended = run_server("--listen", address, "--port-file", str(port_file))
    assert ended.returncode != 0
    assert address in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not port_file.exists()


def test_two_servers_cannot_share_a_port(tmp_path: Path) -> None:
    with serve(tmp_path) as server:
        ended = run_server("--listen", server.address)
        assert ended.returncode != 0
        assert server.address in ended.stderr
        assert "Traceback" not in ended.stderr


def test_options_come_from_the_environment(tmp_path: Path) -> None:
    environment = {
        "PARAMD_LISTEN": f"127.0.0.1:0 unix:{tmp_path / 's'}",
        "PARAMD_MEMORY_LIMIT": "3M",
        "PARAMD_STALL_TIMEOUT": "5",
        "PARAMD_LOG_LEVEL": "warning",
    }
    with serve(tmp_path, listen=None, environment=environment) as server:
        assert len(server.addresses) == 2
        with RawClient(server.address) as client:
            assert client.status().memory_limit_bytes == 3 << 20
        assert "INFO" not in server.log
    wrong = run_server("--listen", "127.0.0.1:0", environment={"PARAMD_MEMORY_LIMIT": "much"})
    assert wrong.returncode != 0
    assert "much" in wrong.stderr


@pytest.mark.parametrize(
    ("text", "size"), [("1", 1), ("64K", 64 << 10), ("1.5m", 3 << 19), ("2GiB", 2 << 30)]
)
def test_memory_limit(tmp_path: Path, text: str, size: int) -> None:
    with serve(tmp_path, "--memory-limit", text) as server, RawClient(server.address) as client:
        assert client.status().memory_limit_bytes == size


@pytest.mark.parametrize(
    "arguments",
    [
        ("--memory-limit", "0"),
        ("--memory-limit", "-1G"),
        ("--memory-limit", "1X"),
        ("--memory-limit", ""),
        ("--memory-limit", "9" * 400),
        ("--grace", "-1"),
        ("--stall-timeout", "0"),
        ("--threads", "0"),
        ("--log-level", "loud"),
        ("--parent-pid", "me"),
        ("--no-such-option",),
        ("--snapshot-dir", "/dev/null"),
        ("--port-file", "/dev/null/ports.json"),
    ],
)
def test_option_that_makes_no_sense(arguments: tuple[str, ...]) -> None:
    ended = run_server("--listen", "127.0.0.1:0", *arguments)
    assert ended.returncode not in (0, None)
    assert ended.stderr.strip()
    assert "Traceback" not in ended.stderr


def test_help_lists_every_option() -> None:
    ended = run_server("--help")
    assert ended.returncode == 0
    for option in main.params:
        assert (option.opts[0] in ended.stdout) != getattr(option, "hidden", False)
    assert {option.opts[0] for option in main.params} >= {
        "--listen",
        "--insecure",
        "--snapshot-dir",
        "--memory-limit",
        "--port-file",
        "--parent-pid",
        "--grace",
        "--stall-timeout",
        "--threads",
        "--log-level",
    }
    assert "PARAMD_" in ended.stdout
    assert run_server("--version").stdout.strip()


def test_ends_with_its_parent(tmp_path: Path) -> None:
    """The parent starts a server and is killed, so that it can clean up nothing."""
    port_file = tmp_path / "ports.json"
    program = (
        "import os, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-m', 'paramd_server', '--listen',"
        f" '127.0.0.1:0', '--parent-pid', str(os.getpid()), '--port-file', {str(port_file)!r}])\n"
        "print(child.pid, flush=True)\n"
        "child.wait()\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program], env=server_environment(), stdout=subprocess.PIPE
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    deadline = time.monotonic() + START_S
    while not port_file.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    while _lives(pid):
        assert time.monotonic() < deadline, "the server outlives its parent"
        time.sleep(0.01)
    assert not port_file.exists()


def _lives(pid: int) -> bool:
    try:
        # The third field of stat, behind the name in parentheses; Z waits to be reaped.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_parent_that_is_none_ends_it_at_once(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    ended = run_server("--listen", "127.0.0.1:0", "--parent-pid", str(child.pid))
    assert ended.returncode == 0


def _come_and_go(address: str) -> None:
    with RawClient(address) as client:
        client.status()


def test_many_connections_come_and_go(tmp_path: Path) -> None:
    with serve(tmp_path) as server:
        threads = [threading.Thread(target=_come_and_go, args=(server.address,)) for _ in range(50)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        # Bytes that are no HTTP/2 do no harm either.
        host, _, port = server.address.rpartition(":")
        for data in (b"", b"GET / HTTP/1.1\r\n\r\n", b"\0" * 1000, b"PRI * HTTP/2.0\r\n\r\n"):
            with socket.create_connection((host, int(port))) as connection:
                connection.sendall(data)
        with RawClient(server.address) as client:
            assert client.health() == 1
        assert server.trouble() == []
