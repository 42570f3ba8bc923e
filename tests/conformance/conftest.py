"""The oracle, a server, and both side by side."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conformance.both import Both, Counts
from tests.conformance.oracle import Oracle

_HERE = Path(__file__).parent
_COUNTS = pytest.StashKey[Counts]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_COUNTS] = Counts()


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    counts = config.stash[_COUNTS]
    if counts.programs:
        terminalreporter.section("conformance with MXNet 1.9.1")
        terminalreporter.write_line(str(counts))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if _HERE in item.path.parents:
            item.add_marker(pytest.mark.conformance)


@pytest.fixture(scope="session")
def counts(request: pytest.FixtureRequest) -> Counts:
    """Of all the programs of this run, the fixed and the random ones."""
    return request.config.stash[_COUNTS]


@pytest.fixture(scope="session")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Oracle]:
    with Oracle(tmp_path_factory.mktemp("mxnet")) as running:
        yield running


@pytest.fixture(scope="session")
def both(oracle: Oracle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    import paramd
    from tests.conformance.interpreter import Interpreter
    from tests.conformance.paramd_library import ParamdLibrary
    from tests.support.server_process import serve

    folder = str(tmp_path_factory.mktemp("paramd"))
    with (
        serve(tmp_path_factory.mktemp("server")) as server,
        paramd.connect(server.address) as second,
        paramd.connect(server.address) as session,
    ):

        def forget() -> None:
            for trainer in session.trainers():
                session.delete_trainer(trainer.spec.name)
            for name in list(session.parameters()):
                session.delete(name)

        yield Both(oracle, Interpreter(ParamdLibrary((session, second)), folder), forget)
