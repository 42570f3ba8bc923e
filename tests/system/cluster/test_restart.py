"""Shards that die and come back with nothing, under a session that goes on."""

from __future__ import annotations

import os
import re
import signal
import warnings
from pathlib import Path

import numpy as np
import pytest

import paramd
from paramd import Parameter
from paramd.placement import home_shard
from paramd.transport.embedded import EmbeddedServer
from tests.support.clusters import SPLIT_ELEMENTS
from tests.support.proxies import ramp
from tests.support.waiting import wait_until


def _kill(servers: EmbeddedServer, shard: int) -> None:
    directory = Path(servers.targets[0].removeprefix("unix:")).parent
    log = (directory / "log").read_text()
    pids = re.findall(rf"shard {shard}/2: started as process (\d+)", log)
    os.kill(int(pids[-1]), signal.SIGKILL)


@pytest.mark.parametrize("shard", [0, 1])
def test_what_a_shard_lost_has_no_value(shard: int) -> None:
    options = {"--split-elements": str(SPLIT_ELEMENTS), "--cluster-id": "restarting"}
    servers = EmbeddedServer(options, timeout=60.0, num_shards=2)
    try:
        with paramd.connect(servers.target, timeout=60.0) as session:
            spread = Parameter("spread", shape=(7, 3))
            alone = {home_shard(name, 2): Parameter(name, shape=(2,)) for name in "abcdefgh"}
            for each in (spread, *alone.values()):
                each.initialize("ones")
            spread.set_data(ramp(7, 3))
            before = session.status()
            _kill(servers, shard)
            for lost in (spread, alone[shard]):
                with pytest.raises(RuntimeError, match=f"'{lost.name}' has not been initialized"):
                    lost.data()
            kept = alone[1 - shard]
            assert kept.data().asnumpy().tolist() == [1, 1]
            after = session.status()
            changed = [
                one.epoch != two.epoch for one, two in zip(before.shards, after.shards, strict=True)
            ]
            assert changed == [shard == 0, shard == 1]
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                alone[shard].initialize("zeros")
            assert alone[shard].data().asnumpy().tolist() == [0, 0]
            again = Parameter("spread")
            again.initialize("zeros")
            again.data()[::2] = 4
            expected = np.zeros((7, 3))
            expected[::2] = 4
            np.testing.assert_array_equal(spread.data().asnumpy(), expected)
            # The cluster has a coordinator again.
            with session.once("work") as first:
                assert first
            wait_until(lambda: len(session.workers()) >= 1, "the shards know this session")
    finally:
        servers.close()
