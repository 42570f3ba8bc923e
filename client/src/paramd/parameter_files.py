"""Saving parameters to files and loading them, on the caller's side and on the server's."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

from paramd.access import not_initialized
from paramd.context import Context
from paramd.files import TensorInfo, file_errors, format_of, open_reader, open_writer
from paramd.link import Link, describe, perform, session_of
from paramd.spec import LoadOptions, TensorHead
from paramd.tensor_values import to_write
from paramd.transport.calls import TensorWrite

__all__ = ["LoadRules", "load_file", "load_values", "save_file"]

_ON_SERVER = "server:"
_KINDS = ("arg:", "aux:")

Sink = Callable[[memoryview], None]


@dataclass(frozen=True)
class LoadRules:
    """How `load` and `load_dict` go about it.

    Attributes:
        contexts: where uninitialized parameters go; empty for the default.
        allow_missing: parameters that the file lacks stay as they are.
        ignore_extra: what is in the file only is passed over.
        restore_prefix: put in front of each name of the file.
        cast_dtype: whether dtypes may differ.
        dtype_source: which dtype counts then, 'current' or 'saved'.

    Raises:
        AssertionError: for another dtype_source.
    """

    contexts: tuple[Context, ...] = ()
    allow_missing: bool = False
    ignore_extra: bool = False
    restore_prefix: str = ""
    cast_dtype: bool = False
    dtype_source: str = "current"

    def __post_init__(self) -> None:
        if self.cast_dtype and self.dtype_source not in ("current", "saved"):
            raise AssertionError(
                f"dtype_source is 'current' or 'saved', but got {self.dtype_source!r}"
            )

    def check_prefix(self, names: Iterable[str]) -> None:
        """Checks the names that are to be loaded.

        Raises:
            AssertionError: where one lacks the prefix.
        """
        for name in names:
            if not name.startswith(self.restore_prefix):
                raise AssertionError(
                    f"restore_prefix is '{self.restore_prefix}' but the name of parameter "
                    f"'{name}' does not start with '{self.restore_prefix}'"
                )

    def options(
        self,
        links: Sequence[Link],
        source: str,
        *,
        path: str = "",
        file_names: Sequence[str] = (),
    ) -> LoadOptions:
        """What the server is told."""
        return LoadOptions(
            names=tuple(link.name for link in links),
            contexts=self.contexts,
            allow_missing=self.allow_missing,
            ignore_extra=self.ignore_extra,
            restore_prefix=self.restore_prefix,
            cast_dtype=self.cast_dtype,
            dtype_source=self.dtype_source if self.cast_dtype else "current",
            source=source,
            path=path,
            file_names=tuple(file_names),
        )


def save_file(links: Sequence[Link], filename: str | os.PathLike[str], strip_prefix: str) -> None:
    """Writes parameters to a file: of each the mean over its copies.

    Args:
        links: their proxies.
        filename: on the caller's side; after 'server:' below the server's snapshot directory.
        strip_prefix: taken away from the front of each name.

    Raises:
        ValueError: where a name does not start with it.
    """
    _check_strip_prefix(links, strip_prefix)
    path = os.fspath(filename)
    format_of(path)
    names = [link.name for link in links]
    if path.startswith(_ON_SERVER):
        session = session_of(links)
        below = path.removeprefix(_ON_SERVER)
        perform(session, links, lambda calls: calls.save_on_server(names, below, strip_prefix))
        return
    if not links:
        with file_errors(path), open_writer(path, []):
            return

    def write(heads: Sequence[TensorHead]) -> AbstractContextManager[Sink]:
        return _writing(path, heads, strip_prefix)

    perform(session_of(links), links, lambda calls: calls.save(names, write))


def _check_strip_prefix(links: Sequence[Link], strip_prefix: str) -> None:
    for index, link in enumerate(links):
        if link.name.startswith(strip_prefix):
            continue
        # MXNet goes through them one by one, so what is wrong with an earlier one comes first.
        before = links[: index + 1]
        for info in describe(session_of(before), before):
            if info.state != "initialized":
                raise not_initialized(info)
        raise ValueError(
            f"Prefix '{strip_prefix}' is to be stripped before saving, but the name of parameter "
            f"'{link.name}' does not start with '{strip_prefix}'"
        )


@contextmanager
def _writing(path: str, heads: Sequence[TensorHead], strip_prefix: str) -> Iterator[Sink]:
    infos = [
        TensorInfo(
            head.name.removeprefix(strip_prefix),
            head.shape,
            head.dtype,
            "row_sparse" if head.stype == "row_sparse" else "default",
            head.num_rows if head.stype == "row_sparse" else None,
        )
        for head in heads
    ]
    with file_errors(path), open_writer(path, infos) as writer:
        yield writer.write


def load_file(
    links: Sequence[Link], filename: str | os.PathLike[str], rules: LoadRules
) -> list[str]:
    """Loads parameters from a file; only the tensors that are wanted are read and sent.

    Args:
        links: the proxies of all parameters that it may hold.
        filename: as in `save_file`.
        rules: how.

    Returns:
        The names of those that were loaded.
    """
    path = os.fspath(filename)
    rules.check_prefix(link.name for link in links)
    if path.startswith(_ON_SERVER):
        below = path.removeprefix(_ON_SERVER)
        return _load(links, lambda: iter(()), rules.options(links, f"file: {path}", path=below))
    wanted = {link.name for link in links}
    with file_errors(path), open_reader(path) as reader:
        if reader.infos and not reader.named:
            raise TypeError(
                f"{path}: the file is a list without names, so nothing says what is what"
            )
        # Of two that differ in 'arg:' and 'aux:' only, the later counts, as in MXNet.
        indices = {
            rules.restore_prefix + _without_kind(info.name): index
            for index, info in enumerate(reader.infos)
        }

        def tensors() -> Iterator[TensorWrite]:
            for name, index in indices.items():
                if name in wanted:
                    yield TensorWrite(name, reader.read(index))

        options = rules.options(links, f"file: {path}", file_names=tuple(indices))
        return _load(links, tensors, options)


def load_values(
    links: Sequence[Link],
    values: Mapping[str, Any] | Iterable[tuple[str, Any]],
    source: str | None,
    rules: LoadRules,
) -> list[str]:
    """Loads parameters from arrays of the caller's.

    Args:
        links: the proxies of all parameters that they may be for.
        values: arrays by name, where 'arg:' and 'aux:' are stripped; or pairs, where they are not.
        source: a file's name, for messages.
        rules: how.

    Returns:
        The names of those that were loaded.
    """
    if isinstance(values, Mapping):
        pairs = [(_without_kind(name), value) for name, value in values.items()]
    else:
        pairs = list(values)
    given = {rules.restore_prefix + name: value for name, value in pairs}
    by_name = {link.name: link for link in links}

    def tensors() -> Iterator[TensorWrite]:
        for name, value in given.items():
            link = by_name.get(name)
            if link is not None:
                yield to_write(name, value, dense=link.known_spec().stype != "row_sparse")

    options = rules.options(
        links, "param_dict" if source is None else f"file: {source}", file_names=tuple(given)
    )
    return _load(links, tensors, options)


def _load(
    links: Sequence[Link],
    tensors: Callable[[], Iterable[TensorWrite]],
    options: LoadOptions,
) -> list[str]:
    session = session_of(links)
    loaded = perform(session, links, lambda calls: calls.load(tensors, options))
    names = set(loaded)
    for link in links:
        if link.name in names:
            link.note_value(session)
    return loaded


def _without_kind(name: str) -> str:
    return name[4:] if name.startswith(_KINDS) else name
