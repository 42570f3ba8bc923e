"""Builds both wheels into dist/ and tries them in a clean environment.

The environment holds the locked runtime dependencies and the two wheels, and nothing else: what
works there needs neither the checkout nor a development tool.
"""

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DIST = ROOT / "dist"
PACKAGES = {"client": "paramd", "server": "paramd_server"}


def build() -> list[Path]:
    """Builds both wheels, and returns their paths."""
    for old in DIST.glob("paramd*.whl"):
        old.unlink()
    for folder in PACKAGES:
        command = [sys.executable, "-m", "build", "--wheel", "--no-isolation"]
        _run([*command, "--outdir", str(DIST), str(ROOT / folder)], cwd=ROOT)
    wheels = sorted(DIST.glob("paramd*.whl"))
    if len(wheels) != len(PACKAGES):
        sys.exit(f"expected {len(PACKAGES)} wheels in {DIST}, found {wheels}")
    return wheels


def check_contents(wheel: Path) -> None:
    """Exits unless `wheel` has its license, its type marker, and one package alone."""
    package = next(p for p in PACKAGES.values() if wheel.name.startswith(f"{p}-"))
    names = zipfile.ZipFile(wheel).namelist()
    expected = {f"{package}/__init__.py", f"{package}/py.typed"}
    tops = {name.split("/")[0] for name in names}
    info = {top for top in tops if top.endswith(".dist-info")}
    license_files = {f"{top}/licenses/LICENSE" for top in info}
    missing = (expected | license_files) - set(names)
    if missing or tops - info != {package}:
        sys.exit(f"{wheel.name}: missing {sorted(missing)}, top-level names {sorted(tops)}")


def try_out(wheels: list[Path]) -> None:
    """Installs `wheels` into an environment of their own, and runs what a user would run first."""
    with tempfile.TemporaryDirectory() as folder:
        environment = Path(folder) / "environment"
        _run([sys.executable, "-m", "venv", str(environment)], cwd=folder)
        python = str(environment / "bin" / "python")
        pip = [python, "-m", "pip", "--quiet", "--disable-pip-version-check"]
        locked = str(ROOT / "requirements" / "runtime.txt")
        _run([*pip, "install", "--require-hashes", "-r", locked], cwd=folder)
        _run([*pip, "install", "--no-deps", *map(str, wheels)], cwd=folder)
        # The lock covers what the wheels' metadata asks for.
        _run([*pip, "check"], cwd=folder)
        _run([python, "-W", "error", "-c", "import paramd, paramd_server"], cwd=folder)
        for command in ("paramd", "paramd-server"):
            _run([str(environment / "bin" / command), "--help"], cwd=folder)
        _run([python, "-m", "paramd_server", "--help"], cwd=folder)


def _run(command: list[str], *, cwd: str | Path) -> None:
    """Runs `command` away from the checkout's modules; exits when it fails."""
    print("+", " ".join(command), flush=True)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHONPATH")}
    status = subprocess.run(command, cwd=cwd, env=environment, check=False).returncode
    if status:
        sys.exit(f"failed with status {status}: {' '.join(command)}")


def main() -> None:
    wheels = build()
    for wheel in wheels:
        check_contents(wheel)
    try_out(wheels)
    print("both wheels work in a clean environment:", ", ".join(wheel.name for wheel in wheels))


if __name__ == "__main__":
    main()
