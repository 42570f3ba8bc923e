"""Settings are checked, with a message that names them."""

from __future__ import annotations

import pytest

from paramd_server.config import ServerConfig, default_memory_limit, is_loopback, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1", 1),
        ("512", 512),
        ("64K", 65536),
        ("64kib", 65536),
        ("64 KB", 65536),
        ("1.5G", 3 << 29),
        ("2GiB", 2 << 30),
        (" 3T ", 3 << 40),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0",
        "0.1",
        "-1",
        "G",
        "1X",
        "1e9",
        "1.5.2",
        "nan",
        "inf",
        "9" * 30,
        "9" * 400,
        "8388608T",
    ],
)
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="size"):
        parse_size(text)


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1:0", "127.8.9.1:50051", "localhost:1", "[::1]:50051", "unix:/run/x", "unix:x:1"],
)
def test_loopback(address: str) -> None:
    assert is_loopback(address)
    ServerConfig(listen=(address,))


@pytest.mark.parametrize(
    "address", ["0.0.0.0:1", "[::]:1", "10.0.0.1:1", "example.org:1", "localhost.example.org:1"]
)
def test_beyond_loopback(address: str) -> None:
    assert not is_loopback(address)
    with pytest.raises(ValueError, match="--insecure"):
        ServerConfig(listen=(address,))
    ServerConfig(listen=(address,), insecure=True)


@pytest.mark.parametrize("address", ["", "x", ":1", "h:", "h:p", "h:123456", "unix:", "tcp"])
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(ValueError, match="--listen"):
        ServerConfig(listen=(address,), insecure=True)


def test_the_default_limit_is_below_the_machines_memory() -> None:
    config = ServerConfig()
    assert 1 << 20 < config.memory_limit == default_memory_limit()
