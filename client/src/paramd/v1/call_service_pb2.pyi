from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class CallRequest(_message.Message):
    __slots__ = ("open", "data", "message", "end", "block")
    OPEN_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    BLOCK_FIELD_NUMBER: _ClassVar[int]
    open: CallOpen
    data: bytes
    message: bytes
    end: CallEnd
    block: RingBlock
    def __init__(self, open: _Optional[_Union[CallOpen, _Mapping]] = ..., data: _Optional[bytes] = ..., message: _Optional[bytes] = ..., end: _Optional[_Union[CallEnd, _Mapping]] = ..., block: _Optional[_Union[RingBlock, _Mapping]] = ...) -> None: ...

class CallOpen(_message.Message):
    __slots__ = ("method", "messages", "complete")
    METHOD_FIELD_NUMBER: _ClassVar[int]
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    COMPLETE_FIELD_NUMBER: _ClassVar[int]
    method: str
    messages: _containers.RepeatedScalarFieldContainer[bytes]
    complete: bool
    def __init__(self, method: _Optional[str] = ..., messages: _Optional[_Iterable[bytes]] = ..., complete: bool = ...) -> None: ...

class CallEnd(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RingBlock(_message.Message):
    __slots__ = ("offset", "size")
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    offset: int
    size: int
    def __init__(self, offset: _Optional[int] = ..., size: _Optional[int] = ...) -> None: ...

class CallResponse(_message.Message):
    __slots__ = ("ready", "data", "answer", "blocks_used")
    READY_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_USED_FIELD_NUMBER: _ClassVar[int]
    ready: CallReady
    data: bytes
    answer: CallAnswer
    blocks_used: int
    def __init__(self, ready: _Optional[_Union[CallReady, _Mapping]] = ..., data: _Optional[bytes] = ..., answer: _Optional[_Union[CallAnswer, _Mapping]] = ..., blocks_used: _Optional[int] = ...) -> None: ...

class CallReady(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class CallAnswer(_message.Message):
    __slots__ = ("messages", "status")
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    messages: _containers.RepeatedScalarFieldContainer[bytes]
    status: CallStatus
    def __init__(self, messages: _Optional[_Iterable[bytes]] = ..., status: _Optional[_Union[CallStatus, _Mapping]] = ...) -> None: ...

class CallStatus(_message.Message):
    __slots__ = ("code", "details", "error")
    CODE_FIELD_NUMBER: _ClassVar[int]
    DETAILS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    code: int
    details: str
    error: bytes
    def __init__(self, code: _Optional[int] = ..., details: _Optional[str] = ..., error: _Optional[bytes] = ...) -> None: ...
