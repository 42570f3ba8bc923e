"""The benchmark, in a small form: it runs, and reports every case."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import embedding_model
from benchmarks.groups import GROUPS, run_group
from benchmarks.own import OWN_SYSTEMS
from benchmarks.profiles import profile
from benchmarks.results import PEERS, Measurements
from benchmarks.steps import StepLine
from benchmarks.targets import verdicts
from benchmarks.timing import Spread, in_turn
from paramd.wire.directory import is_supported

ROOT = Path(__file__).parents[2]
NUM_CASES = {"dense": 6, "rows": 4, "bulk": 2, "steps": 4, "latency": 2, "embedding": 1}
ALL = ",".join(NUM_CASES)


def run(output: Path, *arguments: str, limit_s: float) -> tuple[dict[str, Any], str]:
    """Runs the benchmark; gives its results, and what it printed."""
    command = [sys.executable, "-m", "benchmarks", "--quick", "--output", str(output), *arguments]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            printed, said = process.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired:
            # It ends what it runs, where killing it would leave that.
            process.terminate()
            raise
    logs = "\n".join(log.read_text()[-2000:] for log in output.parent.glob("*.log"))
    assert process.returncode == 0, f"{printed}\n{said}\n{logs}"
    assert output.with_suffix(".md").read_text() in printed
    return json.loads(output.read_text()), printed


def cases_of(results: dict[str, Any], system: str) -> dict[str, list[str]]:
    """The cases of a system by section, in which it took some time."""
    found: dict[str, list[str]] = {}
    for record in results["measurements"]:
        if record["system"] == system:
            assert record.get("median_ms", record.get("samples_per_second")) > 0, record
            found.setdefault(record["section"], []).append(record["case"])
    return found


def available(results: dict[str, Any], *systems: str) -> list[str]:
    return [each for each in systems if results["systems"][each]["unavailable"] is None]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_benchmark_runs_and_reports(tmp_path: Path) -> None:
    results, printed = run(
        tmp_path / "results.json", "--systems", ",".join(OWN_SYSTEMS), limit_s=280
    )
    counts = dict.fromkeys(NUM_CASES, 0)
    for system in available(results, "paramd-tcp", "paramd-unix", "paramd-shm"):
        found = cases_of(results, system)
        assert {section: len(cases) for section, cases in found.items()} == NUM_CASES, system
        for cases in found.values():
            assert all(f"| {case} |" in printed for case in cases)
        counts = {section: counts[section] + 1 for section in counts}
    # Some processors share no memory.
    assert min(counts.values()) == (3 if is_supported() else 2)
    for system in ("floor-tcp", "floor-unix"):
        assert {*cases_of(results, system)} == {*NUM_CASES} - {"embedding"}
    assert {*cases_of(results, "memcpy")} == {"dense", "rows", "bulk"}
    assert all(each["ratios"]["TCP / floor"] > 0 for each in results["ratios"][:-1])
    assert {each["verdict"] for each in results["verdicts"]} <= {"met", "missed"}
    _check_own_tables(results, printed)


def _check_own_tables(results: dict[str, Any], printed: str) -> None:
    counts = {"steps": 8, "workers": 4, "updates": 17, "shards": 8}
    assert {key: len(results[key]) for key in counts} == counts
    for key in counts:
        figure = "steps_per_second" if key == "workers" else "ratio"
        for line in results[key]:
            assert line[figure] > 0, line
            assert f"| {line['case']} |" in printed
    assert results["shards_verdict"] in printed
    assert re.search(r"not measur\S+ .*\(\d+ cores", results["shards_verdict"])
    snapshots = results["snapshots"]
    assert min(snapshots["steps_beside"], snapshots["restart_ratio"]) > 0
    assert f"a snapshot of {snapshots['size_bytes'] / 1e9:.2f} GB" in printed


@pytest.mark.slow
@pytest.mark.skipif(not is_supported(), reason="this processor shares no memory")
def test_calls_are_taken_apart() -> None:
    found = profile(table_rows=2_000, num_rows=500, large=1 << 18, repeats=2)
    assert list(found) == ["pull 4 KB", "pull 1 MB", "pull 500 rows"]
    for parts in found.values():
        times = {part.name: part.time_ms for part in parts}
        whole = times["- client"] + times["- server"] + times["- wire and waking"]
        assert times["over gRPC"] == pytest.approx(whole)
        assert min(times["over gRPC"], times["- server"], times["floor of gRPC"]) > 0
        assert times["in shared memory"] > 0


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("peer", PEERS)
def test_a_peer_is_measured_on_the_same_cases(peer: str, tmp_path: Path) -> None:
    group = next(group for group in GROUPS if peer in group.systems)
    if group.missing():
        pytest.skip(group.missing())
    arguments = ("--systems", group.name, "--sections", ALL)
    results, printed = run(tmp_path / "results.json", *arguments, limit_s=280)
    expected = {section: NUM_CASES[section] for section in group.sections}
    found = cases_of(results, group.name)
    assert {section: len(cases) for section, cases in found.items()} == expected
    assert results["systems"][group.name]["versions"]["numpy"]
    assert f"| case | {group.name} |" in printed


def test_a_peer_without_an_environment_is_told_with_what_building_it_said(tmp_path: Path) -> None:
    log = tmp_path / "built.log"
    log.write_text("ERROR: no matching distribution\nmake: *** [it] Error 1\n")
    group = replace(GROUPS[1], environment=str(tmp_path / "none"), build_log=str(log))
    records = run_group(group, tmp_path, sections=["dense"], systems=group.systems, quick=True)
    found = Measurements(records, group.systems)
    assert "no matching distribution" in found.unavailable["ps-lite"]
    assert "ps-lite: not available: no environment" in found.report()
    assert not found.failed


def test_a_program_that_fails_keeps_what_it_has_measured_and_leaves_no_process(
    tmp_path: Path,
) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / ".installed").touch()
    pid_file = tmp_path / "pid"
    program = tmp_path / "bin/python"
    record = json.dumps({"system": "ps-lite", "section": "dense", "case": "x", "median_ms": 1.0})
    # It is called as `python -m MODULE --records FILE ...`.
    program.write_text(
        f"#!/bin/sh\necho '{record}' > \"$4\"\nsleep 600 & echo $! > {pid_file}\n"
        "echo out of luck >&2\nexit 3\n"
    )
    program.chmod(0o755)
    group = replace(GROUPS[1], environment=str(tmp_path))
    records = run_group(group, tmp_path, sections=["dense"], systems=group.systems, quick=True)
    found = Measurements(records, group.systems)
    assert found.cases == ["x"]
    assert found.failed
    assert "ended with 3: out of luck" in found.unavailable["ps-lite"]
    assert _ends(int(pid_file.read_text()))


def test_a_program_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / ".installed").touch()
    program = tmp_path / "bin/python"
    program.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\nsleep 600\n")
    program.chmod(0o755)
    group = replace(GROUPS[1], environment=str(tmp_path), limit_s=1.0)
    records = run_group(group, tmp_path, sections=["dense"], systems=group.systems, quick=True)
    assert "not done after 1 s" in records[0]["unavailable"]
    assert _ends(int((tmp_path / "pid").read_text()))


def _ends(pid: int) -> bool:
    """Whether a process is gone, or has ended and nobody has asked for its status yet."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
            status = Path(f"/proc/{pid}/stat").read_text()
        except (ProcessLookupError, FileNotFoundError):
            return True
        if status.rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.02)
    return False


def _record(system: str, case: str, median_ms: float, size_bytes: int = 4096) -> dict[str, Any]:
    times = {"median_ms": median_ms, "low_ms": median_ms, "high_ms": median_ms, "repeats": 3}
    return {
        "system": system,
        "section": "dense",
        "case": case,
        "size_bytes": size_bytes,
        **times,
    }


def test_targets_are_judged_by_ratios_of_the_run() -> None:
    large, small = "pull 64 MB", "pull 4 KB"
    records = [
        _record("floor-tcp", large, 9.2, 64 << 20),
        _record("paramd-tcp", large, 10.0, 64 << 20),
        _record("paramd-shm", large, 6.0, 64 << 20),
        _record("memcpy", large, 4.0, 64 << 20),
        _record("ps-lite", large, 24.0, 64 << 20),
        _record("ray", large, 5.0, 64 << 20),
        _record("floor-tcp", small, 0.1),
        _record("paramd-tcp", small, 0.2),
        _record("paramd-shm", small, 0.01),
    ]
    found = Measurements(records, (*OWN_SYSTEMS, *PEERS))
    spread = Spread(10.0, 9.0, 11.0, 3)
    update = replace(spread, median_ms=14.0)
    judged = {
        (each.target, each.case, each.aim): (each.value, each.verdict)
        for each in verdicts(found, [StepLine("sgd", spread, spread, update, update)], [])
    }
    assert judged == {
        (1, large, ">= 0.9"): (pytest.approx(0.92), "met"),
        (1, small, ">= 0.9"): (pytest.approx(0.5), "missed"),
        (1, large, ">= 2.5"): (pytest.approx(2.4), "missed"),
        (2, large, ">= 1"): (pytest.approx(5 / 6), "missed"),
        (2, large, ">= 4"): (pytest.approx(4.0), "met"),
        (2, large, ">= 0.85"): (pytest.approx(4 / 6), "missed"),
        (2, small, "<= 0.02"): (0.01, "met"),
        (3, "sgd", "<= 1.3"): (pytest.approx(1.4), "missed"),
    }


def test_small_calls_are_timed_in_bursts_that_take_turns() -> None:
    made: list[str] = []
    spreads = in_turn(
        {"a": lambda: made.append("a"), "b": lambda: made.append("b")},
        repeats=4,
        warm_up=1,
        burst=2,
    )
    assert "".join(made) == "aaabbb" * 3
    assert [spread.repeats for spread in spreads.values()] == [4, 4]


def test_the_embedding_model_adds_up_the_rows_of_one_id() -> None:
    generator = np.random.default_rng(4)
    ids, rows = generator.zipf(1.2, 500) % 90, generator.random((500, 6), np.float32)
    for used in (ids, ids[::-1]):
        distinct_ids = embedding_model.DistinctIds(90)
        for _ in range(2):
            distinct, places = distinct_ids.find(used)
            expected, inverse = np.unique(used, return_inverse=True)
            np.testing.assert_array_equal(distinct, expected)
            np.testing.assert_array_equal(places, inverse)
        sums = np.zeros((len(distinct), 6))
        np.add.at(sums, inverse, rows)
        np.testing.assert_allclose(distinct_ids.add_up(places, rows), sums, rtol=1e-5)


def test_the_gradients_of_the_embedding_model_are_those_of_its_loss() -> None:
    generator = np.random.default_rng(3)
    width = embedding_model.FIELDS * embedding_model.WIDTH
    embedded = generator.normal(size=(5, width))
    dense = {name: generator.normal(size=shape) for name, shape in embedding_model.SHAPES.items()}
    labels = np.array([0.0, 1.0, 1.0, 0.0, 1.0])
    of_embedded, of_dense = embedding_model.gradients(embedded, labels, dense)
    for value, gradient in [(embedded, of_embedded), *((dense[k], of_dense[k]) for k in dense)]:
        assert gradient.shape == value.shape
        direction = generator.normal(size=value.shape)
        original, step = value.copy(), 1e-6
        losses = []
        for sign in (1, -1):
            value[...] = original + sign * step * direction
            losses.append(embedding_model.loss(embedded, labels, dense))
        value[...] = original
        slope = (losses[0] - losses[1]) / (2 * step)
        assert slope == pytest.approx(float(np.sum(gradient * direction)), rel=1e-4)
