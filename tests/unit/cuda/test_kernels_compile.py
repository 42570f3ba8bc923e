"""Every kernel compiles for a GPU, into instructions that keep a CPU's bits."""

from __future__ import annotations

import itertools
import re
from typing import Any

import numpy as np
import pytest

from paramd.wire.dtypes import BFLOAT16, DTYPES
from paramd_server.arrays.cuda.source import KernelSource, kernel_source
from paramd_server.arrays.updates import UPDATES
from tests.support.nvrtc import NvrtcError, compile_to_cubin, compile_to_ptx, why_no_nvrtc

Dtype = np.dtype[Any]
F2, F4, F8 = (np.dtype(each) for each in ("f2", "f4", "f8"))
ALL = list(DTYPES.values())
MODES = ("assign", "add", "subtract", "multiply", "divide")
CAPABILITIES = (75, 90)

# CuPy appends this to the options of every module.
OF_CUPY = "-ftz=true"

# Of weight, rounded, gradient and state, as rules of updates have them.
UPDATE_TYPES = [
    (F2, F2, F2, F2),
    (F2, F2, F2, F4),
    (BFLOAT16, BFLOAT16, BFLOAT16, F4),
    (F4, F4, F4, F4),
    (F4, F2, F2, F4),
    (F4, BFLOAT16, BFLOAT16, F4),
    (F8, F8, F8, F8),
]
UPDATE_KERNELS = [name for name in UPDATES if name != "lamb"]
UPDATE_KERNELS += ["lamb_moments", "lamb_squares", "lamb_apply"]
# Their powers are products of which fused operations give the part that was rounded away.
EXACT_PRODUCTS = ("adamw", "lamb_squares", "lamb_apply")

needs_nvrtc = pytest.mark.skipif(why_no_nvrtc() is not None, reason=str(why_no_nvrtc()))


def compiled(source: KernelSource, capability: int) -> str:
    return compile_to_ptx(source.code, (*source.options, OF_CUPY), capability=capability)


def update_source(kernel: str, types: tuple[Dtype, ...]) -> KernelSource:
    roles = dict(zip(("WEIGHT", "ROUNDED", "GRADIENT", "STATE"), types, strict=True))
    return kernel_source(kernel, roles, mode="step" if kernel == "lamb_squares" else "")


def check_arithmetic(ptx: str, *, fused_doubles: int = 0) -> None:
    """Each operation rounds for itself, and small numbers stay."""
    assert ".ftz" not in ptx
    assert not re.search(r"\b(fma|mad)\.\w+\.f32\b", ptx)
    assert len(re.findall(r"\b(?:fma|mad)\.\w+\.f64\b", ptx)) == fused_doubles
    assert not re.search(r"\.approx|\.full", ptx)
    # Of float32 every operation says how it rounds, so that none is fused later.
    assert not re.search(r"\b(add|sub|mul)\.f32\b", ptx)


@needs_nvrtc
@pytest.mark.parametrize("kernel", UPDATE_KERNELS)
def test_updates_compile_without_fused_or_flushed_operations(kernel: str) -> None:
    for types in UPDATE_TYPES:
        # The text differs between them for bfloat16.
        for capability in CAPABILITIES if BFLOAT16 in types else (90,):
            ptx = compiled(update_source(kernel, types), capability)
            # Two multiplications for each of two corrections.
            check_arithmetic(ptx, fused_doubles=4 if kernel in EXACT_PRODUCTS else 0)
            # No memory beside registers.
            assert ".local" not in ptx, types


@needs_nvrtc
@pytest.mark.parametrize("target", ALL, ids=str)
def test_combine_compiles_for_all_types_and_modes(target: Dtype) -> None:
    pairs = [("assign", value) for value in ALL] + [(mode, target) for mode in MODES[1:]]
    for mode, value in pairs:
        source = kernel_source("combine", {"TARGET": target, "VALUE": value}, mode=mode)
        for capability in CAPABILITIES if BFLOAT16 in (target, value) else (90,):
            check_arithmetic(compiled(source, capability))


@needs_nvrtc
def test_put_rows_compiles_for_all_types() -> None:
    for target, value in zip(ALL, [*ALL[1:], ALL[0]], strict=True):
        for mode in ("assign", "add"):
            source = kernel_source("put_rows", {"TARGET": target, "VALUE": value}, mode=mode)
            check_arithmetic(compiled(source, 90))


@needs_nvrtc
def test_words_are_moved_in_one_instruction_each() -> None:
    moves = {1: "u8", 2: "u16", 4: "u32", 8: "u64", 16: "v2.u64"}
    for size, move in moves.items():
        for capability in CAPABILITIES:
            ptx = compiled(kernel_source("take_rows", {"WORD": np.dtype(f"V{size}")}), capability)
            stores = set(re.findall(r"st\.global\.([\w.]+)", ptx))
            assert stores <= {move, move.replace("u", "b")}, size


@needs_nvrtc
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_machine_code_is_made_of_every_kernel(capability: int) -> None:
    sources = [update_source(kernel, (F4, BFLOAT16, BFLOAT16, F4)) for kernel in UPDATE_KERNELS]
    sources += [update_source("adamw", types) for types in UPDATE_TYPES[:2]]
    sources += [kernel_source("all_finite", {"VALUE": each}) for each in (F2, BFLOAT16, F4, F8)]
    sources += [kernel_source("take_rows", {"WORD": np.dtype("V16")})]
    sources += [kernel_source("sum_partials", {})]
    for target, value in ((F2, F8), (BFLOAT16, F4), (np.dtype("i1"), F2), (F4, np.dtype("?"))):
        for kernel in ("combine", "put_rows"):
            sources.append(kernel_source(kernel, {"TARGET": target, "VALUE": value}, mode="divide"))
    for source in sources:
        code = compile_to_cubin(source.code, (*source.options, OF_CUPY), capability=capability)
        assert source.function.encode() in code


@needs_nvrtc
def test_what_is_wrong_with_a_text_is_said() -> None:
    with pytest.raises(NvrtcError, match="nonsense"):
        compile_to_ptx("nonsense text;", (), capability=90)


def test_a_kernel_is_told_by_its_function_and_options() -> None:
    source = kernel_source("combine", {"TARGET": F4, "VALUE": BFLOAT16}, mode="add")
    assert source.function == "combine"
    assert {"-DTARGET=float32", "-DVALUE=bfloat16", "--fmad=false"} <= set(source.options)
    assert "#include" not in source.code
    again = kernel_source("combine", {"TARGET": F4, "VALUE": BFLOAT16}, mode="add")
    assert hash(source) == hash(again)
    assert source == again
    assert kernel_source("adam", {"WEIGHT": F4, "GRADIENT": F4}).function == "update"


def test_rounded_weights_and_states_have_the_type_of_the_weight_unless_said() -> None:
    every = {"WEIGHT": F4, "GRADIENT": F4, "ROUNDED": F4, "STATE": F4}
    assert kernel_source("adam", {"WEIGHT": F4, "GRADIENT": F4}) == kernel_source("adam", every)


def test_all_sources_differ() -> None:
    sources = [
        kernel_source(kernel, {"TARGET": target, "VALUE": value}, mode=mode)
        for kernel, target, value, mode in itertools.product(
            ("combine", "put_rows"), ALL, ALL, MODES
        )
    ]
    assert len(set(sources)) == len(sources)


@pytest.mark.parametrize(
    ("kernel", "types", "mode", "message"),
    [
        ("copy", {}, "", "a kernel is one of .*combine.* but got 'copy'"),
        ("lamb", {"WEIGHT": F4, "GRADIENT": F4}, "", "but got 'lamb'"),
        ("combine", {"TARGET": F4, "VALUE": F4}, "", "a mode of kernel combine .* got ''"),
        ("adam", {"WEIGHT": F4, "GRADIENT": F4}, "add", "a mode of kernel adam .* got 'add'"),
        ("combine", {"TARGET": F4}, "add", "kernel combine needs the type of VALUE"),
        ("adam", {"GRADIENT": F4}, "", "kernel adam needs the type of WEIGHT"),
        ("take_rows", {"VALUE": F4}, "", "kernel take_rows are WORD, but got 'VALUE'"),
        ("take_rows", {"WORD": np.dtype("V3")}, "", r"has 1, 2, 4, 8 or 16 bytes, but \|V3 has 3"),
        ("sum_partials", {"VALUE": F4}, "", "kernel sum_partials are none, but got 'VALUE'"),
        ("adam", {"WEIGHT": np.dtype("i4"), "GRADIENT": F4}, "", "WEIGHT .* but got int32"),
        ("combine", {"TARGET": F4, "VALUE": np.dtype(">f4")}, "add", "VALUE .* but got >f4"),
    ],
)
def test_what_there_is_no_kernel_for_is_refused(
    kernel: str, types: dict[str, Dtype], mode: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        kernel_source(kernel, types, mode=mode)
