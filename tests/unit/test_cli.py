"""The command `paramd` without a server: wrong use, and servers that are not there."""

from __future__ import annotations

import socket

import pytest
from click.testing import CliRunner, Result

from paramd.cli import main

COMMANDS = ("ls", "show", "save", "load", "health")


def run(*arguments: str, target: str | None = None) -> Result:
    return CliRunner().invoke(main, arguments, env={"PARAMD_TARGET": target})


@pytest.fixture
def closed_port() -> str:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{taken.getsockname()[1]}"


def test_help_names_all_commands() -> None:
    result = run("--help")
    assert result.exit_code == 0
    for command in COMMANDS:
        assert f"\n  {command} " in result.output
        assert run(command, "--help").exit_code == 0


@pytest.mark.parametrize("command", [("ls",), ("show", "w"), ("save", "x.npz"), ("health",)])
def test_missing_target_says_how_to_give_one(command: tuple[str, ...]) -> None:
    result = run(*command)
    assert result.exit_code == 2
    assert "--target" in result.output
    assert "PARAMD_TARGET" in result.output


@pytest.mark.parametrize(
    "arguments",
    [
        ("show",),
        ("save",),
        ("load",),
        ("bogus",),
        ("ls", "--timeout", "0"),
        ("load", "x.params", "--dtype-source", "bogus"),
    ],
)
def test_wrong_use_ends_with_2(arguments: tuple[str, ...]) -> None:
    result = run(*arguments, target="127.0.0.1:1")
    assert result.exit_code == 2


@pytest.mark.parametrize("command", [("ls",), ("show", "w"), ("save", "x.params"), ("health",)])
def test_server_that_is_not_there_ends_with_3(command: tuple[str, ...], closed_port: str) -> None:
    result = run(*command, "--target", closed_port, "--timeout", "0.2")
    assert result.exit_code == 3
    assert result.stdout == ""
    assert result.stderr.startswith("Error: ")
    assert closed_port in result.stderr
    assert "Traceback" not in result.output


def test_wrong_target_is_an_error_without_traceback() -> None:
    result = run("ls", "--target", "not a target")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: ")
    assert len(result.stderr.splitlines()) == 1


def test_version() -> None:
    result = run("--version")
    assert result.exit_code == 0
    assert "0.1.0" in result.output
