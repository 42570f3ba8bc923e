"""The command `paramd`: looks into a server, and saves and loads what it holds."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import click

from paramd.context import Context
from paramd.errors import (
    DeadlineExceededError,
    MXNetError,
    ParamdError,
    ServerUnavailable,
    StalledError,
)
from paramd.files import TensorInfo, open_reader
from paramd.parameter_dict import ParameterDict
from paramd.parameter_files import LoadRules, load_file
from paramd.session import DeviceStatus, Session, SessionStatus, connect
from paramd.spec import ParameterSpec, StoredInfo
from paramd.transport.credentials import TLS, resolve_credentials
from paramd.transport.probing import probe as ask_health

__all__ = ["main"]

_FAILED: Final = 1
_UNREACHABLE: Final = 3
_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="paramd")
def main() -> None:
    """Look into a parameter server, save and load what it holds.

    Exit status: 0 done, 1 failed, 2 wrong use, 3 the server cannot be reached.
    """


def _keep(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    ctx.meta.setdefault(_SECURITY, {})[param.name] = value


def _security_option(name: str, text: str, *, path: bool = True) -> Callable[[Any], Any]:
    """An option of every command; `_session` finds its value in the context."""
    return click.option(
        f"--{name}",
        envvar=f"PARAMD_{name.upper().replace('-', '_')}",
        metavar="FILE" if path else "NAME",
        default="",
        show_envvar=True,
        expose_value=False,
        callback=_keep,
        help=text,
    )


_SECURITY: Final = "paramd.security"
_SECURITY_OPTIONS: Final = (
    _security_option("tls-ca", "Use TLS, with the authorities in this PEM file, or 'system'."),
    _security_option("tls-cert", "PEM file with a certificate of one's own."),
    _security_option("tls-key", "PEM file with its private key."),
    _security_option("tls-server-name", "The name in the server's certificate.", path=False),
    _security_option("token-file", "Holds the token to show to the server."),
    click.option(
        "--insecure",
        is_flag=True,
        envvar="PARAMD_INSECURE",
        expose_value=False,
        callback=_keep,
        help="Send the token also without TLS beyond this machine.",
    ),
)


def _security(target: str) -> dict[str, Any]:
    """What the options say, as arguments of `connect`."""
    given = click.get_current_context().meta[_SECURITY]
    ca, cert, key, name = (given[f"tls_{each}"] for each in ("ca", "cert", "key", "server_name"))
    tls = None
    if (ca or cert or key or name) and not target.startswith("unix:"):
        tls = TLS(None if ca in ("", "system") else ca, cert or None, key or None, name)
    # A token in PARAMD_TOKEN goes before one in a file that only the environment names.
    from_environment = "PARAMD_TOKEN" in os.environ and (
        given["token_file"] == os.environ.get("PARAMD_TOKEN_FILE", "")
    )
    token = None if from_environment or not given["token_file"] else Path(given["token_file"])
    return {"tls": tls, "token": token, "insecure": given["insecure"] or None}


def _target_options(command: Callable[..., None]) -> Callable[..., None]:
    target = click.option(
        "--target",
        envvar="PARAMD_TARGET",
        required=True,
        metavar="TARGET",
        show_envvar=True,
        help="The server: HOST:PORT or unix:PATH.",
    )
    timeout = click.option(
        "--timeout",
        type=click.FloatRange(min=0, min_open=True),
        default=10.0,
        show_default=True,
        metavar="SECONDS",
        help="How long to wait for the server.",
    )
    for option in reversed(_SECURITY_OPTIONS):
        command = option(command)
    return target(timeout(command))


def _json_option(command: Callable[..., None]) -> Callable[..., None]:
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(command)


@contextmanager
def _session(target: str, timeout: float) -> Iterator[Session]:
    """A session, and an end of the program with a message where something goes wrong."""
    with (
        _failures(),
        connect(target, timeout=timeout, worker="paramd-cli", **_security(target)) as session,
    ):
        yield session


@contextmanager
def _failures() -> Iterator[None]:
    """Ends the program with a message where something goes wrong."""
    try:
        yield
    except (ServerUnavailable, DeadlineExceededError, StalledError) as err:
        _print_error(err)
        sys.exit(_UNREACHABLE)
    except (ParamdError, MXNetError, OSError, ValueError, TypeError, AssertionError) as err:
        _print_error(err)
        sys.exit(_FAILED)


def _print_error(err: BaseException) -> None:
    for line in (f"Error: {err}", *getattr(err, "__notes__", ())):
        click.echo(line, err=True)


@main.command("ls")
@click.argument("prefix", default="")
@_target_options
@_json_option
def list_command(prefix: str, target: str, timeout: float, as_json: bool) -> None:
    """List the parameters whose name begins with PREFIX."""
    with _session(target, timeout) as session:
        infos = session.calls.list_parameters(prefix)
    if as_json:
        _print_json([_as_dict(info) for info in infos])
        return
    rows = [
        (
            info.current.name,
            _shape(info),
            info.current.dtype.name,
            info.current.stype,
            info.current.grad_req,
            info.state,
            _join(info.contexts),
            _size(info.value_bytes + info.gradient_bytes),
        )
        for info in infos
    ]
    head = ("NAME", "SHAPE", "DTYPE", "STYPE", "GRAD_REQ", "STATE", "CONTEXTS", "SIZE")
    _print_table(head, rows)


@main.command("show")
@click.argument("names", nargs=-1, required=True)
@_target_options
@_json_option
def show_command(names: tuple[str, ...], target: str, timeout: float, as_json: bool) -> None:
    """Show all that is known of the parameters NAMES."""
    with _session(target, timeout) as session:
        infos = session.calls.describe(names)
    if as_json:
        _print_json([_as_dict(info) for info in infos])
        return
    for index, info in enumerate(infos):
        if index:
            click.echo()
        described = _as_dict(info)
        width = max(len(key) for key in described)
        for key, value in described.items():
            click.echo(f"{key:<{width}}  {_plain(value)}")


@main.command("save")
@click.argument("filename")
@click.argument("names", nargs=-1)
@click.option("--prefix", default="", help="Save the parameters whose name begins so.")
@click.option("--strip-prefix", default="", help="Take this away from the front of each name.")
@_target_options
@_json_option
def save_command(
    filename: str,
    names: tuple[str, ...],
    prefix: str,
    strip_prefix: str,
    target: str,
    timeout: float,
    as_json: bool,
) -> None:
    """Save parameters to FILENAME: all, those of NAMES, or those with a prefix.

    The suffix selects the format: .params, .safetensors or .npz. After "server:" it is a file
    below the server's snapshot directory.
    """
    with _session(target, timeout) as session:
        infos = session.calls.describe(names) if names else session.calls.list_parameters(prefix)
        params = ParameterDict._from_infos(session, "", infos)
        params.save(filename, strip_prefix=strip_prefix)
    _report({"file": filename, "saved": list(params)}, as_json, f"saved {_count(params)}")


@main.command("load")
@click.argument("filename")
@click.option("--prefix", default="", help="Load into the parameters whose name begins so.")
@click.option("--restore-prefix", default="", help="Put this in front of each name in the file.")
@click.option(
    "--ctx", "contexts", multiple=True, metavar="CONTEXT", help="Such as 'cpu(1)'. Repeatable."
)
@click.option("--allow-missing", is_flag=True, help="The file may lack parameters.")
@click.option("--ignore-extra", is_flag=True, help="Pass over what the server does not have.")
@click.option("--cast-dtype", is_flag=True, help="Dtypes may differ.")
@click.option(
    "--dtype-source",
    type=click.Choice(["current", "saved"]),
    default="current",
    show_default=True,
    help="Which dtype counts then.",
)
@click.option("--create", is_flag=True, help="Make the parameters that the server does not have.")
@_target_options
@_json_option
def load_command(
    filename: str,
    prefix: str,
    restore_prefix: str,
    contexts: tuple[str, ...],
    allow_missing: bool,
    ignore_extra: bool,
    cast_dtype: bool,
    dtype_source: str,
    create: bool,
    target: str,
    timeout: float,
    as_json: bool,
) -> None:
    """Load parameters from FILENAME: all that the server has, or none.

    After "server:" it is a file below the server's snapshot directory.
    """
    with _session(target, timeout) as session:
        made = _declare_from(session, filename, prefix, restore_prefix) if create else []
        rules = LoadRules(
            tuple(Context.from_string(text) for text in contexts),
            allow_missing,
            ignore_extra,
            restore_prefix,
            cast_dtype,
            dtype_source,
        )
        try:
            loaded = load_file(session.parameters(prefix)._links, filename, rules)
        except BaseException as failure:
            _take_back(session, made, failure)
            raise
    _report({"file": filename, "loaded": loaded}, as_json, f"loaded {_count(loaded)}")


@main.command("snapshot")
@click.argument("directory", default="")
@_target_options
@_json_option
def snapshot_command(directory: str, target: str, timeout: float, as_json: bool) -> None:
    """Save the whole state of the server, or of all shards, and wait until it is on the disk.

    With DIRECTORY, a name below the server's snapshot directory, it is kept until somebody removes
    it; else under the next number, until newer ones take its place. Needs the right admin where the
    server asks for tokens.
    """
    with _session(target, timeout) as session:
        saved = session.save_snapshot(directory)
    if as_json:
        _print_json(asdict(saved))
        return
    name = f"{saved.number} {saved.directory!r}" if saved.directory else str(saved.number)
    click.echo(f"saved snapshot {name}: {_size(saved.size_bytes)}")


@main.command("snapshots")
@_target_options
@_json_option
def snapshots_command(target: str, timeout: float, as_json: bool) -> None:
    """List the snapshots from which the server could be started again, from the oldest."""
    with _session(target, timeout) as session:
        found = session.snapshots()
    if as_json:
        _print_json([asdict(each) for each in found])
        return
    rows = [
        (
            str(each.number),
            each.directory or "-",
            time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(each.created)),
            _size(each.size_bytes),
            str(each.num_shards),
        )
        for each in found
    ]
    _print_table(("NUMBER", "DIRECTORY", "CREATED", "SIZE", "SHARDS"), rows)


@main.command("health")
@click.option(
    "--probe", is_flag=True, help="Ask once, by grpc.health.v1: whether it serves. Takes no token."
)
@click.option(
    "--ready", is_flag=True, help="As --probe, and whether its cluster has formed and takes calls."
)
@_target_options
@_json_option
def health_command(probe: bool, ready: bool, target: str, timeout: float, as_json: bool) -> None:
    """Ask the server whether it serves, and what it has.

    Exit status 3 where it cannot be reached, or does not serve.
    """
    if probe or ready:
        with _failures():
            credentials = resolve_credentials(**_security(target))
            ask_health(target, credentials, timeout=timeout, ready=ready)
        if as_json:
            _print_json({"target": target, "status": "serving"})
        else:
            click.echo(f"{target} serves")
        return
    with _session(target, timeout) as session:
        begin = time.perf_counter()
        status = session.status()
        latency = time.perf_counter() - begin
    if as_json:
        _print_json(_described(target, status, latency))
        return
    limit = _size(status.memory_limit_bytes) if status.memory_limit_bytes else "no limit"
    click.echo(
        f"{target} serves: paramd-server {status.server_version}, up {status.uptime:.0f} s, "
        f"{_count(range(status.num_parameters))}, {_size(status.memory_bytes)} ({limit}), "
        f"answered in {latency * 1e3:.1f} ms"
    )
    for shard, device in _devices(status):
        whose = f"shard {shard} " if status.shards else ""
        click.echo(
            f"{whose}{device.context} {device.name}, {_size(device.total_bytes)}: "
            f"{_size(device.memory_bytes)} ({_size(device.memory_limit_bytes)})"
        )


def _devices(status: SessionStatus) -> Iterator[tuple[int, DeviceStatus]]:
    """Each GPU, with the number of its shard."""
    for index, shard in enumerate(status.shards or (status,)):
        for device in shard.devices:
            yield index, device


def _described(target: str, status: SessionStatus, latency: float) -> dict[str, Any]:
    """What `health` prints as JSON."""
    return {
        "target": target,
        "status": "serving",
        "server_version": status.server_version,
        "uptime_seconds": round(status.uptime, 3),
        "latency_ms": round(latency * 1e3, 3),
        "parameters": status.num_parameters,
        "memory_bytes": status.memory_bytes,
        "memory_limit_bytes": status.memory_limit_bytes,
        "gpus": status.num_gpus,
        "devices": [
            {
                "shard": shard,
                "context": str(device.context),
                "name": device.name,
                "memory_bytes": device.memory_bytes,
                "memory_limit_bytes": device.memory_limit_bytes,
                "total_bytes": device.total_bytes,
            }
            for shard, device in _devices(status)
        ],
        "sessions": len(status.workers),
    }


def _declare_from(session: Session, filename: str, prefix: str, restore_prefix: str) -> list[str]:
    """Makes the parameters that are in a file and not on the server; gives their names."""
    if filename.startswith("server:"):
        raise ValueError("--create reads the file here, so it does not go with 'server:'")
    held = {info.current.name for info in session.calls.list_parameters(prefix)}
    with open_reader(filename) as reader:
        specs = [_spec_of(info, restore_prefix) for info in reader.infos]
    new = [spec for spec in specs if spec.name.startswith(prefix) and spec.name not in held]
    session.calls.declare([(spec, frozenset()) for spec in new])
    return [spec.name for spec in new]


def _take_back(session: Session, made: Sequence[str], failure: BaseException) -> None:
    """Removes the parameters that were made for a file which then could not be loaded."""
    if not made:
        return
    try:
        session.delete(made)
    except ParamdError as err:
        # With a token of the right train alone; what went wrong first is what matters.
        failure.add_note(f"{_count(made)} without a value stay on the server: {err}")


def _spec_of(info: TensorInfo, restore_prefix: str) -> ParameterSpec:
    name = info.name[4:] if info.name.startswith(("arg:", "aux:")) else info.name
    return ParameterSpec(restore_prefix + name, info.shape, info.dtype, info.stype)


def _as_dict(info: StoredInfo) -> dict[str, Any]:
    spec = info.current
    init = spec.init
    if init is None:
        shown: Any = None
    elif init.client_side:
        shown = "(of a client)"
    else:
        shown = {"name": init.name, **init.arguments}
    return {
        "name": spec.name,
        "kind": "constant" if spec.constant else "parameter",
        "state": info.state,
        "shape": None if spec.shape is None else list(spec.shape),
        "dtype": spec.dtype.name,
        "stype": spec.stype,
        "grad_stype": spec.grad_stype,
        "grad_req": spec.grad_req,
        "lr_mult": spec.lr_mult,
        "wd_mult": spec.wd_mult,
        "init": shown,
        "contexts": [str(context) for context in info.contexts],
        "version": f"{info.version.epoch:x}.{info.version.counter}",
        "value_bytes": info.value_bytes,
        "gradient_bytes": info.gradient_bytes,
    }


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        rest = ", ".join(f"{key}={each}" for key, each in value.items() if key != "name")
        return f"{value['name']}({rest})"
    if isinstance(value, list):
        return " ".join(str(each) for each in value) or "-"
    return "-" if value is None else str(value)


def _shape(info: StoredInfo) -> str:
    shape = info.current.shape
    if shape is None:
        return "?"
    return "x".join("?" if size < 1 else str(size) for size in shape) or "()"


def _join(contexts: Sequence[Context]) -> str:
    return " ".join(str(context) for context in contexts) or "-"


def _size(size_bytes: int) -> str:
    size = float(size_bytes)
    for unit in _UNITS[:-1]:
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} {_UNITS[-1]}"


def _count(things: Any) -> str:
    count = len(things)
    return f"{count} parameter" if count == 1 else f"{count} parameters"


def _report(values: dict[str, Any], as_json: bool, text: str) -> None:
    if as_json:
        _print_json(values)
    else:
        click.echo(f"{values['file']}: {text}")


def _print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2))


def _print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    for row in (head, *rows):
        line = "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
        click.echo(line.rstrip())


if __name__ == "__main__":
    main()
