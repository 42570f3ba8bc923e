"""Writing and reading piece by piece."""

from __future__ import annotations

import errno
import os
import pathlib
import resource
import stat
import threading
import tracemalloc

import ml_dtypes
import numpy as np
import pytest

from paramd.context import Context, cpu, gpu
from paramd.errors import FileFormatError, InvalidStreamError
from paramd.files import FORMATS, TensorInfo, load_arrays, open_reader, open_writer, save_arrays
from tests.unit.files.samples import array, assert_same, assert_same_all, model, rows

FLOAT = np.dtype(np.float32)
SMALL = [TensorInfo("x", (4,), FLOAT)]


@pytest.fixture(params=FORMATS)
def path(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / f"x.{request.param}"


def names_in(folder: pathlib.Path) -> list[str]:
    return sorted(os.listdir(folder))


@pytest.mark.parametrize("step", [1, 3, 7, 1000])
def test_writer_takes_any_chunking(path: pathlib.Path, step: int) -> None:
    save_arrays(path, model())
    expected = path.read_bytes()
    with open_reader(path) as reader:
        infos = reader.infos
        data = b"".join(bytes(c) for i in range(len(infos)) for c in reader.chunks(i, 64))
    path.unlink()
    with open_writer(path, infos) as writer:
        for begin in range(0, len(data), step):
            writer.write(memoryview(data)[begin : begin + step])
    assert path.read_bytes() == expected


def test_streams_take_arrays_of_any_dtype(path: pathlib.Path) -> None:
    values = array((3, 2), ml_dtypes.bfloat16)
    out = np.zeros_like(values)
    with open_writer(path, [TensorInfo("x", (3, 2), values.dtype)]) as writer:
        writer.write(values)
    with open_reader(path) as reader:
        reader.read_into(0, out)
    np.testing.assert_array_equal(out, values)


@pytest.mark.parametrize("chunk_bytes", [8, 13, 64, 1 << 20])
def test_chunks_join_to_the_payload(path: pathlib.Path, chunk_bytes: int) -> None:
    table = rows([1, 4, 5], (6, 7), np.float64)
    save_arrays(path, {"before": array((9,), np.int8), "table": table})
    with open_reader(path) as reader:
        chunks = list(reader.chunks(1, chunk_bytes))
        assert all(0 < len(chunk) <= chunk_bytes for chunk in chunks)
        assert b"".join(chunks) == table.ids.tobytes() + table.rows.tobytes()
        assert sum(map(len, chunks)) == reader.infos[1].size_bytes


def test_read_into_fills_the_callers_buffer(path: pathlib.Path) -> None:
    values = array((700, 600))
    save_arrays(path, {"x": values, "empty": array((0, 2))})
    out = np.zeros_like(values)
    with open_reader(path) as reader:
        reader.read_into(0, out)
        reader.read_into(1, np.zeros((0, 2), np.float32))
        np.testing.assert_array_equal(out, values)
        with pytest.raises(ValueError, match="1680000 bytes"):
            reader.read_into(0, out[:-1])
        with pytest.raises(ValueError, match="not contiguous"):
            reader.read_into(0, out.T)
        with pytest.raises(ValueError, match="chunk_bytes"):
            next(reader.chunks(0, 7))


def test_threads_read_one_file_at_the_same_time(path: pathlib.Path) -> None:
    arrays = {str(index): array((50_000,), seed=index) for index in range(4)}
    save_arrays(path, dict(arrays))
    results: dict[str, object] = {}
    with open_reader(path) as reader:

        def read(index: int) -> None:
            results[str(index)] = reader.read(index)

        threads = [threading.Thread(target=read, args=(index,)) for index in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for name, value in arrays.items():
        assert_same(results[name], value)  # type: ignore[arg-type]


def test_memory_stays_bounded_however_large_the_file(path: pathlib.Path) -> None:
    size = 48 << 20
    infos = [TensorInfo("x", (size // 4,), FLOAT)]
    block = bytes(1 << 20)
    tracemalloc.start()
    try:
        with open_writer(path, infos) as writer:
            for _ in range(size // len(block)):
                writer.write(block)
        with open_reader(path) as reader:
            for _chunk in reader.chunks(0, 1 << 20):
                pass
        assert tracemalloc.get_traced_memory()[1] < 6 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("sent", [0, 15, 17])
def test_a_wrong_number_of_bytes_changes_nothing(path: pathlib.Path, sent: int) -> None:
    path.write_bytes(b"old")
    with pytest.raises(InvalidStreamError, match="16 bytes"), open_writer(path, SMALL) as writer:
        writer.write(bytes(sent))
    assert path.read_bytes() == b"old"
    assert names_in(path.parent) == [path.name]


@pytest.mark.parametrize("step", [3, 8, 1000])
@pytest.mark.parametrize("ids", [[2, 1, 3], [1, 1, 2], [-1, 0, 1], [1, 2, 5]], ids=str)
def test_bad_row_ids_are_not_written(path: pathlib.Path, ids: list[int], step: int) -> None:
    path.write_bytes(b"old")
    # The ids of the second table begin anew.
    first, second = (TensorInfo(name, (5,), FLOAT, "row_sparse", 3) for name in "ab")
    data = np.array([2, 3, 4]).tobytes() + bytes(12) + np.array(ids).tobytes() + bytes(12)

    def write() -> None:
        with open_writer(path, [first, second]) as writer:
            for begin in range(0, len(data), step):
                writer.write(data[begin : begin + step])

    with pytest.raises(InvalidStreamError, match="below 5"):
        write()
    assert path.read_bytes() == b"old"


def test_an_error_in_the_block_changes_nothing(path: pathlib.Path) -> None:
    def fail() -> None:
        with open_writer(path, SMALL) as writer:
            writer.write(bytes(16))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert names_in(path.parent) == []


def test_the_target_appears_only_when_the_block_ends(path: pathlib.Path) -> None:
    with open_writer(path, SMALL) as writer:
        writer.write(bytes(16))
        assert not path.exists()
    assert names_in(path.parent) == [path.name]


def test_a_system_error_comes_as_it_is(path: pathlib.Path) -> None:
    with pytest.raises(FileNotFoundError), open_writer(path.parent / "no" / path.name, SMALL):
        pass
    with pytest.raises(FileNotFoundError):
        open_reader(path)
    path.mkdir()
    with pytest.raises(IsADirectoryError), open_writer(path, SMALL):
        pass
    with pytest.raises(IsADirectoryError):
        open_reader(path)


def test_no_space_leaves_the_old_file(path: pathlib.Path) -> None:
    path.write_bytes(b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    values = {"x": array((1 << 20,))}
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
    try:
        with pytest.raises(OSError, match="too large") as caught:
            save_arrays(path, dict(values))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.errno == errno.EFBIG
    assert path.read_bytes() == b"old"
    assert names_in(path.parent) == [path.name]


def test_a_fifo_is_neither_waited_for_nor_replaced(path: pathlib.Path) -> None:
    os.mkfifo(path)
    with pytest.raises(OSError, match="not a regular file"):
        open_reader(path)
    with pytest.raises(OSError, match="not a regular file"), open_writer(path, SMALL):
        pass
    assert stat.S_ISFIFO(path.stat().st_mode)


def test_permissions_and_links_survive(path: pathlib.Path) -> None:
    path.write_bytes(b"old")
    path.chmod(0o640)
    link = path.with_name(f"link{path.suffix}")
    link.symlink_to(path.name)
    save_arrays(link, {"x": array((2,))})
    assert link.is_symlink()
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert_same_all(load_arrays(path), {"x": array((2,))})


def test_a_refused_file_is_closed(path: pathlib.Path) -> None:
    path.write_bytes(b"nothing of the kind")
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(FileFormatError):
        open_reader(path)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_file_that_shrinks_while_it_is_read_is_an_error(path: pathlib.Path) -> None:
    save_arrays(path, {"x": array((1000,))})
    with open_reader(path) as reader:
        os.truncate(path, 2000)
        with pytest.raises(FileFormatError, match="shorter"):
            reader.read(0)


def test_params_keep_contexts(tmp_path: pathlib.Path) -> None:
    contexts = [cpu(0), cpu(3), gpu(1), Context("cpu_pinned", 0), Context("cpu_shared", 2)]
    infos = [TensorInfo(str(c), (1,), np.dtype(np.int8), context=c) for c in contexts]
    with open_writer(tmp_path / "x.params", infos) as writer:
        writer.write(bytes(len(infos)))
    with open_reader(tmp_path / "x.params") as reader:
        assert [info.context for info in reader.infos] == contexts


def test_two_tensors_of_one_name_are_refused(path: pathlib.Path) -> None:
    with pytest.raises(FileFormatError, match="two tensors of the name 'x'"):
        open_writer(path, [*SMALL, *SMALL])


@pytest.mark.parametrize(
    "arguments",
    [
        {"shape": (-1,)},
        {"shape": (1,) * 33},
        {"shape": (1 << 62, 4)},
        {"shape": (0, 1 << 62, 4)},
        {"shape": (3,), "num_rows": 1},
        {"shape": (3,), "stype": "csr"},
        {"shape": (), "stype": "row_sparse", "num_rows": 0},
        {"shape": (3,), "stype": "row_sparse"},
        {"shape": (3,), "stype": "row_sparse", "num_rows": 4},
        {"shape": (3,), "stype": "row_sparse", "num_rows": -1},
    ],
    ids=str,
)
def test_contradictory_descriptions_are_refused(arguments: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="'x'"):
        TensorInfo("x", dtype=FLOAT, **arguments)  # type: ignore[arg-type]
