"""Python imports this as it starts, where `processes` has put it on the path."""

from __future__ import annotations

import os
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


def run_instead(module: str) -> None:
    """Makes this process `python -m MODULE`, where it is to be `python -m paramd_server`."""
    if sys.argv[:1] != ["-m"]:
        return
    # sys.argv is '-m' and the arguments; sys.orig_argv has the interpreter's options, too.
    place = len(sys.orig_argv) - len(sys.argv)
    if sys.orig_argv[place] == "paramd_server":
        command = [*sys.orig_argv[:place], module, *sys.argv[1:]]
        os.execv(sys.executable, command)


class SeedingFinder:
    """Seeds the current context as soon as somebody imports `paramd.context`.

    Args:
        context: as text.
    """

    def __init__(self, context: str) -> None:
        self._context = context

    def find_spec(self, fullname: str, *_args: Any) -> ModuleSpec | None:
        if fullname != "paramd.context":
            return None
        sys.meta_path.remove(self)
        import importlib.util

        spec = importlib.util.find_spec(fullname)
        assert spec is not None
        assert spec.loader is not None
        execute = spec.loader.exec_module

        def execute_and_seed(module: ModuleType) -> None:
            execute(module)
            from tests.support.contexts import seed_threads

            seed_threads(module.Context.from_string(self._context))

        spec.loader.exec_module = execute_and_seed  # type: ignore[method-assign]
        return spec


if "TESTS_SERVER_MODULE" in os.environ:
    run_instead(os.environ["TESTS_SERVER_MODULE"])
if "TESTS_CONTEXT" in os.environ:
    # Each process waits for this file: the base class in importlib.abc would take 20 ms.
    sys.meta_path.insert(0, SeedingFinder(os.environ["TESTS_CONTEXT"]))
