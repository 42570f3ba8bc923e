"""The PyTorch example runs as its text says."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.skipif(
    importlib.util.find_spec("torch") is None,
    reason="PyTorch is not installed: make frameworks",
)
def test_embedding_example_learns() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "examples.embedding"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=270,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.search(r"after: +(0\.\d+)", done.stdout)
    assert found is not None
    assert float(found[1]) >= 0.9
    # No progress bar where there is no terminal.
    assert done.stderr == ""


@pytest.mark.parametrize("name", ["embedding.py", "embedding_worker.py"])
def test_example_is_short(name: str) -> None:
    assert len((ROOT / "examples" / name).read_text().splitlines()) < 150
