"""The raw gRPC floor: the same work over grpcio with identity serializers, and nothing else.

No Python service over gRPC can be faster. Run as a program it serves; `Floor` is the client.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import numpy as np

CHUNK = 1 << 20
ROW = 64


def _chunks(size: int, chunk: bytes) -> Iterator[bytes]:
    for begin in range(0, size, CHUNK):
        yield chunk if size - begin >= CHUNK else chunk[: size - begin]


def serve(port_file: Path, size: int, num_rows: int) -> None:
    """Serves pulls, pushes and rows until it is ended, and writes its address to a file."""
    chunk, sink = bytes(CHUNK), memoryview(bytearray(size))
    table = np.zeros((num_rows, ROW), np.float32)

    def pull(request: bytes, _context: grpc.ServicerContext) -> Iterator[bytes]:
        return _chunks(int(request), chunk)

    def push(messages: Iterable[bytes], _context: grpc.ServicerContext) -> bytes:
        offset = 0
        for message in messages:
            sink[offset : offset + len(message)] = message
            offset += len(message)
        return b""

    def rows(messages: Iterable[bytes], _context: grpc.ServicerContext) -> Iterator[bytes]:
        step = CHUNK // (ROW * 4)
        out = np.empty((step, ROW), np.float32)
        for message in messages:
            ids = np.frombuffer(message, np.int64)
            for begin in range(0, len(ids), step):
                block = ids[begin : begin + step]
                np.take(table, block, axis=0, out=out[: len(block)], mode="clip")
                yield out[: len(block)].tobytes()

    handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
        "Pull": grpc.unary_stream_rpc_method_handler(pull),
        "Push": grpc.stream_unary_rpc_method_handler(push),
        "Rows": grpc.stream_stream_rpc_method_handler(rows),
    }
    server = grpc.server(futures.ThreadPoolExecutor(8))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("floor", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    temporary = port_file.with_suffix(".tmp")
    temporary.write_text(json.dumps({"addresses": [f"127.0.0.1:{port}"]}))
    temporary.replace(port_file)
    server.wait_for_termination()


class Floor:
    """The client's side of the floor.

    Args:
        address: of the floor's server.
    """

    def __init__(self, address: str) -> None:
        self._channel = grpc.insecure_channel(address)
        self._pull: Any = self._channel.unary_stream("/floor/Pull")
        self._push: Any = self._channel.stream_unary("/floor/Push")
        self._rows: Any = self._channel.stream_stream("/floor/Rows")

    def pull(self, out: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
        """Receives as many bytes as `out` has, into it."""
        target, offset = out.data, 0
        for message in self._pull(str(out.size).encode()):
            target[offset : offset + len(message)] = message
            offset += len(message)

    def push(self, data: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
        """Sends all bytes of `data`."""
        view = data.data
        chunks = (bytes(view[i : i + CHUNK]) for i in range(0, len(view), CHUNK))
        # The faster of two ways: a blocking call for small pushes, a future for large ones.
        if len(view) > 8 * CHUNK:
            self._push.future(chunks).result()
        else:
            self._push(chunks)

    def rows(
        self,
        ids: np.ndarray[Any, np.dtype[np.int64]],
        out: np.ndarray[Any, np.dtype[np.float32]],
    ) -> None:
        """Receives the rows of `ids` into `out`."""
        target, offset = out.reshape(-1).view(np.uint8).data, 0
        view = ids.view(np.uint8).data
        blocks = (bytes(view[i : i + CHUNK]) for i in range(0, len(view), CHUNK))
        for message in self._rows(blocks):
            target[offset : offset + len(message)] = message
            offset += len(message)

    def close(self) -> None:
        """Ends the connection."""
        self._channel.close()


if __name__ == "__main__":
    serve(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
