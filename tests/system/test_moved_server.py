"""Sessions whose servers come back at another address."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

import paramd
from paramd.errors import ClusterMismatchError, ServerUnavailable
from paramd.transport.whereabouts import Whereabouts
from tests.support.server_process import serve

# Nothing listens there (tcpmux, RFC 1078).
_NOWHERE = "127.0.0.1:1"


def test_a_session_follows_its_server_to_another_address(tmp_path: Path) -> None:
    now = [""]
    options = ["--snapshot-dir", str(tmp_path / "state")]
    with serve(tmp_path, *options) as first:
        session = paramd.connect(first.address, timeout=30.0, resolve=lambda: now)
        weight = paramd.Parameter("weight", shape=(3,), session=session)
        weight.initialize("ones")
    with session, serve(tmp_path, *options) as second:
        assert second.address != first.address
        now[0] = second.address
        weight.set_data(weight.data() + 1)
        np.testing.assert_array_equal(weight.data().asnumpy(), [2, 2, 2])


def test_a_session_begins_where_the_server_is_now(tmp_path: Path) -> None:
    with (
        serve(tmp_path) as server,
        paramd.connect(_NOWHERE, resolve=lambda: [server.address]) as session,
    ):
        assert session.status().num_parameters == 0


def test_without_resolve_a_session_stays_where_it_was() -> None:
    with pytest.raises(ServerUnavailable, match=_NOWHERE):
        paramd.connect(_NOWHERE, timeout=0.5)


def test_another_number_of_servers_is_refused() -> None:
    with pytest.raises(ClusterMismatchError, match=r"names 2 servers.* began with 1"):
        paramd.connect(_NOWHERE, timeout=5.0, resolve=lambda: ["127.0.0.1:2", "127.0.0.1:3"])


def test_what_is_no_address_is_refused() -> None:
    with pytest.raises(ValueError, match="'somewhere'"):
        paramd.connect(_NOWHERE, timeout=5.0, resolve=lambda: ["somewhere"])


def test_an_embedded_server_does_not_move() -> None:
    with pytest.raises(ValueError, match="resolve"):
        paramd.connect("local", resolve=lambda: [""])


def test_one_answer_is_good_for_all_shards_for_a_moment() -> None:
    asked: list[int] = []

    def resolve() -> Sequence[str]:
        asked.append(len(asked))
        return ["", "b:2"]

    whereabouts = Whereabouts(["a:1", "b:1"], resolve)
    assert [whereabouts.of(shard) for shard in (0, 1, 1)] == ["a:1", "b:2", "b:2"]
    assert asked == [0]
