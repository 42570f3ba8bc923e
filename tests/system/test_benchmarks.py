"""The benchmark, in a small form: it runs, and reports every case."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_benchmark_runs_and_reports(tmp_path: Path) -> None:
    output = tmp_path / "results.json"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--quick", "--output", str(output)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    results = json.loads(output.read_text())
    counts = {key: len(lines) for key, lines in results.items() if isinstance(lines, list)}
    assert counts == {"lines": 9, "steps": 8, "workers": 4, "updates": 17, "shards": 8}
    for key in counts:
        figure = "steps_per_second" if key == "workers" else "ratio"
        for line in results[key]:
            assert line[figure] > 0, line
            assert f"| {line['case']} |" in done.stdout
    assert results["shards_verdict"] in done.stdout
    assert re.search(r"not measur\S+ .*\(\d+ cores", results["shards_verdict"])
    snapshots = results["snapshots"]
    assert min(snapshots["steps_beside"], snapshots["restart_ratio"]) > 0
    assert f"a snapshot of {snapshots['size_bytes'] / 1e9:.2f} GB" in done.stdout
