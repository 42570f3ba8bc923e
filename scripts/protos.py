"""Writes paramd.v1 from protos/, and checks that what is checked in is what would be written.

Runs in the generator's own environment (`make proto`, `make verify`), whose protobuf is the oldest
that the generated code supports.
"""

import argparse
import difflib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
SOURCES = ROOT / "client" / "src"
PACKAGE = Path("paramd") / "v1"
PATTERNS = ("*_pb2.py", "*_pb2.pyi")


def generate(output: Path) -> None:
    """Writes the modules of all protos into `output`/paramd/v1, and removes those of no proto."""
    protos = sorted(str(path.relative_to(PROTOS)) for path in (PROTOS / PACKAGE).glob("*.proto"))
    if not protos:
        sys.exit(f"no .proto file in {PROTOS / PACKAGE}")
    for stale in _generated(output).values():
        stale.unlink()
    (output / PACKAGE).mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={PROTOS}"]
    command += [f"--python_out={output}", f"--pyi_out={output}", *protos]
    if subprocess.run(command, cwd=PROTOS, check=False).returncode:
        sys.exit("the protos do not compile: see above")


def check(newest: str) -> int:
    """Compares the checked-in modules with fresh ones, and imports those with two protobufs.

    Args:
        newest: The interpreter of an environment with the newest supported protobuf.

    Returns:
        0 when nothing differs and every import is without a warning, else 1.
    """
    with tempfile.TemporaryDirectory() as folder:
        fresh = Path(folder)
        generate(fresh)
        drift = _drift(_generated(SOURCES), _generated(fresh))
        if drift:
            print(drift, end="")
            print("\nThe generated code is not what the protos say: run `make proto`.")
            return 1
        # Regular packages, so that an installed paramd does not come first.
        for package in (PACKAGE, PACKAGE.parent):
            (fresh / package / "__init__.py").touch()
        loads = [_load(python, fresh) for python in (sys.executable, newest)]
        return 0 if all(loads) else 1


def _generated(base: Path) -> dict[str, Path]:
    paths = [path for pattern in PATTERNS for path in (base / PACKAGE).glob(pattern)]
    return {path.relative_to(base).as_posix(): path for path in sorted(paths)}


def _drift(checked_in: dict[str, Path], fresh: dict[str, Path]) -> str:
    lines: list[str] = []
    for name in sorted(checked_in | fresh):
        old, new = (
            side[name].read_text().splitlines(keepends=True) if name in side else []
            for side in (checked_in, fresh)
        )
        lines += difflib.unified_diff(old, new, f"checked in: {name}", f"from protos: {name}")
    return "".join(lines)


def _load(python: str, fresh: Path) -> bool:
    """Imports every fresh module with `python`, warnings being errors; prints what it used."""
    modules = [
        name.removesuffix(".py").replace("/", ".")
        for name in _generated(fresh)
        if name.endswith(".py")
    ]
    program = (
        "import importlib, sys, google.protobuf as p\n"
        "for name in sys.argv[1:]: importlib.import_module(name)\n"
        "print(f'{len(sys.argv) - 1} generated modules load with protobuf {p.__version__}')"
    )
    # Python's own word on protobuf 4's C types, from 3.12 on, is not about the generated code.
    flags = ["-W", "error", "-W", "ignore:Type google._upb:DeprecationWarning"]
    command = [python, "-B", *flags, "-c", program, *modules]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(fresh)}, check=False)
    return done.returncode == 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("generate", help="write the modules")
    checker = commands.add_parser("check", help="fail when the modules are not up to date")
    checker.add_argument("--newest", required=True, help="a Python with the newest protobuf")
    arguments = parser.parse_args()
    if arguments.command == "generate":
        generate(SOURCES)
        return 0
    return check(arguments.newest)


if __name__ == "__main__":
    sys.exit(main())
