"""The table of rights, and tokens."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import paramd.v1
from paramd_server.rpc.authorization import OPEN, RIGHTS, SERVER_FILES, Authorization
from paramd_server.security import Right, TokenFile
from tests.support.security import TOKENS, write_tokens

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "security.md").read_text()


def methods_of_the_protos() -> set[str]:
    """The paths of all RPCs, by what the proto files say."""
    found = set()
    for path in sorted((ROOT / "protos" / "paramd" / "v1").glob("*.proto")):
        text = path.read_text()
        for service in re.finditer(r"^service (\w+) \{(.*?)^\}", text, re.DOTALL | re.MULTILINE):
            names = re.findall(r"^  rpc (\w+)\(", service[2], re.MULTILINE)
            found |= {f"/paramd.v1.{service[1]}/{name}" for name in names}
    return found


def test_each_method_has_a_right() -> None:
    methods = methods_of_the_protos()
    assert len(methods) > 35
    assert {path for path in RIGHTS if path.startswith("/paramd.")} == methods


def test_only_probes_are_open() -> None:
    assert set(OPEN) == {"/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"}
    assert not OPEN & set(RIGHTS)


@pytest.mark.parametrize("path", RIGHTS)
def test_each_right_is_documented(path: str) -> None:
    service, name = path.removeprefix("/").rsplit("/", 1)
    line = next(
        line for line in PAGE.splitlines() if line.startswith(f"| `{service.rpartition('.')[2]}` |")
    )
    cells = [cell.strip() for cell in line.split("|")[2:5]]
    holding = [f"`{name}`" in re.findall(r"`\w+`", cell) for cell in cells]
    assert holding == [right is RIGHTS[path] for right in Right], line


def test_rights_are_ordered() -> None:
    assert Right.READ < Right.TRAIN < Right.ADMIN
    assert SERVER_FILES is Right.ADMIN


# What the interceptor does


@dataclass(frozen=True)
class Details:
    """Of a call, as gRPC gives them."""

    method: str
    invocation_metadata: tuple[tuple[str, str | bytes], ...]


@pytest.fixture
def authorization(tmp_path: Path) -> Iterator[Authorization]:
    file = TokenFile(write_tokens(tmp_path / "tokens"))
    with ThreadPoolExecutor(1) as pool:
        yield Authorization(lambda: file.tokens, pool)


def test_a_call_that_is_let_through_costs_nothing_for_its_messages(
    authorization: Authorization,
) -> None:
    handler: Any = object()
    details: Any = Details(
        "/paramd.v1.ParameterService/SetGrad",
        (("user-agent", "x"), ("authorization", f"Bearer {TOKENS[Right.TRAIN]}")),
    )
    # The method's own handler, and nothing around it.
    assert authorization.intercept_service(lambda _: handler, details) is handler


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER", "Bearer "])
def test_schemes_are_compared_without_case(authorization: Authorization, scheme: str) -> None:
    handler: Any = object()
    details: Any = Details(
        "/paramd.v1.ParameterService/List",
        (("authorization", f"{scheme} {TOKENS[Right.READ]}"),),
    )
    assert authorization.intercept_service(lambda _: handler, details) is handler


def test_refusals_are_logged_but_not_each(
    authorization: Authorization, caplog: pytest.LogCaptureFixture
) -> None:
    metadata = (("authorization", f"Bearer {TOKENS[Right.READ]}"),)
    for _ in range(1000):
        details: Any = Details("/paramd.v1.ParameterService/Delete", metadata)
        assert authorization.intercept_service(lambda _: None, details) is not None
    (record,) = caplog.records
    assert "Delete takes the right 'admin', and the token 'read'" in record.getMessage()
    assert TOKENS[Right.READ] not in caplog.text


# Token files


def write(path: Path, text: str, mode: int = 0o600) -> Path:
    path.touch()
    path.chmod(mode)
    path.write_text(text)
    return path


DIGEST = "0" * 64


def test_a_token_file_has_comments_and_several_tokens(tmp_path: Path) -> None:
    text = f"# who: what\n\nana   admin sha256:{DIGEST}  # hers\nb.o-b_2\tread\tsha256:{'A' * 64}\n"
    tokens = TokenFile(write(tmp_path / "tokens", text)).tokens
    assert len(tokens) == 2
    assert tokens.find("something") is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "expected 1 to 1000 tokens"),
        ("# nobody\n", "expected 1 to 1000 tokens"),
        ("ana admin\n", "line 1: expected NAME RIGHT"),
        ("\nana admin the-token-itself\n", "line 2: expected NAME RIGHT"),
        (f"ana admin sha256:{DIGEST[1:]}\n", "line 1: expected NAME RIGHT"),
        (f"ana admin md5:{DIGEST}\n", "line 1: expected NAME RIGHT"),
        (f"ana root sha256:{DIGEST}\n", "line 1: the right is read, train or admin"),
        (f"ana Admin sha256:{DIGEST}\n", "line 1: the right is read, train or admin"),
        (f"{'x' * 65} read sha256:{DIGEST}\n", "line 1: expected NAME RIGHT"),
        (f"a read sha256:{DIGEST}\na read sha256:{'1' * 64}\n", "line 2: the name or the token"),
        (f"a read sha256:{DIGEST}\nb admin sha256:{DIGEST}\n", "line 2: the name or the token"),
        ("".join(f"t{i} read sha256:{i:064x}\n" for i in range(1001)), "expected 1 to 1000"),
    ],
)
def test_a_wrong_token_file_is_refused_by_line(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        TokenFile(write(tmp_path / "tokens", text))
    assert "the-token-itself" not in str(caught.value)
    assert str(tmp_path / "tokens") in str(caught.value)


def test_files_of_other_encodings_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="utf-8"):
        TokenFile(path)


def test_a_file_that_everybody_may_change_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"everybody may write to it \(mode 602\)"):
        TokenFile(write(tmp_path / "tokens", f"a read sha256:{DIGEST}\n", 0o602))


@pytest.mark.parametrize(("mode", "warned"), [(0o600, 0), (0o640, 0), (0o644, 1)])
def test_a_file_that_everybody_may_read_is_warned_of(
    tmp_path: Path, mode: int, warned: int, caplog: pytest.LogCaptureFixture
) -> None:
    TokenFile(write(tmp_path / "tokens", f"a read sha256:{DIGEST}\n", mode))
    assert [record.levelno for record in caplog.records].count(logging.WARNING) == warned


def test_a_changed_file_is_read_again_and_a_wrong_one_is_not_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_tokens(tmp_path / "tokens")
    file = TokenFile(path)
    before = file.tokens
    file.refresh()
    assert file.tokens is before
    write_tokens(path, {Right.ADMIN: "another"})
    file.refresh()
    assert file.tokens.find(TOKENS[Right.ADMIN]) is None
    found = file.tokens.find("another")
    assert found is not None
    assert (found.name, found.right) == ("admin", Right.ADMIN)
    for spoil in (lambda: path.write_text("x another\n"), path.unlink):
        spoil()
        caplog.clear()
        file.refresh()
        assert file.tokens.find("another") == found
        assert "stay as they were" in caplog.text
        assert "another" not in caplog.text
        # Said once, not at each look.
        caplog.clear()
        file.refresh()
        assert caplog.text == ""
    write_tokens(path)
    os.utime(path)
    file.refresh()
    assert file.tokens.find(TOKENS[Right.READ]) is not None


def test_generated_code_covers_the_protos() -> None:
    # The table is compared with the protos above; this holds them to what is served.
    folder = Path(paramd.v1.__path__[0])
    served = {path.name.removesuffix("_pb2.py") for path in folder.glob("*_service_pb2.py")}
    assert served == {path.stem for path in (ROOT / "protos/paramd/v1").glob("*_service.proto")}
