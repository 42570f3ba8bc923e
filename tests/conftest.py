"""Which devices the servers of the system tests have, and on which one the tests run."""

from __future__ import annotations

import os
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import hypothesis
import pytest

import paramd
from paramd.context import cpu
from paramd_server.arrays.cuda.driver import DriverError
from paramd_server.arrays.cuda.kinds import usable_gpus
from tests.support.clusters import GIVEN
from tests.support.contexts import (
    CONTEXT_VARIABLE,
    DEVICES_VARIABLE,
    seeded_threads,
    suite_context,
)
from tests.support.other_devices.processes import variables_for_processes

# How long an example takes says something of the machine, and nothing of the code.
hypothesis.settings.register_profile("paramd", deadline=None)
hypothesis.settings.load_profile("paramd")

_SYSTEM: Final = Path(__file__).parent / "system"
_ROOT: Final = Path(__file__).parents[1]


@dataclass(frozen=True)
class _Servers:
    """Servers with other devices.

    Attributes:
        device_types: of their contexts, beside 'cpu'.
        module: what runs in the place of `paramd_server`; '' for itself.
        variables: of their environment.
    """

    device_types: tuple[str, ...]
    module: str = ""
    variables: Mapping[str, str] = field(default_factory=dict)


_SERVERS: Final = {
    "real": _Servers(("gpu", "cpu_pinned")),
    "numpy": _Servers(("gpu", "cpu_shared"), "tests.support.other_devices.server"),
    "emulated": _Servers(
        ("gpu", "cpu_pinned"),
        "tests.support.emulated_cuda.server",
        # Kernels are kept from one run to the next.
        {"EMULATED_CUDA_CACHE": str(_ROOT / ".cache" / "emulated-cuda")},
    ),
}


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("paramd", "the servers of the system tests")
    group.addoption(
        "--context",
        default=os.environ.get(CONTEXT_VARIABLE) or "cpu(0)",
        help="the current context of the system tests, such as 'gpu(0)' "
        f"(default: ${CONTEXT_VARIABLE}, else cpu(0))",
    )
    group.addoption(
        "--devices",
        choices=tuple(_SERVERS),
        default=os.environ.get(DEVICES_VARIABLE) or "real",
        help="beside main memory: the machine's GPUs (the default), NumPy under other names as "
        "gpu(0), gpu(1) and cpu_shared, or the GPU backend on a CuPy that is emulated",
    )


def pytest_configure(config: pytest.Config) -> None:
    devices = config.getoption("devices")
    if devices not in _SERVERS:
        raise pytest.UsageError(f"${DEVICES_VARIABLE}: one of {[*_SERVERS]}, but is {devices!r}")
    servers = _SERVERS[devices]
    # The modules of tests ask for them as they are imported.
    os.environ[CONTEXT_VARIABLE] = config.getoption("context")
    os.environ[DEVICES_VARIABLE] = devices
    try:
        context = suite_context()
    except ValueError as err:
        raise pytest.UsageError(f"--context: {err}") from err
    if context.device_type not in ("cpu", *servers.device_types):
        raise pytest.UsageError(f"--devices {devices} has no context {context}")
    if servers.module and GIVEN:
        raise pytest.UsageError("--devices is for servers that the tests start, and some are given")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("devices") != "real" or suite_context().device_type == "cpu":
        return
    if why_not := _why_no_gpu():
        skipped = pytest.mark.skip(reason=f"--context {suite_context()}: {why_not}")
        for item in items:
            if _has_context(item):
                item.add_marker(skipped)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """What the modules of system tests make as they are imported has the context, too."""
    if _SYSTEM not in collector.path.parents:
        return (yield)
    with seeded_threads(suite_context()):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """System tests and their fixtures have the context and the servers, whoever asks for them."""
    context = suite_context()
    servers = _SERVERS[item.config.getoption("devices")]
    if not _has_context(item) or (context == cpu(0) and not servers.module):
        return (yield)
    with pytest.MonkeyPatch.context() as patch, seeded_threads(context):
        variables = variables_for_processes(server=servers.module, context=context)
        for name, value in {**variables, **servers.variables}.items():
            patch.setenv(name, value)
        return (yield)


def _has_context(item: pytest.Item) -> bool:
    return _SYSTEM in item.path.parents and item.get_closest_marker("real_devices") is None


def _why_no_gpu() -> str:
    """Why the servers of the tests have no GPU; '' where they have."""
    context = suite_context()
    if GIVEN:
        with paramd.connect(GIVEN) as session:
            number = session.num_gpus()
        return "" if number > context.device_id else f"the servers at {GIVEN} have {number} GPUs"
    try:
        number = len(usable_gpus())
    except DriverError as err:
        return str(err)
    return "" if number > context.device_id else f"the machine has {number} GPUs"
