"""The raw gRPC floor: the same work over grpcio with identity serializers, and nothing else.

No Python service over gRPC can be faster. Small messages go over streams that stay open, large ones
over a stream of their own, as is faster. Run as a program it serves; `Floor` is the client.
"""

from __future__ import annotations

import json
import queue
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent import futures
from pathlib import Path
from typing import Any, Final

import grpc
import numpy as np

__all__ = ["CHUNK", "Floor", "floor_server"]

CHUNK: Final = 1 << 20
_ROW: Final = 64
# Each open stream holds a thread of the server.
_THREADS: Final = 128
# Up to so many bytes an open stream is the faster way; a push over it is one message.
_OPEN_PULL: Final = 4 << 20
_OPEN_PUSH: Final = CHUNK
# A blocking call for small pushes, a future for large ones, is the faster of two ways.
_BLOCKING_PUSH: Final = 8 << 20

Bytes = np.ndarray[Any, np.dtype[np.uint8]]
Floats = np.ndarray[Any, np.dtype[np.float32]]
Ids = np.ndarray[Any, np.dtype[np.int64]]


def floor_server(port_file: Path, size: int, num_rows: int) -> list[str]:
    """The command that starts a server.

    Args:
        port_file: where it writes its addresses, of TCP and of a Unix socket.
        size: the most bytes that are pushed to it.
        num_rows: of its table of 64 float32 each.
    """
    return [sys.executable, "-m", "benchmarks.floor", str(port_file), str(size), str(num_rows)]


class _Handlers:
    """The server's side: every value that it sends is a one."""

    def __init__(self, size: int, num_rows: int) -> None:
        self._chunk = np.ones(CHUNK // 4, np.float32).tobytes()
        self._sink = memoryview(bytearray(size))
        self._table = np.ones((num_rows, _ROW), np.float32)

    def pull(self, request: bytes, _context: grpc.ServicerContext) -> Iterator[bytes]:
        return self._chunks(int(request))

    def pulls(self, requests: Iterable[bytes], _context: grpc.ServicerContext) -> Iterator[bytes]:
        for request in requests:
            yield from self._chunks(int(request))

    def push(self, messages: Iterable[bytes], _context: grpc.ServicerContext) -> bytes:
        offset = 0
        for message in messages:
            self._sink[offset : offset + len(message)] = message
            offset += len(message)
        return b""

    def pushes(self, messages: Iterable[bytes], _context: grpc.ServicerContext) -> Iterator[bytes]:
        for message in messages:
            self._sink[: len(message)] = message
            yield b""

    def rows(self, messages: Iterable[bytes], _context: grpc.ServicerContext) -> Iterator[bytes]:
        step = CHUNK // (_ROW * 4)
        out = np.empty((step, _ROW), np.float32)
        for message in messages:
            ids = np.frombuffer(message, np.int64)
            for begin in range(0, len(ids), step):
                block = ids[begin : begin + step]
                np.take(self._table, block, axis=0, out=out[: len(block)], mode="clip")
                yield out[: len(block)].tobytes()

    def tensors(self, request: bytes, _context: grpc.ServicerContext) -> Iterator[bytes]:
        count, size = map(int, request.split())
        together = CHUNK // size
        for begin in range(0, count, together):
            yield self._chunk[: min(together, count - begin) * size]

    def _chunks(self, size: int) -> Iterator[bytes]:
        for begin in range(0, size, CHUNK):
            yield self._chunk if size - begin >= CHUNK else self._chunk[: size - begin]


def serve(port_file: Path, size: int, num_rows: int) -> None:
    """Serves until it is ended, and writes its addresses to a file."""
    of = _Handlers(size, num_rows)
    handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
        "Pull": grpc.unary_stream_rpc_method_handler(of.pull),
        "Pulls": grpc.stream_stream_rpc_method_handler(of.pulls),
        "Push": grpc.stream_unary_rpc_method_handler(of.push),
        "Pushes": grpc.stream_stream_rpc_method_handler(of.pushes),
        "Rows": grpc.stream_stream_rpc_method_handler(of.rows),
        "Tensors": grpc.unary_stream_rpc_method_handler(of.tensors),
    }
    server = grpc.server(futures.ThreadPoolExecutor(_THREADS))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("floor", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    socket = f"unix:{port_file.with_suffix('.sock')}"
    server.add_insecure_port(socket)
    server.start()
    temporary = port_file.with_suffix(".tmp")
    temporary.write_text(json.dumps({"addresses": [f"127.0.0.1:{port}", socket]}))
    temporary.replace(port_file)
    server.wait_for_termination()


class _OpenStream:
    """A stream that is opened by its first exchange and stays open for many."""

    def __init__(self, method: Any) -> None:
        self._method = method
        self._requests: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._replies: Iterator[bytes] = iter(())
        self._open = False

    def send(self, request: bytes) -> None:
        if not self._open:
            self._replies = self._method(iter(self._requests.get, None))
            self._open = True
        self._requests.put(request)

    def receive(self, out: memoryview) -> None:
        """Receives as many bytes as `out` has, into it."""
        offset = 0
        while offset < len(out):
            message = next(self._replies)
            out[offset : offset + len(message)] = message
            offset += len(message)

    def wait(self) -> None:
        """Receives one message without content."""
        next(self._replies)

    def close(self) -> None:
        self._requests.put(None)


class Floor:
    """The client's side of the floor.

    Args:
        address: of the floor's server.
    """

    def __init__(self, address: str) -> None:
        self._channel = grpc.insecure_channel(address)
        self._pull: Any = self._channel.unary_stream("/floor/Pull")
        self._push: Any = self._channel.stream_unary("/floor/Push")
        self._tensors: Any = self._channel.unary_stream("/floor/Tensors")
        self._pulls = _OpenStream(self._channel.stream_stream("/floor/Pulls"))
        self._pushes = _OpenStream(self._channel.stream_stream("/floor/Pushes"))
        self._rows = _OpenStream(self._channel.stream_stream("/floor/Rows"))

    def pull(self, out: Bytes) -> None:
        """Receives as many bytes as `out` has, into it."""
        if out.size <= _OPEN_PULL:
            self._pulls.send(str(out.size).encode())
            self._pulls.receive(out.data)
            return
        target, offset = out.data, 0
        for message in self._pull(str(out.size).encode()):
            target[offset : offset + len(message)] = message
            offset += len(message)

    def push(self, data: Bytes) -> None:
        """Sends all bytes of `data`."""
        view = data.data
        if len(view) <= _OPEN_PUSH:
            self._pushes.send(bytes(view))
            self._pushes.wait()
            return
        chunks = (bytes(view[i : i + CHUNK]) for i in range(0, len(view), CHUNK))
        if len(view) > _BLOCKING_PUSH:
            self._push.future(chunks).result()
        else:
            self._push(chunks)

    def rows(self, ids: Ids, out: Floats) -> None:
        """Receives the rows of `ids` into `out`."""
        view = ids.view(np.uint8).data
        for begin in range(0, len(view), CHUNK):
            self._rows.send(bytes(view[begin : begin + CHUNK]))
        self._rows.receive(out.reshape(-1).view(np.uint8).data)

    def tensors(self, outs: Sequence[Bytes]) -> None:
        """Receives tensors of one size, as many as fit into each message, into arrays."""
        size = outs[0].size
        targets = iter(outs)
        for message in self._tensors(f"{len(outs)} {size}".encode()):
            view = memoryview(message)
            for begin in range(0, len(view), size):
                next(targets).data[:] = view[begin : begin + size]

    def close(self) -> None:
        """Ends the connection."""
        for stream in (self._pulls, self._pushes, self._rows):
            stream.close()
        self._channel.close()


if __name__ == "__main__":
    serve(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
