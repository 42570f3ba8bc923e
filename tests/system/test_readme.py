"""The README: its examples run as they stand, and its table has every member."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import paramd
from tests.conformance.reference_members import OTHER_MEMBERS

ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.S | re.M)


def test_the_readme_has_its_examples() -> None:
    assert len(BLOCKS) == 3


@pytest.mark.parametrize("index", range(len(BLOCKS)))
def test_an_example_of_the_readme_runs(index: int, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(BLOCKS[index])
    done = subprocess.run(
        [sys.executable, "-W", "error", str(program)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


# The first cell of each line of the table of members.
CELLS = re.findall(r"^\| ([`*].*?) \|", (ROOT / "README.md").read_text(), re.M)


def in_the_table(name: str) -> bool:
    return any(re.search(rf"[`*]{name}[`(*]", cell) for cell in CELLS)


@pytest.mark.parametrize(
    ("owner", "member"), sorted({(owner, member) for owner, member, _, _ in OTHER_MEMBERS})
)
def test_a_member_of_gluon_is_in_the_table(owner: str, member: str) -> None:
    assert in_the_table(owner if member == "__init__" else member), f"{owner}.{member}"


@pytest.mark.parametrize(
    "cls", [paramd.Parameter, paramd.Constant, paramd.ParameterDict, paramd.Trainer]
)
def test_a_public_member_is_in_the_table(cls: type) -> None:
    public = [name for name in dir(cls) if not name.startswith("_")]
    assert [name for name in public if not in_the_table(name)] == []
