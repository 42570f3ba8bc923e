"""What a part lacks, and what several shards' answers are together."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from paramd.context import cpu, gpu
from paramd.spec import FirstValue, InitializerSpec, ParameterSpec, Part, StoredInfo, Version
from paramd.transport.cluster.infos import Lack, absent, lack_of, merged_info, merged_status
from paramd.transport.records import DeviceStatus, SessionStatus, WorkerStatus

PART = Part((6, 2), 0, 3, 1)
SPEC = ParameterSpec("w", PART.local_shape, part=PART)
FIRST = FirstValue(InitializerSpec("one"), 1, 0, (cpu(0),))
OTHER = replace(FIRST, seed=2)
CLIENTS = replace(FIRST, init=InitializerSpec(client_side=True))


def info(state: str, first: FirstValue | None = None, counter: int = 1) -> StoredInfo:
    contexts = () if state == "declared" else (cpu(0),)
    return StoredInfo(SPEC, SPEC, state, contexts, Version(7, counter), False, 24, 12, first)


@pytest.mark.parametrize(
    ("home", "other", "lack"),
    [
        (info("declared"), info("declared"), Lack.NOTHING),
        (info("declared"), info("initialized", FIRST), Lack.LEFT_OVER),
        (info("declared"), info("deferred", FIRST), Lack.LEFT_OVER),
        (info("deferred", FIRST), info("declared"), Lack.FIRST_VALUE),
        (info("deferred", FIRST), info("deferred", OTHER), Lack.FIRST_VALUE),
        (info("deferred", CLIENTS), info("deferred", CLIENTS), Lack.NOTHING),
        (info("deferred", FIRST), info("initialized", FIRST), Lack.NOTHING),
        (info("deferred", FIRST), info("initialized", OTHER), Lack.NEW_VALUE),
        (info("initialized", FIRST), info("declared"), Lack.FIRST_VALUE),
        (info("initialized", FIRST), info("deferred", OTHER), Lack.FIRST_VALUE),
        (info("initialized", FIRST, 2), info("declared"), Lack.LOST),
        (info("initialized", FIRST, 2), info("deferred", CLIENTS), Lack.LOST),
        (info("initialized"), info("declared"), Lack.LOST),
        (info("initialized"), info("deferred", CLIENTS), Lack.CLIENT_VALUE),
        (info("initialized", FIRST), info("initialized", FIRST, 9), Lack.NOTHING),
        (info("initialized", FIRST, 9), info("initialized", OTHER), Lack.NEW_VALUE),
        (info("initialized"), info("initialized", FIRST), Lack.NOTHING),
        # A move to other contexts reaches one shard before the other.
        (
            info("initialized", replace(FIRST, contexts=(cpu(1),)), 9),
            info("initialized", FIRST, 9),
            Lack.NOTHING,
        ),
    ],
)
def test_what_a_part_lacks(home: StoredInfo, other: StoredInfo, lack: Lack) -> None:
    assert lack_of(home, other) is lack


def test_one_description_of_all_parts() -> None:
    home, other = info("initialized", FIRST), info("initialized", FIRST, 4)
    merged = merged_info(home, [other, other])
    assert (merged.current.shape, merged.current.part) == ((6, 2), None)
    assert merged.declared == merged.current
    assert (merged.value_bytes, merged.gradient_bytes) == (72, 36)
    assert (merged.state, merged.version) == ("initialized", Version(7, 1))


def test_what_lacks_a_part_has_no_value() -> None:
    home = info("initialized", FIRST, 2)
    for other in (absent(home), info("declared")):
        merged = merged_info(home, [home, other])
        assert (merged.state, merged.contexts, merged.first_value) == ("declared", (), None)
    merged = merged_info(info("initialized"), [info("deferred", CLIENTS)])
    assert (merged.state, merged.awaits_client_value) == ("deferred", True)
    assert merged.contexts == (cpu(0),)


def _status(epoch: int, pushes: int, gpus: int, limit: int = 100) -> SessionStatus:
    workers = (WorkerStatus("a", b"1", pushes, 2 * pushes),)
    return SessionStatus("1", epoch, 5.0, 3, 10, limit, gpus, workers)


def test_one_status_of_all_shards() -> None:
    both = [_status(1, 3, 2), _status(2, 5, 1)]
    merged = merged_status(both)
    assert merged.epochs == {1, 2}
    assert merged.shards == tuple(both)
    assert (merged.epoch, merged.num_parameters, merged.num_gpus) == (1, 6, 1)
    assert (merged.memory_bytes, merged.memory_limit_bytes) == (20, 200)
    (worker,) = merged.workers
    assert (worker.num_pushes, worker.num_pushed_tensors) == (5, 16)
    assert merged_status([_status(1, 0, 0), _status(2, 0, 0, limit=0)]).memory_limit_bytes == 0
    assert both[0].epochs == {1}
    assert np.isfinite(merged.uptime)


def test_devices_of_all_shards_follow_each_other() -> None:
    one, other = (DeviceStatus(gpu(0), name, 1, 2, 3) for name in ("A", "B"))
    shards = [
        replace(_status(1, 0, 1), devices=(one,)),
        replace(_status(2, 0, 1), devices=(other,)),
    ]
    assert merged_status(shards).devices == (one, other)
