"""Eight processes pull and push at once: whole writes, exact sums, and real overlap."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Final

import numpy as np

from paramd.spec import InitializerSpec, ParameterSpec
from paramd.v1 import parameter_service_pb2 as pb
from tests.support.contexts import device
from tests.support.raw_calls import RawClient, received, selector
from tests.support.server_process import serve, server_environment

NUM_WORKERS: Final = 8
SHAPE: Final = (2 << 20,)  # 8 MiB of float32 or int32
# 5 seconds here, 30 with PARAMD_TEST_LONG=1.
DURATION_S: Final = 30.0 if os.environ.get("PARAMD_TEST_LONG") else 5.0
START_S: Final = 60.0


def work(address: str, worker: int, duration_s: float) -> dict[str, Any]:
    """What one process does: pull, check, write, push; when each operation ran."""
    spans: list[tuple[float, float]] = []
    torn, pushed = 0, 0
    seen: set[int] = set()
    with RawClient(address) as client:
        client.health()
        print("ready", flush=True)
        sys.stdin.readline()
        deadline = time.monotonic() + duration_s
        turn = 0
        while time.monotonic() < deadline:
            turn += 1
            began = time.monotonic()
            if turn % 3 == 0:
                value = client.get("values", context=device(worker % 2))
                torn += bool((value != value[0]).any())
                seen.add(int(value[0]))
            elif turn % 3 == 1:
                fill = worker * 100_000 + turn
                client.set("values", np.full(SHAPE, fill, "f4"))
            else:
                add = worker + turn
                client.push("sums", np.full(SHAPE, add, "<i4"))
                pushed += add
            spans.append((began, time.monotonic()))
    return {"spans": spans, "torn": torn, "pushed": pushed, "seen": sorted(seen)}


def overlaps(spans: list[tuple[float, float]]) -> int:
    """How many operations began while another one was under way."""
    count = 0
    latest = float("-inf")
    for began, ended in sorted(spans):
        count += began < latest
        latest = max(latest, ended)
    return count


def run_workers(address: str) -> list[dict[str, Any]]:
    """One process each, let go together."""
    program = (
        "import json, sys\n"
        "from tests.system.test_concurrency import work\n"
        f"print(json.dumps(work({address!r}, int(sys.argv[1]), {DURATION_S})))\n"
    )
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(index)],
            cwd=Path(__file__).resolve().parents[2],
            env=server_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for index in range(NUM_WORKERS)
    ]
    try:
        for worker in workers:
            assert worker.stdout is not None
            assert worker.stdout.readline() == "ready\n"
        outputs = []
        for worker in workers:
            assert worker.stdin is not None
            worker.stdin.write("go\n")
            worker.stdin.flush()
        for worker in workers:
            output, _ = worker.communicate(timeout=DURATION_S + START_S)
            assert worker.returncode == 0
            outputs.append(json.loads(output))
        return outputs
    finally:
        for worker in workers:
            if worker.poll() is None:
                worker.kill()
                worker.wait()


def test_arrays_are_whole_and_sums_exact(tmp_path: Path) -> None:
    with serve(tmp_path) as server, RawClient(server.address) as client:
        client.create("values", SHAPE, grad_req="null", contexts=(device(0), device(1)))
        client.create("sums", SHAPE, dtype=np.dtype("<i4"), grad_req="add")
        results = run_workers(server.address)
        spans = [tuple(span) for result in results for span in result["spans"]]
        pulls = sum(len(result["spans"]) // 3 for result in results)
        values = {value for result in results for value in result["seen"]}
        print(f"{len(spans)} operations, {overlaps(spans)} overlapping; {len(values)} values seen")
        assert [result["torn"] for result in results] == [0] * NUM_WORKERS
        total = sum(result["pushed"] for result in results)
        np.testing.assert_array_equal(client.get_grad("sums"), np.full(SHAPE, total, "<i4"))
        np.testing.assert_array_equal(
            client.get("values", context=device(0)), client.get("values", context=device(1))
        )
        # Two slow cores still do some ten operations a second.
        assert len(spans) > 5 * DURATION_S, len(spans)
        assert overlaps(spans) > 0.8 * len(spans), (overlaps(spans), len(spans))
        assert pulls > NUM_WORKERS
        assert len(values) > NUM_WORKERS
        (sums,) = client.infos("sums")
        counted = {each.identity: each.num_pushes for each in client.status().workers}
        assert len(counted) == NUM_WORKERS
        assert all(counted.values())
        assert sums.gradient_bytes == 8 << 20
        assert server.trouble() == []


def test_additions_of_many_threads_to_overlapping_regions_are_exact(tmp_path: Path) -> None:
    num_threads, rounds = 8, 40
    with serve(tmp_path) as server, RawClient(server.address) as client:
        client.create("w", (100,), dtype=np.dtype("<i8"), grad_req="null")

        def add(index: int) -> None:
            with RawClient(server.address) as own:
                for _ in range(rounds):
                    region = ((index, 50, 1),)
                    own.set("w", np.full(50, index + 1, "<i8"), region=region, mode="add")

        threads = [threading.Thread(target=add, args=(index,)) for index in range(num_threads)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        expected = np.zeros(100, "<i8")
        for index in range(num_threads):
            expected[index : index + 50] += rounds * (index + 1)
        np.testing.assert_array_equal(client.get("w"), expected)
        assert client.infos("w")[0].version.counter == 1 + num_threads * rounds


def test_rows_are_whole_while_gradients_are_replaced(tmp_path: Path) -> None:
    """Row_sparse gradients of two parameters in one slow stream, replaced meanwhile."""
    rows, width = 16_000, 1024  # 64 MB of rows: more than a connection buffers
    with serve(tmp_path) as server, RawClient(server.address) as client:
        for name in ("one", "two"):
            client.create(name, (rows, width), grad_stype="row_sparse")
            client.push(name, np.full((rows, width), 1, "f4"))
        with RawClient(server.address) as reader:
            request = pb.GetGradRequest(tensors=[selector("one"), selector("two")])
            call = reader.start("GetGrad", request)
            first = next(call)
            # What was cleared could serve the next push as spare memory.
            client.call("ZeroGrad", pb.ZeroGradRequest(operation=client.operation(), names=["one"]))
            for value in range(2, 4):
                client.push("two", np.full((rows, width), value, "f4"))
            for _, flat in received(pb.GetGradResponse, [first, *call]):
                ids = flat[: rows * 8].view("<i8")
                np.testing.assert_array_equal(ids, np.arange(rows))
                np.testing.assert_array_equal(
                    flat[rows * 8 :].view("<f4"), np.ones(rows * width, "f4")
                )
        assert server.trouble() == []


def test_first_of_many_initializations_wins(tmp_path: Path) -> None:
    with serve(tmp_path) as server, RawClient(server.address) as client:
        outcomes: list[int] = []
        barrier = threading.Barrier(8)

        def initialize(index: int) -> None:
            with RawClient(server.address) as own:
                own.declare(ParameterSpec("w", shape=(1000,)))
                init = InitializerSpec("constant", {"value": float(index)})
                barrier.wait()
                outcomes.extend(own.initialize("w", init=init).outcomes)

        threads = [threading.Thread(target=initialize, args=(index,)) for index in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(outcomes) == [1] + [3] * 7
        value = client.get("w")
        assert (value == value[0]).all()
        assert client.infos("w")[0].version.counter == 1
