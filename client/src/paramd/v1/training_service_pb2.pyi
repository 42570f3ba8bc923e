from paramd.v1 import parameter_pb2 as _parameter_pb2
from paramd.v1 import parameter_service_pb2 as _parameter_service_pb2
from paramd.v1 import tensor_pb2 as _tensor_pb2
from paramd.v1 import trainer_pb2 as _trainer_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class StepState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STEP_STATE_UNSPECIFIED: _ClassVar[StepState]
    STEP_STATE_COMMITTED: _ClassVar[StepState]
    STEP_STATE_STAGED: _ClassVar[StepState]
    STEP_STATE_AHEAD: _ClassVar[StepState]
    STEP_STATE_UNKNOWN: _ClassVar[StepState]
STEP_STATE_UNSPECIFIED: StepState
STEP_STATE_COMMITTED: StepState
STEP_STATE_STAGED: StepState
STEP_STATE_AHEAD: StepState
STEP_STATE_UNKNOWN: StepState

class DeclareTrainerRequest(_message.Message):
    __slots__ = ("spec", "elsewhere", "shards")
    SPEC_FIELD_NUMBER: _ClassVar[int]
    ELSEWHERE_FIELD_NUMBER: _ClassVar[int]
    SHARDS_FIELD_NUMBER: _ClassVar[int]
    spec: _trainer_pb2.TrainerSpec
    elsewhere: _containers.RepeatedScalarFieldContainer[str]
    shards: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, spec: _Optional[_Union[_trainer_pb2.TrainerSpec, _Mapping]] = ..., elsewhere: _Optional[_Iterable[str]] = ..., shards: _Optional[_Iterable[int]] = ...) -> None: ...

class DeclareTrainerResponse(_message.Message):
    __slots__ = ("trainer",)
    TRAINER_FIELD_NUMBER: _ClassVar[int]
    trainer: _trainer_pb2.TrainerInfo
    def __init__(self, trainer: _Optional[_Union[_trainer_pb2.TrainerInfo, _Mapping]] = ...) -> None: ...

class ListTrainersRequest(_message.Message):
    __slots__ = ("names", "page_token")
    NAMES_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    names: _containers.RepeatedScalarFieldContainer[str]
    page_token: str
    def __init__(self, names: _Optional[_Iterable[str]] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListTrainersResponse(_message.Message):
    __slots__ = ("trainers", "next_page_token")
    TRAINERS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    trainers: _containers.RepeatedCompositeFieldContainer[_trainer_pb2.TrainerInfo]
    next_page_token: str
    def __init__(self, trainers: _Optional[_Iterable[_Union[_trainer_pb2.TrainerInfo, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class DeleteTrainerRequest(_message.Message):
    __slots__ = ("operation", "trainer")
    OPERATION_FIELD_NUMBER: _ClassVar[int]
    TRAINER_FIELD_NUMBER: _ClassVar[int]
    operation: _parameter_pb2.Operation
    trainer: str
    def __init__(self, operation: _Optional[_Union[_parameter_pb2.Operation, _Mapping]] = ..., trainer: _Optional[str] = ...) -> None: ...

class DeleteTrainerResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class JoinTrainerRequest(_message.Message):
    __slots__ = ("identity", "trainer")
    IDENTITY_FIELD_NUMBER: _ClassVar[int]
    TRAINER_FIELD_NUMBER: _ClassVar[int]
    identity: bytes
    trainer: str
    def __init__(self, identity: _Optional[bytes] = ..., trainer: _Optional[str] = ...) -> None: ...

class JoinTrainerResponse(_message.Message):
    __slots__ = ("clock", "rank", "num_workers")
    CLOCK_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    NUM_WORKERS_FIELD_NUMBER: _ClassVar[int]
    clock: int
    rank: int
    num_workers: int
    def __init__(self, clock: _Optional[int] = ..., rank: _Optional[int] = ..., num_workers: _Optional[int] = ...) -> None: ...

class LeaveTrainerRequest(_message.Message):
    __slots__ = ("identity", "trainer")
    IDENTITY_FIELD_NUMBER: _ClassVar[int]
    TRAINER_FIELD_NUMBER: _ClassVar[int]
    identity: bytes
    trainer: str
    def __init__(self, identity: _Optional[bytes] = ..., trainer: _Optional[str] = ...) -> None: ...

class LeaveTrainerResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class SetLearningRateRequest(_message.Message):
    __slots__ = ("operation", "trainer", "learning_rate")
    OPERATION_FIELD_NUMBER: _ClassVar[int]
    TRAINER_FIELD_NUMBER: _ClassVar[int]
    LEARNING_RATE_FIELD_NUMBER: _ClassVar[int]
    operation: _parameter_pb2.Operation
    trainer: str
    learning_rate: float
    def __init__(self, operation: _Optional[_Union[_parameter_pb2.Operation, _Mapping]] = ..., trainer: _Optional[str] = ..., learning_rate: _Optional[float] = ...) -> None: ...

class SetLearningRateResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StepRequest(_message.Message):
    __slots__ = ("header", "data", "open", "end", "pack", "heads", "commit")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    OPEN_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    PACK_FIELD_NUMBER: _ClassVar[int]
    HEADS_FIELD_NUMBER: _ClassVar[int]
    COMMIT_FIELD_NUMBER: _ClassVar[int]
    header: _tensor_pb2.TensorHeader
    data: bytes
    open: StepOpen
    end: _tensor_pb2.StreamEnd
    pack: _tensor_pb2.TensorPack
    heads: _tensor_pb2.TensorHeads
    commit: StepCommit
    def __init__(self, header: _Optional[_Union[_tensor_pb2.TensorHeader, _Mapping]] = ..., data: _Optional[bytes] = ..., open: _Optional[_Union[StepOpen, _Mapping]] = ..., end: _Optional[_Union[_tensor_pb2.StreamEnd, _Mapping]] = ..., pack: _Optional[_Union[_tensor_pb2.TensorPack, _Mapping]] = ..., heads: _Optional[_Union[_tensor_pb2.TensorHeads, _Mapping]] = ..., commit: _Optional[_Union[StepCommit, _Mapping]] = ...) -> None: ...

class StepCommit(_message.Message):
    __slots__ = ("parts", "generation")
    PARTS_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    parts: _containers.RepeatedCompositeFieldContainer[StagedPart]
    generation: int
    def __init__(self, parts: _Optional[_Iterable[_Union[StagedPart, _Mapping]]] = ..., generation: _Optional[int] = ...) -> None: ...

class StagedPart(_message.Message):
    __slots__ = ("shard", "epoch", "names", "non_finite")
    SHARD_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    NAMES_FIELD_NUMBER: _ClassVar[int]
    NON_FINITE_FIELD_NUMBER: _ClassVar[int]
    shard: int
    epoch: int
    names: _containers.RepeatedScalarFieldContainer[str]
    non_finite: str
    def __init__(self, shard: _Optional[int] = ..., epoch: _Optional[int] = ..., names: _Optional[_Iterable[str]] = ..., non_finite: _Optional[str] = ...) -> None: ...

class StepOpen(_message.Message):
    __slots__ = ("operation", "trainer", "clock", "batch_size", "learning_rate", "ignore_stale_grad", "pull", "current_context", "wait_ms")
    OPERATION_FIELD_NUMBER: _ClassVar[int]
    TRAINER_FIELD_NUMBER: _ClassVar[int]
    CLOCK_FIELD_NUMBER: _ClassVar[int]
    BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    LEARNING_RATE_FIELD_NUMBER: _ClassVar[int]
    IGNORE_STALE_GRAD_FIELD_NUMBER: _ClassVar[int]
    PULL_FIELD_NUMBER: _ClassVar[int]
    CURRENT_CONTEXT_FIELD_NUMBER: _ClassVar[int]
    WAIT_MS_FIELD_NUMBER: _ClassVar[int]
    operation: _parameter_pb2.Operation
    trainer: str
    clock: int
    batch_size: float
    learning_rate: float
    ignore_stale_grad: bool
    pull: _containers.RepeatedCompositeFieldContainer[_parameter_service_pb2.TensorSelector]
    current_context: _tensor_pb2.Context
    wait_ms: int
    def __init__(self, operation: _Optional[_Union[_parameter_pb2.Operation, _Mapping]] = ..., trainer: _Optional[str] = ..., clock: _Optional[int] = ..., batch_size: _Optional[float] = ..., learning_rate: _Optional[float] = ..., ignore_stale_grad: bool = ..., pull: _Optional[_Iterable[_Union[_parameter_service_pb2.TensorSelector, _Mapping]]] = ..., current_context: _Optional[_Union[_tensor_pb2.Context, _Mapping]] = ..., wait_ms: _Optional[int] = ...) -> None: ...

class StepResult(_message.Message):
    __slots__ = ("state", "clock", "skipped", "staged", "position")
    STATE_FIELD_NUMBER: _ClassVar[int]
    CLOCK_FIELD_NUMBER: _ClassVar[int]
    SKIPPED_FIELD_NUMBER: _ClassVar[int]
    STAGED_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    state: StepState
    clock: int
    skipped: bool
    staged: StagedPart
    position: int
    def __init__(self, state: _Optional[_Union[StepState, str]] = ..., clock: _Optional[int] = ..., skipped: bool = ..., staged: _Optional[_Union[StagedPart, _Mapping]] = ..., position: _Optional[int] = ...) -> None: ...

class StepResponse(_message.Message):
    __slots__ = ("header", "data", "result", "pack", "heads")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    PACK_FIELD_NUMBER: _ClassVar[int]
    HEADS_FIELD_NUMBER: _ClassVar[int]
    header: _tensor_pb2.TensorHeader
    data: bytes
    result: StepResult
    pack: _tensor_pb2.TensorPack
    heads: _tensor_pb2.TensorHeads
    def __init__(self, header: _Optional[_Union[_tensor_pb2.TensorHeader, _Mapping]] = ..., data: _Optional[bytes] = ..., result: _Optional[_Union[StepResult, _Mapping]] = ..., pack: _Optional[_Union[_tensor_pb2.TensorPack, _Mapping]] = ..., heads: _Optional[_Union[_tensor_pb2.TensorHeads, _Mapping]] = ...) -> None: ...

class AwaitStepRequest(_message.Message):
    __slots__ = ("operation", "trainer", "wait_ms")
    OPERATION_FIELD_NUMBER: _ClassVar[int]
    TRAINER_FIELD_NUMBER: _ClassVar[int]
    WAIT_MS_FIELD_NUMBER: _ClassVar[int]
    operation: _parameter_pb2.Operation
    trainer: str
    wait_ms: int
    def __init__(self, operation: _Optional[_Union[_parameter_pb2.Operation, _Mapping]] = ..., trainer: _Optional[str] = ..., wait_ms: _Optional[int] = ...) -> None: ...

class AwaitStepResponse(_message.Message):
    __slots__ = ("result",)
    RESULT_FIELD_NUMBER: _ClassVar[int]
    result: StepResult
    def __init__(self, result: _Optional[_Union[StepResult, _Mapping]] = ...) -> None: ...

class HoldStepsRequest(_message.Message):
    __slots__ = ("release",)
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    release: bool
    def __init__(self, release: bool = ...) -> None: ...

class HoldStepsResponse(_message.Message):
    __slots__ = ("held_ms",)
    HELD_MS_FIELD_NUMBER: _ClassVar[int]
    held_ms: int
    def __init__(self, held_ms: _Optional[int] = ...) -> None: ...

class UpdateRequest(_message.Message):
    __slots__ = ("operation", "trainer", "batch_size", "learning_rate", "ignore_stale_grad", "zero_grad", "reduced", "parts", "generation")
    OPERATION_FIELD_NUMBER: _ClassVar[int]
    TRAINER_FIELD_NUMBER: _ClassVar[int]
    BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    LEARNING_RATE_FIELD_NUMBER: _ClassVar[int]
    IGNORE_STALE_GRAD_FIELD_NUMBER: _ClassVar[int]
    ZERO_GRAD_FIELD_NUMBER: _ClassVar[int]
    REDUCED_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    operation: _parameter_pb2.Operation
    trainer: str
    batch_size: float
    learning_rate: float
    ignore_stale_grad: bool
    zero_grad: bool
    reduced: bool
    parts: _containers.RepeatedCompositeFieldContainer[StagedPart]
    generation: int
    def __init__(self, operation: _Optional[_Union[_parameter_pb2.Operation, _Mapping]] = ..., trainer: _Optional[str] = ..., batch_size: _Optional[float] = ..., learning_rate: _Optional[float] = ..., ignore_stale_grad: bool = ..., zero_grad: bool = ..., reduced: bool = ..., parts: _Optional[_Iterable[_Union[StagedPart, _Mapping]]] = ..., generation: _Optional[int] = ...) -> None: ...

class UpdateResponse(_message.Message):
    __slots__ = ("skipped", "staged", "position", "stage_again")
    SKIPPED_FIELD_NUMBER: _ClassVar[int]
    STAGED_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    STAGE_AGAIN_FIELD_NUMBER: _ClassVar[int]
    skipped: bool
    staged: StagedPart
    position: int
    stage_again: bool
    def __init__(self, skipped: bool = ..., staged: _Optional[_Union[StagedPart, _Mapping]] = ..., position: _Optional[int] = ..., stage_again: bool = ...) -> None: ...

class AllreduceGradsRequest(_message.Message):
    __slots__ = ("operation", "trainer")
    OPERATION_FIELD_NUMBER: _ClassVar[int]
    TRAINER_FIELD_NUMBER: _ClassVar[int]
    operation: _parameter_pb2.Operation
    trainer: str
    def __init__(self, operation: _Optional[_Union[_parameter_pb2.Operation, _Mapping]] = ..., trainer: _Optional[str] = ...) -> None: ...

class AllreduceGradsResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class SaveStatesRequest(_message.Message):
    __slots__ = ("trainer",)
    TRAINER_FIELD_NUMBER: _ClassVar[int]
    trainer: str
    def __init__(self, trainer: _Optional[str] = ...) -> None: ...

class StatesManifest(_message.Message):
    __slots__ = ("optimizer", "learning_rate", "names", "num_updates", "arrays", "last")
    OPTIMIZER_FIELD_NUMBER: _ClassVar[int]
    LEARNING_RATE_FIELD_NUMBER: _ClassVar[int]
    NAMES_FIELD_NUMBER: _ClassVar[int]
    NUM_UPDATES_FIELD_NUMBER: _ClassVar[int]
    ARRAYS_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    optimizer: _trainer_pb2.Optimizer
    learning_rate: float
    names: _containers.RepeatedScalarFieldContainer[str]
    num_updates: _containers.RepeatedScalarFieldContainer[int]
    arrays: _containers.RepeatedCompositeFieldContainer[StateArray]
    last: bool
    def __init__(self, optimizer: _Optional[_Union[_trainer_pb2.Optimizer, _Mapping]] = ..., learning_rate: _Optional[float] = ..., names: _Optional[_Iterable[str]] = ..., num_updates: _Optional[_Iterable[int]] = ..., arrays: _Optional[_Iterable[_Union[StateArray, _Mapping]]] = ..., last: bool = ...) -> None: ...

class StateArray(_message.Message):
    __slots__ = ("header", "state")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    header: _tensor_pb2.TensorHeader
    state: str
    def __init__(self, header: _Optional[_Union[_tensor_pb2.TensorHeader, _Mapping]] = ..., state: _Optional[str] = ...) -> None: ...

class SaveStatesResponse(_message.Message):
    __slots__ = ("header", "data", "manifest")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    header: _tensor_pb2.TensorHeader
    data: bytes
    manifest: StatesManifest
    def __init__(self, header: _Optional[_Union[_tensor_pb2.TensorHeader, _Mapping]] = ..., data: _Optional[bytes] = ..., manifest: _Optional[_Union[StatesManifest, _Mapping]] = ...) -> None: ...

class LoadStatesRequest(_message.Message):
    __slots__ = ("header", "data", "open", "end", "pack", "heads", "manifest")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    OPEN_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    PACK_FIELD_NUMBER: _ClassVar[int]
    HEADS_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    header: _tensor_pb2.TensorHeader
    data: bytes
    open: LoadStatesOpen
    end: _tensor_pb2.StreamEnd
    pack: _tensor_pb2.TensorPack
    heads: _tensor_pb2.TensorHeads
    manifest: StatesManifest
    def __init__(self, header: _Optional[_Union[_tensor_pb2.TensorHeader, _Mapping]] = ..., data: _Optional[bytes] = ..., open: _Optional[_Union[LoadStatesOpen, _Mapping]] = ..., end: _Optional[_Union[_tensor_pb2.StreamEnd, _Mapping]] = ..., pack: _Optional[_Union[_tensor_pb2.TensorPack, _Mapping]] = ..., heads: _Optional[_Union[_tensor_pb2.TensorHeads, _Mapping]] = ..., manifest: _Optional[_Union[StatesManifest, _Mapping]] = ...) -> None: ...

class LoadStatesOpen(_message.Message):
    __slots__ = ("operation", "trainer", "only_check")
    OPERATION_FIELD_NUMBER: _ClassVar[int]
    TRAINER_FIELD_NUMBER: _ClassVar[int]
    ONLY_CHECK_FIELD_NUMBER: _ClassVar[int]
    operation: _parameter_pb2.Operation
    trainer: str
    only_check: bool
    def __init__(self, operation: _Optional[_Union[_parameter_pb2.Operation, _Mapping]] = ..., trainer: _Optional[str] = ..., only_check: bool = ...) -> None: ...

class LoadStatesResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
