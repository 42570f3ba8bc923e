"""Heartbeats: a worker is believed to live as long as somebody holds its session."""

from __future__ import annotations

import gc
from pathlib import Path

import paramd
from tests.support.raw_calls import RawClient
from tests.support.server_process import serve
from tests.support.waiting import wait_until


def test_a_session_that_nobody_holds_loses_its_lease(tmp_path: Path) -> None:
    with serve(tmp_path) as server, paramd.connect(server.address, lease=1.0) as watcher:
        watcher.join()
        dropped = paramd.connect(server.address, lease=1.0)
        dropped.join()
        assert watcher.num_workers == 2
        del dropped
        gc.collect()
        wait_until(lambda: watcher.num_workers == 1, "the lease of the dropped session ends")


def test_a_silent_worker_keeps_its_lease_by_heartbeats(tmp_path: Path) -> None:
    with (
        serve(tmp_path) as server,
        paramd.connect(server.address, lease=0.6) as silent,
        RawClient(server.address) as without_heartbeats,
        paramd.connect(server.address, lease=30.0) as watcher,
    ):
        rank = silent.join()
        watcher.join()
        # Its lease is as long as three of the silent worker's.
        without_heartbeats.join(lease_s=1.8)
        assert watcher.num_workers == 3
        wait_until(lambda: watcher.num_workers == 2, "the lease of the raw client ends")
        assert silent.join() == rank
        assert watcher.num_workers == 2
