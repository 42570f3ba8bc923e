"""CUDA C++ kernels, compiled for the host.

The text is what NVRTC would be given: no includes, one-dimensional launches. What NVRTC knows
without an include is declared in `device_functions.h`, beside this file, and nothing more, so that
text which compiles here has a chance to compile there.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

__all__ = ["CompileError", "Kernel", "compile_kernel", "have_compiler"]

# A directory that processes of one test session share; without it each has its own.
CACHE_VARIABLE: Final = "EMULATED_CUDA_CACHE"

_HERE: Final = Path(__file__).parent
_COMPILERS: Final = ("g++", "c++")
# What kernels may rely on: wrapping integers, bits read through other types, no fused operations.
_FLAGS: Final = (
    *("-shared", "-fPIC", "-O2", "-w", "-fwrapv", "-fno-strict-aliasing", "-fno-math-errno"),
    *("-ffp-contract=off", "-fvisibility=hidden", "-nostdinc++", "-std=c++14", "-x", "c++"),
)
_FUNCTION: Final = re.compile(r"[A-Za-z_]\w*")
_INCLUDE: Final = re.compile(r"^\s*#\s*include\b", re.MULTILINE)
# Those that the flags imply.
_OPTIONS: Final = ("--fmad=false", "--std=c++14", "-std=c++14")
# Kinds of parameters, as launcher.h describes them.
_KINDS: Final[dict[type, tuple[str, int]]] = {
    np.uintp: ("p", 8),
    np.int64: ("i", 8),
    np.int32: ("i", 4),
    np.float32: ("f", 4),
    np.float64: ("f", 8),
}
_NAMES: Final = {
    ("p", 8): "np.uintp",
    ("i", 8): "np.int64",
    ("i", 4): "np.int32",
    ("f", 4): "np.float32",
    ("f", 8): "np.float64",
}

_lock = threading.Lock()
_compiled: dict[tuple[str, str, tuple[str, ...]], Kernel] = {}


class CompileError(Exception):
    """The text is no kernel; the message has what the compiler says."""


class Kernel:
    """A compiled kernel. Launches may run in several threads at a time.

    Attributes:
        name: of the function.
        parameters: for each, its kind ('p' pointer, 'i' integer, 'f' floating point) and bytes.
    """

    def __init__(self, library: Path, name: str) -> None:
        self.name = name
        loaded = ctypes.CDLL(str(library))
        self._launch = loaded.emulated_launch
        self._launch.restype = None
        self._launch.argtypes = [ctypes.c_uint, ctypes.c_uint, ctypes.c_uint64, ctypes.c_void_p]
        described = ctypes.c_char_p.in_dll(loaded, "emulated_parameters").value or b""
        self.parameters = tuple((text[0], int(text[1:])) for text in described.decode().split())

    def __call__(
        self, grid: Sequence[int], block: Sequence[int], args: Sequence[Any], *, order: int = 0
    ) -> None:
        """Runs every thread of every block, one after the other, in this thread.

        Args:
            grid: number of blocks, one dimension.
            block: threads of a block, one dimension.
            args: NumPy scalars: np.uintp for pointers, np.int64, np.int32, np.float32, np.float64.
            order: 0 for the natural order of the threads, else the seed of another one.

        Raises:
            TypeError: where number or types of `args` differ from the parameters.
            ValueError: where the launch is not one-dimensional, or larger than CUDA allows.
        """
        values = self.check(grid, block, args)
        pointers = (ctypes.c_void_p * max(1, len(values)))(*[value.ctypes.data for value in values])
        self._launch(grid[0], block[0], order, ctypes.addressof(pointers))

    def check(
        self, grid: Sequence[int], block: Sequence[int], args: Sequence[Any]
    ) -> list[np.ndarray[Any, Any]]:
        """Checks what a launch is given.

        Returns:
            Each argument as an array of no dimensions.

        Raises:
            TypeError, ValueError: as a launch does.
        """
        _extent("grid", grid, 2**31 - 1)
        _extent("block", block, 1024)
        if len(args) != len(self.parameters):
            raise TypeError(
                f"{self.name} has {len(self.parameters)} parameters, given {len(args)} arguments"
            )
        for number, (value, parameter) in enumerate(zip(args, self.parameters, strict=True)):
            if _KINDS.get(type(value)) != parameter:
                raise TypeError(self._mismatch(number, value))
        return [np.asarray(value) for value in args]

    def _mismatch(self, number: int, value: object) -> str:
        kind, size = self.parameters[number]
        expected = _NAMES.get((kind, size), f"no parameter of kind {kind!r} and {size} bytes")
        return f"argument {number} of {self.name}: expected {expected}, given {value!r}"


def _extent(what: str, given: Sequence[int], most: int) -> None:
    if len(given) != 1 or not 1 <= given[0] <= most:
        raise ValueError(f"{what} must be one number from 1 to {most}, given {tuple(given)}")


def have_compiler() -> bool:
    """Whether kernels can be compiled here."""
    return _compiler() is not None


def compile_kernel(code: str, function: str, options: Sequence[str]) -> Kernel:
    """Compiles one kernel, or takes it from what this process compiled before.

    Args:
        code: CUDA C++ without includes.
        function: name of an `extern "C" __global__` function in it.
        options: as NVRTC takes them: -D macros, --fmad=false, --std=c++14.

    Returns:
        The kernel, called with (grid, block, args).

    Raises:
        CompileError: where the compiler refuses the text.
        RuntimeError: where there is no compiler.
        ValueError: for an option or a function name that is not understood.
    """
    key = (code, function, tuple(options))
    with _lock:
        if key not in _compiled:
            text = _translation_unit(code, function, _macros(options))
            _compiled[key] = Kernel(_library(text, options), function)
        return _compiled[key]


@functools.cache
def _compiler() -> str | None:
    return next((path for path in map(shutil.which, _COMPILERS) if path), None)


def _macros(options: Sequence[str]) -> list[str]:
    """The lines that define what -D options do, for the text of the kernel alone."""
    if "--fmad=false" not in options:
        raise ValueError(f"expected --fmad=false among the options, given {list(options)}")
    lines = []
    for option in options:
        if option.startswith("-D") and option != "-D":
            name, equals, value = option[2:].partition("=")
            lines.append(f"#define {name} {value if equals else 1}")
        elif option not in _OPTIONS:
            raise ValueError(f"expected -D... or one of {_OPTIONS}, given {option!r}")
    return lines


def _translation_unit(code: str, function: str, macros: Sequence[str]) -> str:
    """The text with what NVRTC knows before it, and what launches the kernel behind it."""
    if not _FUNCTION.fullmatch(function):
        raise ValueError(f"expected the name of a function, given {function!r}")
    if _INCLUDE.search(code):
        raise ValueError("expected a text without #include, which NVRTC does not find")
    before = [(_HERE / name).read_text() for name in ("device_functions.h", "launcher.h")]
    return "\n".join(
        [*before, *macros, '#line 1 "kernel.cu"', code, f"EMULATED_CUDA_LAUNCHER({function})\n"]
    )


def _library(text: str, options: Sequence[str]) -> Path:
    """Compiles, unless a process of this test session has."""
    compiler = _compiler()
    if compiler is None:
        raise RuntimeError(f"kernels for the host need one of {', '.join(_COMPILERS)} in PATH")
    command = [compiler, *_FLAGS]
    digest = hashlib.sha256("\0".join([*command, text]).encode()).hexdigest()
    library = Path(os.environ.get(CACHE_VARIABLE) or _own_directory()) / f"{digest[:32]}.so"
    if library.exists():
        return library
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent) as directory:
        output = Path(directory) / "kernel.so"
        ended = subprocess.run(
            [*command, "-o", str(output), "-"],
            input=text,
            capture_output=True,
            text=True,
            check=False,
        )
        if ended.returncode != 0:
            raise CompileError(f"{' '.join(options)}\n{ended.stderr}")
        # Another process may do the same now: whoever comes last replaces a file with its like.
        output.replace(library)
    return library


@functools.cache
def _own_directory() -> str:
    directory = tempfile.TemporaryDirectory(prefix="emulated-cuda-")
    atexit.register(directory.cleanup)
    return directory.name
