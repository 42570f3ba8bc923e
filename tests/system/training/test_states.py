"""Files of optimizer states: there and back bit for bit, and files that are none."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

import paramd
from paramd import Trainer
from paramd.errors import (
    FileFormatError,
    FileMissingError,
    MemoryLimitError,
    ParamdError,
    StatesMismatchError,
)
from paramd.optimizer import NAMES
from tests.support.server_process import ServerProcess

Array = np.ndarray[Any, Any]
SHAPE: Final = (3, 2)
MOMENTUM: Final[Mapping[str, Any]] = {"learning_rate": 1.0, "momentum": 0.5}


@pytest.fixture
def params(session: paramd.Session) -> paramd.ParameterDict:
    found = paramd.ParameterDict("n_", session=session)
    found.get("w", shape=SHAPE, init="ones")
    found.get("half", shape=(4,), dtype="float16", init="ones")
    found.get("table", shape=(5, 2), init="ones", grad_stype="row_sparse")
    found.initialize()
    return found


def grads(seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {
        "n_w": rng.standard_normal(SHAPE).astype("f4"),
        "n_half": rng.standard_normal(4).astype("f2"),
        "n_table": ([1, 3], rng.standard_normal((2, 2)).astype("f4")),
    }


def values(params: paramd.ParameterDict) -> dict[str, Array]:
    return dict(params.pull())


@pytest.mark.parametrize("name", NAMES)
def test_states_go_on_where_they_were_saved(
    params: paramd.ParameterDict, served: ServerProcess, tmp_path: Path, name: str
) -> None:
    if name == "lamb" and len(served.addresses) > 1:
        pytest.skip("lamb is refused where parameters are spread over shards")
    file = tmp_path / "states"
    options: dict[str, Any] = {"multi_precision": True}
    if name in ("sgd", "nag", "dcasgd"):
        options["momentum"] = 0.5
    trainer = Trainer(params, name, options)
    for number in range(3):
        trainer.step(2, grads=grads(number))
    trainer.set_learning_rate(0.03125)
    trainer.save_states(file)
    middle = values(params)
    for number in range(3, 5):
        trainer.step(2, grads=grads(number))
    expected, info = values(params), trainer.info()
    trainer.delete()
    params.set_data(middle)
    again = Trainer(params, name, options)
    again.load_states(file)
    assert again.learning_rate == 0.03125
    assert again.info().num_update == 3
    for number in range(3, 5):
        again.step(2, grads=grads(number))
    for key, value in values(params).items():
        assert value.tobytes() == expected[key].tobytes(), key
    assert again.info().num_update == info.num_update
    assert again.info().state_bytes == info.state_bytes


def test_states_of_a_trainer_that_has_not_stepped(
    params: paramd.ParameterDict, tmp_path: Path
) -> None:
    trainer = Trainer(params, "adam")
    trainer.save_states(tmp_path / "none")
    trainer.step(1, grads=grads(1))
    assert trainer.info().state_bytes > 0
    trainer.load_states(tmp_path / "none")
    assert (trainer.info().state_bytes, trainer.info().num_update) == (0, 0)


def test_states_of_a_parameter_that_is_gone(
    session: paramd.Session, params: paramd.ParameterDict, tmp_path: Path
) -> None:
    trainer = Trainer(params, "adam")
    trainer.step(1, grads=grads(1))
    session.delete("n_half")
    trainer.save_states(tmp_path / "states")
    made = paramd.Parameter("n_half", shape=(7,), dtype="float16", init="ones", session=session)
    made.initialize()
    trainer.save_states(tmp_path / "states")
    trainer.load_states(tmp_path / "states")
    assert trainer.info().state_bytes == 2 * (24 + 40)


@pytest.fixture
def saved(params: paramd.ParameterDict, tmp_path: Path) -> tuple[Trainer, Path]:
    """A trainer, and the states that it had two steps ago."""
    trainer = Trainer(params, "sgd", {**MOMENTUM, "multi_precision": True})
    trainer.step(1, grads=grads(1))
    trainer.save_states(tmp_path / "good")
    trainer.step(1, grads=grads(2))
    trainer.step(1, grads=grads(3))
    return trainer, tmp_path / "good"


def check_refused(trainer: Trainer, file: Path, *errors: type[Exception], says: str = "") -> None:
    """Loading fails, names the file, and has changed nothing."""
    before = file.with_name("before")
    after = file.with_name("after")
    trainer.save_states(before)
    info = trainer.info()
    with pytest.raises(errors or (FileFormatError,)) as caught:
        trainer.load_states(file)
    assert says in str(caught.value)
    trainer.save_states(after)
    assert before.read_bytes() == after.read_bytes()
    assert trainer.info() == info


def test_files_that_are_cut_anywhere(saved: tuple[Trainer, Path]) -> None:
    trainer, good = saved
    whole = good.read_bytes()
    (header,) = struct.unpack("<Q", whole[:8])
    places = {0, 1, 7, 8, 9, header // 2, 8 + header - 1, 8 + header, 8 + header + 1}
    places |= {len(whole) - 1, len(whole) - 25, len(whole) // 2}
    cut = good.with_name("cut")
    for place in sorted(places):
        cut.write_bytes(whole[:place])
        check_refused(trainer, cut, FileFormatError, says=str(cut))


def test_files_that_are_not_there(saved: tuple[Trainer, Path]) -> None:
    trainer, good = saved
    check_refused(trainer, good.with_name("nowhere"), FileMissingError, says="nowhere")


def tensors_of(whole: bytes) -> dict[str, tuple[str, list[int], bytes]]:
    (size,) = struct.unpack("<Q", whole[:8])
    header = json.loads(whole[8 : 8 + size])
    data = whole[8 + size :]
    return {
        name: (info["dtype"], info["shape"], data[slice(*info["data_offsets"])])
        for name, info in header.items()
        if name != "__metadata__"
    }


def file_of(tensors: Mapping[str, tuple[str, list[int], bytes]]) -> bytes:
    header: dict[str, Any] = {}
    data = b""
    for name, (dtype, shape, content) in tensors.items():
        header[name] = {
            "dtype": dtype,
            "shape": shape,
            "data_offsets": [len(data), len(data) + len(content)],
        }
        data += content
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


def with_document(whole: bytes, text: bytes) -> bytes:
    tensors = tensors_of(whole)
    return file_of({**tensors, "paramd.trainer": ("U8", [len(text)], text)})


def documents() -> dict[str, bytes]:
    """What should be the JSON of a trainer, and is not."""
    good: dict[str, Any] = {
        "version": 1,
        "optimizer": {
            "name": "sgd",
            "arguments": {"learning_rate": 1.0, "momentum": 0.5, "multi_precision": True},
            "scheduler": None,
        },
        "learning_rate": None,
        "num_updates": {"n_w": 1, "n_half": 1, "n_table": 1},
    }

    def changed(*path: str, value: Any) -> bytes:
        copy = json.loads(json.dumps(good))
        inner = copy
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = value
        return json.dumps(copy).encode()

    found = {
        "empty": b"",
        "no JSON": b"\xff\xfe{",
        "cut": json.dumps(good).encode()[:-5],
        "a list": b"[]",
        "null": b"null",
        "a number": b"1e999",
        "deep": b"[" * 100_000,
        "deep objects": b'{"version":' * 50_000,
        "huge number": json.dumps(good).encode().replace(b'"n_w": 1', b'"n_w": ' + b"9" * 10_000),
        "infinite count": json.dumps(good).encode().replace(b'"n_w": 1', b'"n_w": 1e999'),
    }
    for count in (-1, 2**63, 2**64 - 1, 2**64, 10**30, 1.5, None, [1]):
        found[f"count {count!r}"] = changed("num_updates", "n_w", value=count)
    for version in (0, 2, "1", None, 1.0 + 2**-52):
        found[f"version {version!r}"] = changed("version", value=version)
    for rate in ("NaN", "Infinity", "-0.5", '"x"', "[]", "1" * 400):
        text = changed("learning_rate", value="RATE")
        found[f"rate {rate[:9]}"] = text.replace(b'"RATE"', rate.encode())
    for where, value in (
        (("optimizer",), None),
        (("optimizer",), "sgd"),
        (("optimizer", "name"), "nothing"),
        (("optimizer", "name"), 5),
        (("optimizer", "name"), ["sgd"]),
        (("optimizer", "arguments"), []),
        (("optimizer", "arguments"), {"momentum": "0.5"}),
        (("optimizer", "arguments"), {"momentum": 7}),
        (("optimizer", "arguments"), {"lr_scheduler": {}}),
        (("optimizer", "scheduler"), 5),
        (("optimizer", "scheduler"), {"name": "factor", "arguments": {"step": 10**40}}),
        (("optimizer", "scheduler"), {"name": "factor"}),
        (("num_updates",), [1]),
        (("num_updates",), 3),
    ):
        found[f"{'.'.join(where)} {value}"[:60]] = changed(*where, value=value)
    return found


def test_documents_that_are_none(saved: tuple[Trainer, Path]) -> None:
    trainer, good = saved
    bad = good.with_name("bad")
    for what, document in documents().items():
        print("document:", what)
        bad.write_bytes(with_document(good.read_bytes(), document))
        check_refused(trainer, bad, FileFormatError, says=str(bad))


def test_other_files(saved: tuple[Trainer, Path], params: paramd.ParameterDict) -> None:
    trainer, good = saved
    other = good.with_name("other.safetensors")
    params.save(other)
    check_refused(trainer, other, FileFormatError, says="paramd.trainer")
    npz = good.with_name("other.npz")
    params.save(npz)
    check_refused(trainer, npz, FileFormatError)
    pickled = good.with_name("mxnet")
    pickled.write_bytes(b"\x80\x03}q\x00.")
    check_refused(trainer, pickled, FileFormatError)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ("another optimizer", StatesMismatchError),
        ("a state is missing", StatesMismatchError),
        ("a state too many", StatesMismatchError),
        ("another shape", StatesMismatchError),
        ("another dtype", ParamdError),
        ("a parameter that the trainer has not", StatesMismatchError),
        ("a parameter without its count", StatesMismatchError),
    ],
)
def test_states_of_something_else(
    saved: tuple[Trainer, Path], change: str, error: type[Exception]
) -> None:
    trainer, good = saved
    tensors = tensors_of(good.read_bytes())
    document = json.loads(tensors["paramd.trainer"][2])
    momentum = "momentum/n_w"
    assert momentum in tensors
    if change == "another optimizer":
        document["optimizer"] = {"name": "adam", "arguments": {}, "scheduler": None}
    elif change == "a state is missing":
        del tensors[momentum]
    elif change == "a state too many":
        tensors["variance/n_w"] = tensors[momentum]
    elif change == "another shape":
        tensors[momentum] = ("F32", [2, 3], tensors[momentum][2])
    elif change == "another dtype":
        tensors[momentum] = ("U8", [3, 2], bytes(6))
    elif change == "a parameter that the trainer has not":
        tensors["momentum/alien"] = tensors[momentum]
        document["num_updates"]["alien"] = 1
    else:
        del document["num_updates"]["n_w"]
    bad = good.with_name("bad")
    bad.write_bytes(with_document(file_of(tensors), json.dumps(document).encode()))
    check_refused(trainer, bad, error)


def test_states_that_do_not_fit(
    session: paramd.Session, served: ServerProcess, tmp_path: Path
) -> None:
    """The limit is 64 MiB: 24 of value and gradient, 24 of states, 24 more to replace them."""
    size = (3 << 20) * len(served.addresses)
    params = paramd.ParameterDict("n_", session=session)
    params.get("big", shape=(size,), grad_req="add")
    params.initialize()
    trainer = Trainer(params, "adam")
    trainer.step(1, grads={"n_big": np.ones(size, "f4")})
    trainer.save_states(tmp_path / "states")
    before = session.status().memory_bytes
    # Twice its size fits as it comes: some devices take a copy of what has been received.
    ballast = paramd.Parameter("ballast", shape=(size // 2,), grad_req="null", session=session)
    ballast.initialize()
    check_refused(trainer, tmp_path / "states", MemoryLimitError)
    session.delete("ballast")
    assert session.status().memory_bytes == before
