from paramd.v1 import parameter_service_pb2 as _parameter_service_pb2
from paramd.v1 import tensor_pb2 as _tensor_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class LocalPurpose(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    LOCAL_PURPOSE_UNSPECIFIED: _ClassVar[LocalPurpose]
    LOCAL_PURPOSE_FIND: _ClassVar[LocalPurpose]
    LOCAL_PURPOSE_CALL: _ClassVar[LocalPurpose]
LOCAL_PURPOSE_UNSPECIFIED: LocalPurpose
LOCAL_PURPOSE_FIND: LocalPurpose
LOCAL_PURPOSE_CALL: LocalPurpose

class LocalHello(_message.Message):
    __slots__ = ("protocol", "authorization", "purpose")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    AUTHORIZATION_FIELD_NUMBER: _ClassVar[int]
    PURPOSE_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    authorization: str
    purpose: LocalPurpose
    def __init__(self, protocol: _Optional[int] = ..., authorization: _Optional[str] = ..., purpose: _Optional[_Union[LocalPurpose, str]] = ...) -> None: ...

class LocalWelcome(_message.Message):
    __slots__ = ("error", "size")
    ERROR_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    error: bytes
    size: int
    def __init__(self, error: _Optional[bytes] = ..., size: _Optional[int] = ...) -> None: ...

class LocalRequest(_message.Message):
    __slots__ = ("locate", "segment")
    LOCATE_FIELD_NUMBER: _ClassVar[int]
    SEGMENT_FIELD_NUMBER: _ClassVar[int]
    locate: LocateRequest
    segment: int
    def __init__(self, locate: _Optional[_Union[LocateRequest, _Mapping]] = ..., segment: _Optional[int] = ...) -> None: ...

class LocateRequest(_message.Message):
    __slots__ = ("tensors", "current_context")
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    CURRENT_CONTEXT_FIELD_NUMBER: _ClassVar[int]
    tensors: _containers.RepeatedCompositeFieldContainer[_parameter_service_pb2.TensorSelector]
    current_context: _tensor_pb2.Context
    def __init__(self, tensors: _Optional[_Iterable[_Union[_parameter_service_pb2.TensorSelector, _Mapping]]] = ..., current_context: _Optional[_Union[_tensor_pb2.Context, _Mapping]] = ...) -> None: ...

class LocalResponse(_message.Message):
    __slots__ = ("error", "located", "segment", "remaining")
    ERROR_FIELD_NUMBER: _ClassVar[int]
    LOCATED_FIELD_NUMBER: _ClassVar[int]
    SEGMENT_FIELD_NUMBER: _ClassVar[int]
    REMAINING_FIELD_NUMBER: _ClassVar[int]
    error: bytes
    located: LocatedTensors
    segment: SegmentInfo
    remaining: SegmentList
    def __init__(self, error: _Optional[bytes] = ..., located: _Optional[_Union[LocatedTensors, _Mapping]] = ..., segment: _Optional[_Union[SegmentInfo, _Mapping]] = ..., remaining: _Optional[_Union[SegmentList, _Mapping]] = ...) -> None: ...

class LocatedTensors(_message.Message):
    __slots__ = ("tensors",)
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    tensors: _containers.RepeatedCompositeFieldContainer[Located]
    def __init__(self, tensors: _Optional[_Iterable[_Union[Located, _Mapping]]] = ...) -> None: ...

class Located(_message.Message):
    __slots__ = ("header", "slot", "layout")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    SLOT_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    header: _tensor_pb2.TensorHeader
    slot: int
    layout: int
    def __init__(self, header: _Optional[_Union[_tensor_pb2.TensorHeader, _Mapping]] = ..., slot: _Optional[int] = ..., layout: _Optional[int] = ...) -> None: ...

class SegmentInfo(_message.Message):
    __slots__ = ("size",)
    SIZE_FIELD_NUMBER: _ClassVar[int]
    size: int
    def __init__(self, size: _Optional[int] = ...) -> None: ...

class SegmentList(_message.Message):
    __slots__ = ("numbers",)
    NUMBERS_FIELD_NUMBER: _ClassVar[int]
    numbers: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, numbers: _Optional[_Iterable[int]] = ...) -> None: ...
