"""CuPy and its devices, stood in for by the host.

What paramd uses of CuPy, so that its GPU backend can be tested where there is no GPU, and more
harshly than a GPU would: kernels are compiled for the host and run with other numbers of threads in
other orders, streams run as late as they may and only what was waited for, memory comes and goes
poisoned, and every address is checked. How long anything takes on a GPU is not emulated, nor what
differs between one GPU and another.
"""

from tests.support.emulated_cuda.compiler import CompileError, compile_kernel, have_compiler
from tests.support.emulated_cuda.emulator import DEVICE_NAME, Emulator
from tests.support.emulated_cuda.faults import EmulationFault
from tests.support.emulated_cuda.stand_in import install

__all__ = [
    "DEVICE_NAME",
    "CompileError",
    "EmulationFault",
    "Emulator",
    "compile_kernel",
    "have_compiler",
    "install",
]
