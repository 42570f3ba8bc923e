"""`paramd-server` that has NumPy under other names, too.

Run as `python -m tests.support.other_devices.server`, with the same arguments. The shards of its
`--shards` are such servers, too.
"""

from __future__ import annotations

import os

from paramd_server.__main__ import main
from paramd_server.arrays.kinds import register_kind
from tests.support.other_devices.kinds import NUMPY_KINDS
from tests.support.other_devices.processes import variables_for_processes

if __name__ == "__main__":
    os.environ.update(variables_for_processes(server=__spec__.name))
    for kind in NUMPY_KINDS:
        register_kind(kind)
    main(prog_name="python -m paramd_server")
