from google.protobuf import struct_pb2 as _struct_pb2
from paramd.v1 import tensor_pb2 as _tensor_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GradReq(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    GRAD_REQ_UNSPECIFIED: _ClassVar[GradReq]
    GRAD_REQ_WRITE: _ClassVar[GradReq]
    GRAD_REQ_ADD: _ClassVar[GradReq]
    GRAD_REQ_NULL: _ClassVar[GradReq]

class ParameterKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PARAMETER_KIND_UNSPECIFIED: _ClassVar[ParameterKind]
    PARAMETER_KIND_PARAMETER: _ClassVar[ParameterKind]
    PARAMETER_KIND_CONSTANT: _ClassVar[ParameterKind]

class ParameterState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PARAMETER_STATE_UNSPECIFIED: _ClassVar[ParameterState]
    PARAMETER_STATE_DECLARED: _ClassVar[ParameterState]
    PARAMETER_STATE_DEFERRED: _ClassVar[ParameterState]
    PARAMETER_STATE_INITIALIZED: _ClassVar[ParameterState]
GRAD_REQ_UNSPECIFIED: GradReq
GRAD_REQ_WRITE: GradReq
GRAD_REQ_ADD: GradReq
GRAD_REQ_NULL: GradReq
PARAMETER_KIND_UNSPECIFIED: ParameterKind
PARAMETER_KIND_PARAMETER: ParameterKind
PARAMETER_KIND_CONSTANT: ParameterKind
PARAMETER_STATE_UNSPECIFIED: ParameterState
PARAMETER_STATE_DECLARED: ParameterState
PARAMETER_STATE_DEFERRED: ParameterState
PARAMETER_STATE_INITIALIZED: ParameterState

class Initializer(_message.Message):
    __slots__ = ("name", "arguments", "client_side")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ARGUMENTS_FIELD_NUMBER: _ClassVar[int]
    CLIENT_SIDE_FIELD_NUMBER: _ClassVar[int]
    name: str
    arguments: _struct_pb2.Struct
    client_side: bool
    def __init__(self, name: _Optional[str] = ..., arguments: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., client_side: bool = ...) -> None: ...

class ParameterSpec(_message.Message):
    __slots__ = ("name", "shape", "dtype", "stype", "grad_stype", "grad_req", "lr_mult", "wd_mult", "init", "allow_deferred_init", "differentiable", "kind", "part")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    STYPE_FIELD_NUMBER: _ClassVar[int]
    GRAD_STYPE_FIELD_NUMBER: _ClassVar[int]
    GRAD_REQ_FIELD_NUMBER: _ClassVar[int]
    LR_MULT_FIELD_NUMBER: _ClassVar[int]
    WD_MULT_FIELD_NUMBER: _ClassVar[int]
    INIT_FIELD_NUMBER: _ClassVar[int]
    ALLOW_DEFERRED_INIT_FIELD_NUMBER: _ClassVar[int]
    DIFFERENTIABLE_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    PART_FIELD_NUMBER: _ClassVar[int]
    name: str
    shape: _tensor_pb2.Shape
    dtype: _tensor_pb2.DType
    stype: _tensor_pb2.StorageType
    grad_stype: _tensor_pb2.StorageType
    grad_req: GradReq
    lr_mult: float
    wd_mult: float
    init: Initializer
    allow_deferred_init: bool
    differentiable: bool
    kind: ParameterKind
    part: _tensor_pb2.Part
    def __init__(self, name: _Optional[str] = ..., shape: _Optional[_Union[_tensor_pb2.Shape, _Mapping]] = ..., dtype: _Optional[_Union[_tensor_pb2.DType, str]] = ..., stype: _Optional[_Union[_tensor_pb2.StorageType, str]] = ..., grad_stype: _Optional[_Union[_tensor_pb2.StorageType, str]] = ..., grad_req: _Optional[_Union[GradReq, str]] = ..., lr_mult: _Optional[float] = ..., wd_mult: _Optional[float] = ..., init: _Optional[_Union[Initializer, _Mapping]] = ..., allow_deferred_init: bool = ..., differentiable: bool = ..., kind: _Optional[_Union[ParameterKind, str]] = ..., part: _Optional[_Union[_tensor_pb2.Part, _Mapping]] = ...) -> None: ...

class FirstValue(_message.Message):
    __slots__ = ("init", "seed", "draw", "contexts")
    INIT_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    DRAW_FIELD_NUMBER: _ClassVar[int]
    CONTEXTS_FIELD_NUMBER: _ClassVar[int]
    init: Initializer
    seed: int
    draw: int
    contexts: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.Context]
    def __init__(self, init: _Optional[_Union[Initializer, _Mapping]] = ..., seed: _Optional[int] = ..., draw: _Optional[int] = ..., contexts: _Optional[_Iterable[_Union[_tensor_pb2.Context, _Mapping]]] = ...) -> None: ...

class ParameterInfo(_message.Message):
    __slots__ = ("declared", "current", "state", "contexts", "version", "awaits_client_value", "value_bytes", "gradient_bytes", "first_value")
    DECLARED_FIELD_NUMBER: _ClassVar[int]
    CURRENT_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    CONTEXTS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    AWAITS_CLIENT_VALUE_FIELD_NUMBER: _ClassVar[int]
    VALUE_BYTES_FIELD_NUMBER: _ClassVar[int]
    GRADIENT_BYTES_FIELD_NUMBER: _ClassVar[int]
    FIRST_VALUE_FIELD_NUMBER: _ClassVar[int]
    declared: ParameterSpec
    current: ParameterSpec
    state: ParameterState
    contexts: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.Context]
    version: _tensor_pb2.Version
    awaits_client_value: bool
    value_bytes: int
    gradient_bytes: int
    first_value: FirstValue
    def __init__(self, declared: _Optional[_Union[ParameterSpec, _Mapping]] = ..., current: _Optional[_Union[ParameterSpec, _Mapping]] = ..., state: _Optional[_Union[ParameterState, str]] = ..., contexts: _Optional[_Iterable[_Union[_tensor_pb2.Context, _Mapping]]] = ..., version: _Optional[_Union[_tensor_pb2.Version, _Mapping]] = ..., awaits_client_value: bool = ..., value_bytes: _Optional[int] = ..., gradient_bytes: _Optional[int] = ..., first_value: _Optional[_Union[FirstValue, _Mapping]] = ...) -> None: ...

class Operation(_message.Message):
    __slots__ = ("identity", "sequence", "acknowledged_below")
    IDENTITY_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    ACKNOWLEDGED_BELOW_FIELD_NUMBER: _ClassVar[int]
    identity: bytes
    sequence: int
    acknowledged_below: int
    def __init__(self, identity: _Optional[bytes] = ..., sequence: _Optional[int] = ..., acknowledged_below: _Optional[int] = ...) -> None: ...
