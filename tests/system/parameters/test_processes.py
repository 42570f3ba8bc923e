"""Parameters that outlive a process, a server, or a pickle."""

from __future__ import annotations

import multiprocessing
import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest

import paramd
from paramd import (
    Parameter,
)
from tests.support.server_process import serve


def _work(target: str, pickled: bytes, results: Any) -> None:
    weight = pickle.loads(pickled)
    with paramd.connect(target):
        weight.initialize("zeros")
        weight.data()[0] += 1
        results.put((weight.name, weight.shape, weight.data().asnumpy().tolist()))


def test_pickled_parameter_attaches_in_another_process(tmp_path: Path) -> None:
    with serve(tmp_path) as server, paramd.connect(server.address):
        weight = Parameter("w", shape=(2,), init="ones")
        weight.initialize()
        spawn = multiprocessing.get_context("spawn")
        results = spawn.Queue()
        child = spawn.Process(target=_work, args=(server.address, pickle.dumps(weight), results))
        child.start()
        assert results.get(timeout=60) == ("w", (2,), [2, 1])
        child.join(30)
        assert child.exitcode == 0
        assert weight.data().asnumpy().tolist() == [2, 1]


def test_restarted_server_is_noticed(tmp_path: Path) -> None:
    socket = f"unix:{tmp_path}/s"
    with serve(tmp_path, listen=(socket,)):
        session = paramd.connect(socket)
        weight = Parameter("w", shape=(2,), session=session)
        weight.initialize("ones")
        handle = weight.data()
    with session, serve(tmp_path, listen=(socket,)):
        with pytest.raises(KeyError):
            handle.asnumpy()
        with pytest.raises(RuntimeError, match=r"'w' has not been initialized"):
            weight.data()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            weight.initialize("zeros")
        assert handle.asnumpy().tolist() == [0, 0]
