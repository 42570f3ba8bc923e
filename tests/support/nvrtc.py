"""NVRTC, NVIDIA's run-time compiler: it needs neither a GPU nor a driver.

It comes with the wheel `nvidia-cuda-nvrtc-cu12`.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["NvrtcError", "compile_to_cubin", "compile_to_ptx", "why_no_nvrtc"]

_LIBRARY = "libnvrtc.so.12"


class NvrtcError(Exception):
    """The compiler refuses a text; the message has what it says."""


def why_no_nvrtc() -> str | None:
    """Why nothing can be compiled here; None where it can."""
    try:
        _library()
    except OSError as err:
        return f"NVRTC (pip install nvidia-cuda-nvrtc-cu12) cannot be loaded: {err}"
    return None


def compile_to_ptx(code: str, options: Sequence[str], *, capability: int) -> str:
    """The PTX of a text.

    Args:
        code: CUDA C++ without includes.
        options: for the compiler, but for the architecture.
        capability: of the device, such as 75.

    Raises:
        NvrtcError: where the text has errors.
        OSError: where there is no NVRTC.
    """
    options = (*options, f"--gpu-architecture=compute_{capability}")
    return _compiled(code, options, "PTX").rstrip(b"\0").decode()


def compile_to_cubin(code: str, options: Sequence[str], *, capability: int) -> bytes:
    """The machine code of a text: also the PTX inside it has been checked then.

    Arguments and errors as for `compile_to_ptx`.
    """
    return _compiled(code, (*options, f"--gpu-architecture=sm_{capability}"), "CUBIN")


@functools.cache
def _library() -> ctypes.CDLL:
    """Raises OSError where there is none."""
    try:
        found = importlib.util.find_spec("nvidia.cuda_nvrtc")
    except ModuleNotFoundError:
        found = None
    places = found.submodule_search_locations if found is not None else None
    # Elsewhere it may be where the system looks for libraries.
    paths = [str(Path(place) / "lib" / _LIBRARY) for place in places or ()] or [_LIBRARY]
    library = ctypes.CDLL(paths[0])
    library.nvrtcGetErrorString.restype = ctypes.c_char_p
    return library


def _check(result: int, doing: str, log: str = "") -> None:
    if result != 0:
        said = _library().nvrtcGetErrorString(result).decode()
        raise NvrtcError(f"{doing}: {said}\n{log}")


def _compiled(code: str, options: Sequence[str], kind: str) -> bytes:
    library, program = _library(), ctypes.c_void_p()
    made = library.nvrtcCreateProgram(
        ctypes.byref(program), code.encode(), b"kernel.cu", 0, None, None
    )
    _check(made, "a program cannot be made")
    try:
        given = (ctypes.c_char_p * len(options))(*[option.encode() for option in options])
        result = library.nvrtcCompileProgram(program, len(options), given)
        log = _text(program, "ProgramLog").rstrip(b"\0").decode()
        _check(result, f"compiling with {' '.join(options)}", log)
        return _text(program, kind)
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


def _text(program: ctypes.c_void_p, what: str) -> bytes:
    size = ctypes.c_size_t()
    library: Any = _library()
    _check(getattr(library, f"nvrtcGet{what}Size")(program, ctypes.byref(size)), f"{what}'s size")
    text = ctypes.create_string_buffer(size.value)
    _check(getattr(library, f"nvrtcGet{what}")(program, text), what)
    return text.raw
