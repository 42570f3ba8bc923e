"""Makes gRPC able to go on in a forked child.

gRPC reads `GRPC_ENABLE_FORK_SUPPORT` once, when it is first imported. Without it a child of
`os.fork` hangs in its first call (measured with grpcio 1.62 to 1.85). So this module comes before
the first `import grpc`, and remembers whether it came in time.
"""

from __future__ import annotations

import os
import sys
from typing import Final

__all__ = ["ENABLED", "VARIABLE"]

VARIABLE: Final = "GRPC_ENABLE_FORK_SUPPORT"


def _enable() -> bool:
    if VARIABLE not in os.environ and "grpc._cython" not in sys.modules:
        os.environ[VARIABLE] = "1"
        return True
    # Set by the user, or gRPC was there first and has read whatever it was then.
    return os.environ.get(VARIABLE, "0").lower() in ("1", "true", "yes")


ENABLED: Final = _enable()
