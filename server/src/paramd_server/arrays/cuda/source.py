"""The device code, and how it is specialised for types and modes.

A kernel's text says what its parameters are. Pointers are passed as np.uintp, sizes as np.int64,
`ndim` as np.int32, and the constants of updates as np.float64 for float64 weights, else as
np.float32. Any one-dimensional launch does.

An update is a kernel of its own name, but for lamb, which takes several. All of them begin with
the parameters of an update:

1. `lamb_moments`: of the elements with a gradient.
2. `lamb_squares` of mode 'weight', of all the weight, and of mode 'step', of the elements with a
   gradient: after the parameters `double* partials`, `PARTIALS` sums that begin at 0, each mode
   its own. The gradient may be null.
3. `sum_partials(const double* values, int64 size, int64 lanes, double* sums)`: once from
   `PARTIALS` to `LANES` lanes, which may be in place, then from those to one.
4. `lamb_apply`: after the parameters `const double* sums`, of the weight and of the step.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any, Final

import numpy as np

from paramd.wire.dtypes import BFLOAT16, DTYPES
from paramd_server.arrays.updates import UPDATES

__all__ = ["LANES", "PARTIALS", "KernelSource", "kernel_source"]

# As in update_kernels.cu.
PARTIALS: Final = 65536
# Threads of the first of the two sums of partials.
LANES: Final = 256

# How a value meets what is stored; other modes of writes are made of these.
_MODES: Final = ("assign", "add", "subtract", "multiply", "divide")
_FLOATS: Final = tuple(np.dtype(each) for each in (np.float16, BFLOAT16, np.float32, np.float64))
_WORD_SIZES: Final = (1, 2, 4, 8, 16)


@dataclass(frozen=True)
class KernelSource:
    """What a compiler needs for one kernel.

    Attributes:
        code: the text, which includes nothing.
        function: the name of the kernel.
        options: of the compiler, NVRTC's: the macros, and what keeps a CPU's bits.
    """

    code: str
    function: str
    options: tuple[str, ...]


@dataclass(frozen=True)
class _Kernel:
    """What one kernel is made of.

    Attributes:
        files: that its text is in, beside this module.
        roles: the macros of its types, with the dtypes they may have; None for words.
        optional: those roles that may be left out, where they are WEIGHT then.
        modes: that it has.
        update: whose rule it needs.
    """

    files: tuple[str, ...]
    roles: Mapping[str, tuple[np.dtype[Any], ...] | None]
    optional: tuple[str, ...] = ()
    modes: tuple[str, ...] = ("",)
    update: str = ""


def kernel_source(
    kernel: str, types: Mapping[str, np.dtype[Any]], *, mode: str = ""
) -> KernelSource:
    """The text of a kernel for some types.

    Args:
        kernel: 'combine', 'take_rows', 'put_rows', 'all_finite', 'lamb_moments', 'lamb_squares',
            'sum_partials', 'lamb_apply', or a key of `UPDATES` but 'lamb'.
        types: by role: TARGET and VALUE of `combine` and `put_rows`; WORD of `take_rows`, any
            dtype of 1, 2, 4, 8 or 16 bytes; VALUE of `all_finite`; WEIGHT, GRADIENT, and where
            they differ from WEIGHT also ROUNDED and STATE, of updates.
        mode: of `combine` and `put_rows` 'assign', 'add', 'subtract', 'multiply' or 'divide'; of
            `lamb_squares` 'weight' or 'step'; '' of others.

    Raises:
        ValueError: for a kernel, a role, a dtype or a mode that there is not, or where one is
            missing.
    """
    made = _KERNELS.get(kernel)
    if made is None:
        raise ValueError(f"a kernel is one of {', '.join(_KERNELS)}, but got {kernel!r}")
    if mode not in made.modes:
        modes = ", ".join(map(repr, made.modes))
        raise ValueError(f"a mode of kernel {kernel} is one of {modes}, but got {mode!r}")
    macros = [f"KERNEL_{kernel}"]
    if mode:
        macros.append(f"MODE_{mode}")
    macros.extend(_type_macros(kernel, made, types))
    if made.update:
        macros.extend(_update_macros(made.update, types["WEIGHT"]))
    code = "\n".join(_text(file) for file in made.files)
    function = "update" if kernel in UPDATES else kernel
    options = ("--std=c++14", "--fmad=false", *(f"-D{macro}" for macro in macros))
    return KernelSource(code, function, options)


def _type_macros(kernel: str, made: _Kernel, types: Mapping[str, np.dtype[Any]]) -> list[str]:
    for role in types:
        if role not in made.roles:
            roles = ", ".join(made.roles) or "none"
            raise ValueError(f"the types of kernel {kernel} are {roles}, but got {role!r}")
    macros = []
    for role, allowed in made.roles.items():
        given = types.get("WEIGHT" if role in made.optional and role not in types else role)
        if given is None:
            raise ValueError(f"kernel {kernel} needs the type of {role}")
        if allowed is None:
            if given.itemsize not in _WORD_SIZES:
                raise ValueError(
                    f"{role} of kernel {kernel} has 1, 2, 4, 8 or 16 bytes, but {given} has "
                    f"{given.itemsize}"
                )
            macros.append(f"{role}=word{given.itemsize}")
        elif given not in allowed:
            names = ", ".join(map(str, allowed))
            raise ValueError(f"{role} of kernel {kernel} is one of {names}, but got {given}")
        else:
            macros.append(f"{role}={_c_name(given)}")
    return macros


def _update_macros(update: str, weight: np.dtype[Any]) -> list[str]:
    wide = weight == np.float64
    return [
        f"UPDATE_{update}",
        f"STATES={len(UPDATES[update].states)}",
        f"CONSTANTS={len(UPDATES[update].constants)}",
        f"COMPUTE={'float64' if wide else 'float32'}",
        f"NUMBER={'double' if wide else 'float'}",
    ]


def _c_name(dtype: np.dtype[Any]) -> str:
    return "boolean" if dtype == np.bool_ else dtype.name


@functools.cache
def _text(file: str) -> str:
    return resources.files(__package__).joinpath(file).read_text(encoding="utf-8")


def _kernels() -> dict[str, _Kernel]:
    every = tuple(DTYPES.values())
    copies = ("elements.cuh", "copies.cu")
    update_files = ("elements.cuh", "update_rules.cu", "update_kernels.cu")
    roles = dict.fromkeys(("WEIGHT", "ROUNDED", "GRADIENT", "STATE"), _FLOATS)
    update = functools.partial(_Kernel, update_files, roles, ("ROUNDED", "STATE"))
    return {
        "combine": _Kernel(copies, {"TARGET": every, "VALUE": every}, modes=_MODES),
        "take_rows": _Kernel(copies, {"WORD": None}),
        "put_rows": _Kernel(copies, {"TARGET": every, "VALUE": every}, modes=_MODES),
        "all_finite": _Kernel(copies, {"VALUE": _FLOATS}),
        "sum_partials": _Kernel(copies, {}),
        "lamb_moments": update(update="lamb"),
        "lamb_squares": update(update="lamb", modes=("weight", "step")),
        "lamb_apply": update(update="lamb"),
        **{name: update(update=name) for name in UPDATES if name != "lamb"},
    }


_KERNELS: Final = _kernels()
