from paramd.v1 import parameter_pb2 as _parameter_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ClusterVerdict(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CLUSTER_VERDICT_UNSPECIFIED: _ClassVar[ClusterVerdict]
    CLUSTER_VERDICT_WAIT: _ClassVar[ClusterVerdict]
    CLUSTER_VERDICT_GO_ON: _ClassVar[ClusterVerdict]
    CLUSTER_VERDICT_RESTART: _ClassVar[ClusterVerdict]
CLUSTER_VERDICT_UNSPECIFIED: ClusterVerdict
CLUSTER_VERDICT_WAIT: ClusterVerdict
CLUSTER_VERDICT_GO_ON: ClusterVerdict
CLUSTER_VERDICT_RESTART: ClusterVerdict

class RegisterShardRequest(_message.Message):
    __slots__ = ("cluster_id", "shard", "num_shards", "split_elements", "epoch", "generation", "position", "snapshot", "snapshots", "wait_ms", "whole_steps")
    CLUSTER_ID_FIELD_NUMBER: _ClassVar[int]
    SHARD_FIELD_NUMBER: _ClassVar[int]
    NUM_SHARDS_FIELD_NUMBER: _ClassVar[int]
    SPLIT_ELEMENTS_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOTS_FIELD_NUMBER: _ClassVar[int]
    WAIT_MS_FIELD_NUMBER: _ClassVar[int]
    WHOLE_STEPS_FIELD_NUMBER: _ClassVar[int]
    cluster_id: str
    shard: int
    num_shards: int
    split_elements: int
    epoch: int
    generation: int
    position: int
    snapshot: int
    snapshots: _containers.RepeatedScalarFieldContainer[int]
    wait_ms: int
    whole_steps: bool
    def __init__(self, cluster_id: _Optional[str] = ..., shard: _Optional[int] = ..., num_shards: _Optional[int] = ..., split_elements: _Optional[int] = ..., epoch: _Optional[int] = ..., generation: _Optional[int] = ..., position: _Optional[int] = ..., snapshot: _Optional[int] = ..., snapshots: _Optional[_Iterable[int]] = ..., wait_ms: _Optional[int] = ..., whole_steps: bool = ...) -> None: ...

class RegisterShardResponse(_message.Message):
    __slots__ = ("verdict", "cluster_id", "generation", "position", "snapshot")
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    CLUSTER_ID_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    verdict: ClusterVerdict
    cluster_id: str
    generation: int
    position: int
    snapshot: int
    def __init__(self, verdict: _Optional[_Union[ClusterVerdict, str]] = ..., cluster_id: _Optional[str] = ..., generation: _Optional[int] = ..., position: _Optional[int] = ..., snapshot: _Optional[int] = ...) -> None: ...

class FollowRequest(_message.Message):
    __slots__ = ("shard", "epoch", "generation", "position", "wait_ms", "old")
    SHARD_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    WAIT_MS_FIELD_NUMBER: _ClassVar[int]
    OLD_FIELD_NUMBER: _ClassVar[int]
    shard: int
    epoch: int
    generation: int
    position: int
    wait_ms: int
    old: _containers.RepeatedCompositeFieldContainer[KeptPush]
    def __init__(self, shard: _Optional[int] = ..., epoch: _Optional[int] = ..., generation: _Optional[int] = ..., position: _Optional[int] = ..., wait_ms: _Optional[int] = ..., old: _Optional[_Iterable[_Union[KeptPush, _Mapping]]] = ...) -> None: ...

class KeptPush(_message.Message):
    __slots__ = ("trainer", "operation")
    TRAINER_FIELD_NUMBER: _ClassVar[int]
    OPERATION_FIELD_NUMBER: _ClassVar[int]
    trainer: str
    operation: _parameter_pb2.Operation
    def __init__(self, trainer: _Optional[str] = ..., operation: _Optional[_Union[_parameter_pb2.Operation, _Mapping]] = ...) -> None: ...

class FollowResponse(_message.Message):
    __slots__ = ("verdict", "records", "snapshot", "head", "dropped")
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    verdict: ClusterVerdict
    records: _containers.RepeatedCompositeFieldContainer[LogRecord]
    snapshot: int
    head: int
    dropped: _containers.RepeatedCompositeFieldContainer[KeptPush]
    def __init__(self, verdict: _Optional[_Union[ClusterVerdict, str]] = ..., records: _Optional[_Iterable[_Union[LogRecord, _Mapping]]] = ..., snapshot: _Optional[int] = ..., head: _Optional[int] = ..., dropped: _Optional[_Iterable[_Union[KeptPush, _Mapping]]] = ...) -> None: ...

class LogRecord(_message.Message):
    __slots__ = ("position", "step", "update", "snapshot", "snapshot_result")
    POSITION_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    UPDATE_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_RESULT_FIELD_NUMBER: _ClassVar[int]
    position: int
    step: StepRecord
    update: UpdateRecord
    snapshot: SnapshotRecord
    snapshot_result: SnapshotResult
    def __init__(self, position: _Optional[int] = ..., step: _Optional[_Union[StepRecord, _Mapping]] = ..., update: _Optional[_Union[UpdateRecord, _Mapping]] = ..., snapshot: _Optional[_Union[SnapshotRecord, _Mapping]] = ..., snapshot_result: _Optional[_Union[SnapshotResult, _Mapping]] = ...) -> None: ...

class StepRecord(_message.Message):
    __slots__ = ("trainer", "clock", "num_steps", "pushes", "rates")
    TRAINER_FIELD_NUMBER: _ClassVar[int]
    CLOCK_FIELD_NUMBER: _ClassVar[int]
    NUM_STEPS_FIELD_NUMBER: _ClassVar[int]
    PUSHES_FIELD_NUMBER: _ClassVar[int]
    RATES_FIELD_NUMBER: _ClassVar[int]
    trainer: str
    clock: int
    num_steps: int
    pushes: _containers.RepeatedCompositeFieldContainer[CommittedPush]
    rates: _containers.RepeatedCompositeFieldContainer[ParameterRate]
    def __init__(self, trainer: _Optional[str] = ..., clock: _Optional[int] = ..., num_steps: _Optional[int] = ..., pushes: _Optional[_Iterable[_Union[CommittedPush, _Mapping]]] = ..., rates: _Optional[_Iterable[_Union[ParameterRate, _Mapping]]] = ...) -> None: ...

class CommittedPush(_message.Message):
    __slots__ = ("operation", "clock", "skipped", "batch_size")
    OPERATION_FIELD_NUMBER: _ClassVar[int]
    CLOCK_FIELD_NUMBER: _ClassVar[int]
    SKIPPED_FIELD_NUMBER: _ClassVar[int]
    BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    operation: _parameter_pb2.Operation
    clock: int
    skipped: bool
    batch_size: float
    def __init__(self, operation: _Optional[_Union[_parameter_pb2.Operation, _Mapping]] = ..., clock: _Optional[int] = ..., skipped: bool = ..., batch_size: _Optional[float] = ...) -> None: ...

class ParameterRate(_message.Message):
    __slots__ = ("name", "learning_rate", "num_update")
    NAME_FIELD_NUMBER: _ClassVar[int]
    LEARNING_RATE_FIELD_NUMBER: _ClassVar[int]
    NUM_UPDATE_FIELD_NUMBER: _ClassVar[int]
    name: str
    learning_rate: float
    num_update: int
    def __init__(self, name: _Optional[str] = ..., learning_rate: _Optional[float] = ..., num_update: _Optional[int] = ...) -> None: ...

class UpdateRecord(_message.Message):
    __slots__ = ("trainer", "operation", "skipped", "batch_size", "zero_grad", "reduced", "rates", "num_steps")
    TRAINER_FIELD_NUMBER: _ClassVar[int]
    OPERATION_FIELD_NUMBER: _ClassVar[int]
    SKIPPED_FIELD_NUMBER: _ClassVar[int]
    BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    ZERO_GRAD_FIELD_NUMBER: _ClassVar[int]
    REDUCED_FIELD_NUMBER: _ClassVar[int]
    RATES_FIELD_NUMBER: _ClassVar[int]
    NUM_STEPS_FIELD_NUMBER: _ClassVar[int]
    trainer: str
    operation: _parameter_pb2.Operation
    skipped: bool
    batch_size: float
    zero_grad: bool
    reduced: bool
    rates: _containers.RepeatedCompositeFieldContainer[ParameterRate]
    num_steps: int
    def __init__(self, trainer: _Optional[str] = ..., operation: _Optional[_Union[_parameter_pb2.Operation, _Mapping]] = ..., skipped: bool = ..., batch_size: _Optional[float] = ..., zero_grad: bool = ..., reduced: bool = ..., rates: _Optional[_Iterable[_Union[ParameterRate, _Mapping]]] = ..., num_steps: _Optional[int] = ...) -> None: ...

class SnapshotRecord(_message.Message):
    __slots__ = ("number", "directory")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    DIRECTORY_FIELD_NUMBER: _ClassVar[int]
    number: int
    directory: str
    def __init__(self, number: _Optional[int] = ..., directory: _Optional[str] = ...) -> None: ...

class SnapshotResult(_message.Message):
    __slots__ = ("number", "directory", "manifest", "kept")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    DIRECTORY_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    KEPT_FIELD_NUMBER: _ClassVar[int]
    number: int
    directory: str
    manifest: bytes
    kept: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, number: _Optional[int] = ..., directory: _Optional[str] = ..., manifest: _Optional[bytes] = ..., kept: _Optional[_Iterable[int]] = ...) -> None: ...

class LeaveClusterRequest(_message.Message):
    __slots__ = ("shard", "epoch")
    SHARD_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    shard: int
    epoch: int
    def __init__(self, shard: _Optional[int] = ..., epoch: _Optional[int] = ...) -> None: ...

class LeaveClusterResponse(_message.Message):
    __slots__ = ("head",)
    HEAD_FIELD_NUMBER: _ClassVar[int]
    head: int
    def __init__(self, head: _Optional[int] = ...) -> None: ...

class ReportPartRequest(_message.Message):
    __slots__ = ("shard", "epoch", "number", "directory", "part", "error")
    SHARD_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    DIRECTORY_FIELD_NUMBER: _ClassVar[int]
    PART_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    shard: int
    epoch: int
    number: int
    directory: str
    part: bytes
    error: str
    def __init__(self, shard: _Optional[int] = ..., epoch: _Optional[int] = ..., number: _Optional[int] = ..., directory: _Optional[str] = ..., part: _Optional[bytes] = ..., error: _Optional[str] = ...) -> None: ...

class ReportPartResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
