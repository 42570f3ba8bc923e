"""Servers whose parameters are nearly all spread, since they split what has five elements."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from paramd.transport.embedded import EmbeddedServer

# Servers that run already, such as in containers, instead of such as the tests start.
GIVEN = os.environ.get("PARAMD_TEST_TARGET", "")
NUM_SHARDS = (len(GIVEN.split(",")),) if GIVEN else (1, 2, 5)
SPLIT_ELEMENTS = 4


@contextmanager
def small_cluster(num_shards: int, directory: Path | None = None) -> Iterator[str]:
    """Starts shards, and gives the target that names them.

    Args:
        num_shards: how many; 1 is a server without a cluster.
        directory: for files on the side of a single server.
    """
    if GIVEN:
        yield GIVEN
        return
    options = {"--split-elements": str(SPLIT_ELEMENTS)} if num_shards > 1 else {}
    if num_shards == 1 and directory is not None:
        options["--snapshot-dir"] = str(directory)
    servers = EmbeddedServer(options, timeout=60.0, num_shards=num_shards)
    try:
        yield servers.target
    finally:
        servers.close()


def ids_of(num_shards: int) -> str:
    """The name of a parametrised test's case."""
    return f"{num_shards}-shards" if num_shards > 1 else "1-shard"
