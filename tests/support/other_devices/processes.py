"""What Python processes do otherwise when tests start them, directly or not.

Servers are started by much: tests, supervisors, embedded servers, actors of Ray, servers that start
again, examples, the README. All run `python -m paramd_server`; so that none has to know of it, the
new process itself looks in the environment what it should be (see `site/sitecustomize.py`).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from paramd.context import Context

__all__ = ["variables_for_processes"]

# Not PARAMD_...: servers are started without those.
_SERVER: Final = "TESTS_SERVER_MODULE"
_CONTEXT: Final = "TESTS_CONTEXT"
_SITE: Final = Path(__file__).parent / "site"
_ROOT: Final = Path(__file__).parents[3]


def variables_for_processes(*, server: str = "", context: Context | None = None) -> dict[str, str]:
    """Variables of the environment in which Python processes do as follows.

    Args:
        server: the module that runs in the place of `paramd_server`; '' for itself.
        context: the current one of every thread, outside of all `with` blocks; None for `cpu(0)`.
    """
    path = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    ours = (str(_SITE), str(_ROOT))
    variables = {"PYTHONPATH": os.pathsep.join([*ours, *(p for p in path if p and p not in ours)])}
    if server:
        variables[_SERVER] = server
    if context is not None:
        variables[_CONTEXT] = str(context)
    return variables
