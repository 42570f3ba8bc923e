from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DTYPE_UNSPECIFIED: _ClassVar[DType]
    DTYPE_FLOAT32: _ClassVar[DType]
    DTYPE_FLOAT64: _ClassVar[DType]
    DTYPE_FLOAT16: _ClassVar[DType]
    DTYPE_BFLOAT16: _ClassVar[DType]
    DTYPE_UINT8: _ClassVar[DType]
    DTYPE_INT8: _ClassVar[DType]
    DTYPE_INT32: _ClassVar[DType]
    DTYPE_INT64: _ClassVar[DType]
    DTYPE_BOOL: _ClassVar[DType]

class StorageType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STORAGE_TYPE_UNSPECIFIED: _ClassVar[StorageType]
    STORAGE_TYPE_DEFAULT: _ClassVar[StorageType]
    STORAGE_TYPE_ROW_SPARSE: _ClassVar[StorageType]
    STORAGE_TYPE_CSR: _ClassVar[StorageType]

class DeviceType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DEVICE_TYPE_UNSPECIFIED: _ClassVar[DeviceType]
    DEVICE_TYPE_CPU: _ClassVar[DeviceType]
    DEVICE_TYPE_GPU: _ClassVar[DeviceType]
    DEVICE_TYPE_CPU_PINNED: _ClassVar[DeviceType]
    DEVICE_TYPE_CPU_SHARED: _ClassVar[DeviceType]

class WriteMode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    WRITE_MODE_UNSPECIFIED: _ClassVar[WriteMode]
    WRITE_MODE_ASSIGN: _ClassVar[WriteMode]
    WRITE_MODE_ADD: _ClassVar[WriteMode]
    WRITE_MODE_SUBTRACT: _ClassVar[WriteMode]
    WRITE_MODE_MULTIPLY: _ClassVar[WriteMode]
    WRITE_MODE_DIVIDE: _ClassVar[WriteMode]
    WRITE_MODE_BY_GRAD_REQ: _ClassVar[WriteMode]
    WRITE_MODE_ASSIGN_ROWS: _ClassVar[WriteMode]
DTYPE_UNSPECIFIED: DType
DTYPE_FLOAT32: DType
DTYPE_FLOAT64: DType
DTYPE_FLOAT16: DType
DTYPE_BFLOAT16: DType
DTYPE_UINT8: DType
DTYPE_INT8: DType
DTYPE_INT32: DType
DTYPE_INT64: DType
DTYPE_BOOL: DType
STORAGE_TYPE_UNSPECIFIED: StorageType
STORAGE_TYPE_DEFAULT: StorageType
STORAGE_TYPE_ROW_SPARSE: StorageType
STORAGE_TYPE_CSR: StorageType
DEVICE_TYPE_UNSPECIFIED: DeviceType
DEVICE_TYPE_CPU: DeviceType
DEVICE_TYPE_GPU: DeviceType
DEVICE_TYPE_CPU_PINNED: DeviceType
DEVICE_TYPE_CPU_SHARED: DeviceType
WRITE_MODE_UNSPECIFIED: WriteMode
WRITE_MODE_ASSIGN: WriteMode
WRITE_MODE_ADD: WriteMode
WRITE_MODE_SUBTRACT: WriteMode
WRITE_MODE_MULTIPLY: WriteMode
WRITE_MODE_DIVIDE: WriteMode
WRITE_MODE_BY_GRAD_REQ: WriteMode
WRITE_MODE_ASSIGN_ROWS: WriteMode

class Context(_message.Message):
    __slots__ = ("device_type", "device_id")
    DEVICE_TYPE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_ID_FIELD_NUMBER: _ClassVar[int]
    device_type: DeviceType
    device_id: int
    def __init__(self, device_type: _Optional[_Union[DeviceType, str]] = ..., device_id: _Optional[int] = ...) -> None: ...

class Shape(_message.Message):
    __slots__ = ("dimensions",)
    DIMENSIONS_FIELD_NUMBER: _ClassVar[int]
    dimensions: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, dimensions: _Optional[_Iterable[int]] = ...) -> None: ...

class Version(_message.Message):
    __slots__ = ("epoch", "counter")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    COUNTER_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    counter: int
    def __init__(self, epoch: _Optional[int] = ..., counter: _Optional[int] = ...) -> None: ...

class Range(_message.Message):
    __slots__ = ("begin", "count", "step")
    BEGIN_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    begin: int
    count: int
    step: int
    def __init__(self, begin: _Optional[int] = ..., count: _Optional[int] = ..., step: _Optional[int] = ...) -> None: ...

class Region(_message.Message):
    __slots__ = ("ranges",)
    RANGES_FIELD_NUMBER: _ClassVar[int]
    ranges: _containers.RepeatedCompositeFieldContainer[Range]
    def __init__(self, ranges: _Optional[_Iterable[_Union[Range, _Mapping]]] = ...) -> None: ...

class Part(_message.Message):
    __slots__ = ("shape", "rows")
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    shape: Shape
    rows: Range
    def __init__(self, shape: _Optional[_Union[Shape, _Mapping]] = ..., rows: _Optional[_Union[Range, _Mapping]] = ...) -> None: ...

class TensorHeader(_message.Message):
    __slots__ = ("name", "shape", "dtype", "stype", "context", "version", "size_bytes", "num_rows", "region", "mode", "two_bit_threshold", "step", "part")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    STYPE_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    NUM_ROWS_FIELD_NUMBER: _ClassVar[int]
    REGION_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    TWO_BIT_THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    PART_FIELD_NUMBER: _ClassVar[int]
    name: str
    shape: Shape
    dtype: DType
    stype: StorageType
    context: Context
    version: Version
    size_bytes: int
    num_rows: int
    region: Region
    mode: WriteMode
    two_bit_threshold: float
    step: StepMark
    part: Part
    def __init__(self, name: _Optional[str] = ..., shape: _Optional[_Union[Shape, _Mapping]] = ..., dtype: _Optional[_Union[DType, str]] = ..., stype: _Optional[_Union[StorageType, str]] = ..., context: _Optional[_Union[Context, _Mapping]] = ..., version: _Optional[_Union[Version, _Mapping]] = ..., size_bytes: _Optional[int] = ..., num_rows: _Optional[int] = ..., region: _Optional[_Union[Region, _Mapping]] = ..., mode: _Optional[_Union[WriteMode, str]] = ..., two_bit_threshold: _Optional[float] = ..., step: _Optional[_Union[StepMark, _Mapping]] = ..., part: _Optional[_Union[Part, _Mapping]] = ...) -> None: ...

class StepMark(_message.Message):
    __slots__ = ("trainer", "number")
    TRAINER_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    trainer: int
    number: int
    def __init__(self, trainer: _Optional[int] = ..., number: _Optional[int] = ...) -> None: ...

class TensorPack(_message.Message):
    __slots__ = ("tensors",)
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    tensors: _containers.RepeatedCompositeFieldContainer[PackedTensor]
    def __init__(self, tensors: _Optional[_Iterable[_Union[PackedTensor, _Mapping]]] = ...) -> None: ...

class PackedTensor(_message.Message):
    __slots__ = ("header", "data")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    header: TensorHeader
    data: bytes
    def __init__(self, header: _Optional[_Union[TensorHeader, _Mapping]] = ..., data: _Optional[bytes] = ...) -> None: ...

class TensorHeads(_message.Message):
    __slots__ = ("headers",)
    HEADERS_FIELD_NUMBER: _ClassVar[int]
    headers: _containers.RepeatedCompositeFieldContainer[TensorHeader]
    def __init__(self, headers: _Optional[_Iterable[_Union[TensorHeader, _Mapping]]] = ...) -> None: ...

class StreamEnd(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
