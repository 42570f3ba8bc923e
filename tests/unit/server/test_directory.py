"""Names on the server's side stay below one directory."""

from __future__ import annotations

from pathlib import Path

import pytest

from paramd.errors import PathNotAllowedError
from paramd_server.storage.directory import SnapshotDirectory


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "snapshots"
    (root / "sub").mkdir(parents=True)
    (tmp_path / "snapshots-of-others").mkdir()
    (tmp_path / "secret").write_text("x")
    (root / "out").symlink_to(tmp_path / "secret")
    (root / "up").symlink_to(tmp_path)
    (root / "in").symlink_to(root / "sub")
    (root / "loop").symlink_to(root / "loop")
    return root


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("a.params", "a.params"),
        ("sub/a.params", "sub/a.params"),
        ("sub/../a.params", "a.params"),
        ("./a.params", "a.params"),
        ("in/a.params", "sub/a.params"),
        ("new/deep/a.params", "new/deep/a.params"),
        ("..a", "..a"),
    ],
)
def test_names_below(root: Path, name: str, path: str) -> None:
    assert SnapshotDirectory(root).resolve(name) == root / path


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../secret",
        "../snapshots-of-others/a",
        "/etc/passwd",
        "sub/../../secret",
        "out",
        "up/secret",
        "in/../../secret",
        "a\0b",
    ],
)
def test_names_beyond(root: Path, name: str) -> None:
    with pytest.raises(PathNotAllowedError):
        SnapshotDirectory(root).resolve(name)


def test_a_loop_of_links_leads_nowhere_else(root: Path) -> None:
    try:
        path = SnapshotDirectory(root).resolve("loop")
    except PathNotAllowedError:
        return
    assert path.is_relative_to(root)


def test_the_directory_itself_may_be_a_link(root: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(root)
    assert SnapshotDirectory(link).resolve("a.params") == root / "a.params"


def test_without_a_directory_nothing_is_allowed() -> None:
    with pytest.raises(PathNotAllowedError, match="--snapshot-dir"):
        SnapshotDirectory(None).resolve("a.params")
