from paramd.v1 import parameter_pb2 as _parameter_pb2
from paramd.v1 import tensor_pb2 as _tensor_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class OnceAction(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ONCE_ACTION_UNSPECIFIED: _ClassVar[OnceAction]
    ONCE_ACTION_CLAIM: _ClassVar[OnceAction]
    ONCE_ACTION_COMPLETE: _ClassVar[OnceAction]
    ONCE_ACTION_ABANDON: _ClassVar[OnceAction]
    ONCE_ACTION_RENEW: _ClassVar[OnceAction]

class OnceState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ONCE_STATE_UNSPECIFIED: _ClassVar[OnceState]
    ONCE_STATE_CLAIMED: _ClassVar[OnceState]
    ONCE_STATE_BUSY: _ClassVar[OnceState]
    ONCE_STATE_DONE: _ClassVar[OnceState]
    ONCE_STATE_OPEN: _ClassVar[OnceState]
ONCE_ACTION_UNSPECIFIED: OnceAction
ONCE_ACTION_CLAIM: OnceAction
ONCE_ACTION_COMPLETE: OnceAction
ONCE_ACTION_ABANDON: OnceAction
ONCE_ACTION_RENEW: OnceAction
ONCE_STATE_UNSPECIFIED: OnceState
ONCE_STATE_CLAIMED: OnceState
ONCE_STATE_BUSY: OnceState
ONCE_STATE_DONE: OnceState
ONCE_STATE_OPEN: OnceState

class HelloRequest(_message.Message):
    __slots__ = ("protocol", "client_version", "identity", "worker")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    CLIENT_VERSION_FIELD_NUMBER: _ClassVar[int]
    IDENTITY_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    client_version: str
    identity: bytes
    worker: str
    def __init__(self, protocol: _Optional[int] = ..., client_version: _Optional[str] = ..., identity: _Optional[bytes] = ..., worker: _Optional[str] = ...) -> None: ...

class HelloResponse(_message.Message):
    __slots__ = ("protocol", "server_version", "epoch", "num_gpus", "device_types", "cluster", "local_socket")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    SERVER_VERSION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    NUM_GPUS_FIELD_NUMBER: _ClassVar[int]
    DEVICE_TYPES_FIELD_NUMBER: _ClassVar[int]
    CLUSTER_FIELD_NUMBER: _ClassVar[int]
    LOCAL_SOCKET_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    server_version: str
    epoch: int
    num_gpus: int
    device_types: _containers.RepeatedScalarFieldContainer[_tensor_pb2.DeviceType]
    cluster: Cluster
    local_socket: str
    def __init__(self, protocol: _Optional[int] = ..., server_version: _Optional[str] = ..., epoch: _Optional[int] = ..., num_gpus: _Optional[int] = ..., device_types: _Optional[_Iterable[_Union[_tensor_pb2.DeviceType, str]]] = ..., cluster: _Optional[_Union[Cluster, _Mapping]] = ..., local_socket: _Optional[str] = ...) -> None: ...

class Cluster(_message.Message):
    __slots__ = ("id", "shard", "num_shards", "split_elements", "generation")
    ID_FIELD_NUMBER: _ClassVar[int]
    SHARD_FIELD_NUMBER: _ClassVar[int]
    NUM_SHARDS_FIELD_NUMBER: _ClassVar[int]
    SPLIT_ELEMENTS_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    id: str
    shard: int
    num_shards: int
    split_elements: int
    generation: int
    def __init__(self, id: _Optional[str] = ..., shard: _Optional[int] = ..., num_shards: _Optional[int] = ..., split_elements: _Optional[int] = ..., generation: _Optional[int] = ...) -> None: ...

class GetStatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetStatusResponse(_message.Message):
    __slots__ = ("server_version", "epoch", "uptime_ms", "num_parameters", "memory_bytes", "memory_limit_bytes", "workers", "num_gpus", "num_snapshots", "num_failed_snapshots", "last_snapshot", "last_snapshot_created", "devices")
    SERVER_VERSION_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    UPTIME_MS_FIELD_NUMBER: _ClassVar[int]
    NUM_PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_LIMIT_BYTES_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    NUM_GPUS_FIELD_NUMBER: _ClassVar[int]
    NUM_SNAPSHOTS_FIELD_NUMBER: _ClassVar[int]
    NUM_FAILED_SNAPSHOTS_FIELD_NUMBER: _ClassVar[int]
    LAST_SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    LAST_SNAPSHOT_CREATED_FIELD_NUMBER: _ClassVar[int]
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    server_version: str
    epoch: int
    uptime_ms: int
    num_parameters: int
    memory_bytes: int
    memory_limit_bytes: int
    workers: _containers.RepeatedCompositeFieldContainer[WorkerStatus]
    num_gpus: int
    num_snapshots: int
    num_failed_snapshots: int
    last_snapshot: int
    last_snapshot_created: float
    devices: _containers.RepeatedCompositeFieldContainer[DeviceStatus]
    def __init__(self, server_version: _Optional[str] = ..., epoch: _Optional[int] = ..., uptime_ms: _Optional[int] = ..., num_parameters: _Optional[int] = ..., memory_bytes: _Optional[int] = ..., memory_limit_bytes: _Optional[int] = ..., workers: _Optional[_Iterable[_Union[WorkerStatus, _Mapping]]] = ..., num_gpus: _Optional[int] = ..., num_snapshots: _Optional[int] = ..., num_failed_snapshots: _Optional[int] = ..., last_snapshot: _Optional[int] = ..., last_snapshot_created: _Optional[float] = ..., devices: _Optional[_Iterable[_Union[DeviceStatus, _Mapping]]] = ...) -> None: ...

class DeviceStatus(_message.Message):
    __slots__ = ("context", "name", "memory_bytes", "memory_limit_bytes", "total_bytes")
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_LIMIT_BYTES_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    context: _tensor_pb2.Context
    name: str
    memory_bytes: int
    memory_limit_bytes: int
    total_bytes: int
    def __init__(self, context: _Optional[_Union[_tensor_pb2.Context, _Mapping]] = ..., name: _Optional[str] = ..., memory_bytes: _Optional[int] = ..., memory_limit_bytes: _Optional[int] = ..., total_bytes: _Optional[int] = ...) -> None: ...

class WorkerStatus(_message.Message):
    __slots__ = ("worker", "identity", "num_pushes", "num_pushed_tensors")
    WORKER_FIELD_NUMBER: _ClassVar[int]
    IDENTITY_FIELD_NUMBER: _ClassVar[int]
    NUM_PUSHES_FIELD_NUMBER: _ClassVar[int]
    NUM_PUSHED_TENSORS_FIELD_NUMBER: _ClassVar[int]
    worker: str
    identity: bytes
    num_pushes: int
    num_pushed_tensors: int
    def __init__(self, worker: _Optional[str] = ..., identity: _Optional[bytes] = ..., num_pushes: _Optional[int] = ..., num_pushed_tensors: _Optional[int] = ...) -> None: ...

class OnceRequest(_message.Message):
    __slots__ = ("name", "action", "operation", "lease_ms", "wait_ms")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    OPERATION_FIELD_NUMBER: _ClassVar[int]
    LEASE_MS_FIELD_NUMBER: _ClassVar[int]
    WAIT_MS_FIELD_NUMBER: _ClassVar[int]
    name: str
    action: OnceAction
    operation: _parameter_pb2.Operation
    lease_ms: int
    wait_ms: int
    def __init__(self, name: _Optional[str] = ..., action: _Optional[_Union[OnceAction, str]] = ..., operation: _Optional[_Union[_parameter_pb2.Operation, _Mapping]] = ..., lease_ms: _Optional[int] = ..., wait_ms: _Optional[int] = ...) -> None: ...

class OnceResponse(_message.Message):
    __slots__ = ("state",)
    STATE_FIELD_NUMBER: _ClassVar[int]
    state: OnceState
    def __init__(self, state: _Optional[_Union[OnceState, str]] = ...) -> None: ...

class JoinRequest(_message.Message):
    __slots__ = ("identity", "worker", "lease_ms")
    IDENTITY_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    LEASE_MS_FIELD_NUMBER: _ClassVar[int]
    identity: bytes
    worker: str
    lease_ms: int
    def __init__(self, identity: _Optional[bytes] = ..., worker: _Optional[str] = ..., lease_ms: _Optional[int] = ...) -> None: ...

class JoinResponse(_message.Message):
    __slots__ = ("rank", "num_workers")
    RANK_FIELD_NUMBER: _ClassVar[int]
    NUM_WORKERS_FIELD_NUMBER: _ClassVar[int]
    rank: int
    num_workers: int
    def __init__(self, rank: _Optional[int] = ..., num_workers: _Optional[int] = ...) -> None: ...

class HeartbeatRequest(_message.Message):
    __slots__ = ("identity",)
    IDENTITY_FIELD_NUMBER: _ClassVar[int]
    identity: bytes
    def __init__(self, identity: _Optional[bytes] = ...) -> None: ...

class HeartbeatResponse(_message.Message):
    __slots__ = ("rank", "num_workers")
    RANK_FIELD_NUMBER: _ClassVar[int]
    NUM_WORKERS_FIELD_NUMBER: _ClassVar[int]
    rank: int
    num_workers: int
    def __init__(self, rank: _Optional[int] = ..., num_workers: _Optional[int] = ...) -> None: ...

class LeaveRequest(_message.Message):
    __slots__ = ("identity",)
    IDENTITY_FIELD_NUMBER: _ClassVar[int]
    identity: bytes
    def __init__(self, identity: _Optional[bytes] = ...) -> None: ...

class LeaveResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class BarrierRequest(_message.Message):
    __slots__ = ("name", "num_workers", "operation", "wait_ms", "leave")
    NAME_FIELD_NUMBER: _ClassVar[int]
    NUM_WORKERS_FIELD_NUMBER: _ClassVar[int]
    OPERATION_FIELD_NUMBER: _ClassVar[int]
    WAIT_MS_FIELD_NUMBER: _ClassVar[int]
    LEAVE_FIELD_NUMBER: _ClassVar[int]
    name: str
    num_workers: int
    operation: _parameter_pb2.Operation
    wait_ms: int
    leave: bool
    def __init__(self, name: _Optional[str] = ..., num_workers: _Optional[int] = ..., operation: _Optional[_Union[_parameter_pb2.Operation, _Mapping]] = ..., wait_ms: _Optional[int] = ..., leave: bool = ...) -> None: ...

class BarrierResponse(_message.Message):
    __slots__ = ("open", "num_arrived", "index")
    OPEN_FIELD_NUMBER: _ClassVar[int]
    NUM_ARRIVED_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    open: bool
    num_arrived: int
    index: int
    def __init__(self, open: bool = ..., num_arrived: _Optional[int] = ..., index: _Optional[int] = ...) -> None: ...
