"""Files of parameters: `.params` (MXNet's), `.safetensors` and `.npz`.

Everything streams, so a file of any size passes through in bounded memory. Writing is atomic.
Reading checks the whole structure of a file before it gives any value, and answers malformed files
with `paramd.errors.FileFormatError`. See docs/files.md for the layouts.
"""

from paramd.files.arrays import load_arrays, save_arrays
from paramd.files.failures import file_errors
from paramd.files.formats import FORMATS, format_of, open_reader, open_writer
from paramd.files.limits import MAX_EXPANSION_BYTES, MAX_NAME_BYTES, MAX_RANK, MAX_TENSORS
from paramd.files.reader import FileReader
from paramd.files.tensors import RowSparseRows, TensorInfo
from paramd.files.writer import FileWriter

__all__ = [
    # Whole files
    "save_arrays",
    "load_arrays",
    # Streams
    "open_writer",
    "open_reader",
    "FileWriter",
    "FileReader",
    "file_errors",
    "TensorInfo",
    "RowSparseRows",
    # Formats
    "FORMATS",
    "format_of",
    # Limits
    "MAX_TENSORS",
    "MAX_NAME_BYTES",
    "MAX_RANK",
    "MAX_EXPANSION_BYTES",
]
