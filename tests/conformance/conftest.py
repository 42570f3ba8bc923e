"""The oracle, an embedded server, and both side by side."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conformance.both import Both
from tests.conformance.oracle import Oracle

_HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if _HERE in item.path.parents:
            item.add_marker(pytest.mark.conformance)


@pytest.fixture(scope="session")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Oracle]:
    with Oracle(tmp_path_factory.mktemp("mxnet")) as running:
        yield running


@pytest.fixture(scope="session")
def both(oracle: Oracle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    import paramd
    from tests.conformance.interpreter import Interpreter
    from tests.conformance.paramd_library import ParamdLibrary

    folder = str(tmp_path_factory.mktemp("paramd"))
    with paramd.connect("local") as session:

        def forget() -> None:
            for name in list(session.parameters()):
                session.delete(name)

        yield Both(oracle, Interpreter(ParamdLibrary(), folder), forget)
