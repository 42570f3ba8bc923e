from google.protobuf import struct_pb2 as _struct_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class NonFinitePolicy(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    NON_FINITE_POLICY_UNSPECIFIED: _ClassVar[NonFinitePolicy]
    NON_FINITE_POLICY_APPLY: _ClassVar[NonFinitePolicy]
    NON_FINITE_POLICY_SKIP: _ClassVar[NonFinitePolicy]
    NON_FINITE_POLICY_ERROR: _ClassVar[NonFinitePolicy]

class WorkerLossPolicy(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    WORKER_LOSS_POLICY_UNSPECIFIED: _ClassVar[WorkerLossPolicy]
    WORKER_LOSS_POLICY_CONTINUE: _ClassVar[WorkerLossPolicy]
    WORKER_LOSS_POLICY_ERROR: _ClassVar[WorkerLossPolicy]
NON_FINITE_POLICY_UNSPECIFIED: NonFinitePolicy
NON_FINITE_POLICY_APPLY: NonFinitePolicy
NON_FINITE_POLICY_SKIP: NonFinitePolicy
NON_FINITE_POLICY_ERROR: NonFinitePolicy
WORKER_LOSS_POLICY_UNSPECIFIED: WorkerLossPolicy
WORKER_LOSS_POLICY_CONTINUE: WorkerLossPolicy
WORKER_LOSS_POLICY_ERROR: WorkerLossPolicy

class LearningRateScheduler(_message.Message):
    __slots__ = ("name", "arguments")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ARGUMENTS_FIELD_NUMBER: _ClassVar[int]
    name: str
    arguments: _struct_pb2.Struct
    def __init__(self, name: _Optional[str] = ..., arguments: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ...) -> None: ...

class Optimizer(_message.Message):
    __slots__ = ("name", "arguments", "scheduler")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ARGUMENTS_FIELD_NUMBER: _ClassVar[int]
    SCHEDULER_FIELD_NUMBER: _ClassVar[int]
    name: str
    arguments: _struct_pb2.Struct
    scheduler: LearningRateScheduler
    def __init__(self, name: _Optional[str] = ..., arguments: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., scheduler: _Optional[_Union[LearningRateScheduler, _Mapping]] = ...) -> None: ...

class TrainerSpec(_message.Message):
    __slots__ = ("name", "parameters", "optimizer", "distributed", "staleness", "num_workers", "non_finite", "worker_loss", "two_bit_threshold", "update_each_copy")
    NAME_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    OPTIMIZER_FIELD_NUMBER: _ClassVar[int]
    DISTRIBUTED_FIELD_NUMBER: _ClassVar[int]
    STALENESS_FIELD_NUMBER: _ClassVar[int]
    NUM_WORKERS_FIELD_NUMBER: _ClassVar[int]
    NON_FINITE_FIELD_NUMBER: _ClassVar[int]
    WORKER_LOSS_FIELD_NUMBER: _ClassVar[int]
    TWO_BIT_THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    UPDATE_EACH_COPY_FIELD_NUMBER: _ClassVar[int]
    name: str
    parameters: _containers.RepeatedScalarFieldContainer[str]
    optimizer: Optimizer
    distributed: bool
    staleness: int
    num_workers: int
    non_finite: NonFinitePolicy
    worker_loss: WorkerLossPolicy
    two_bit_threshold: float
    update_each_copy: bool
    def __init__(self, name: _Optional[str] = ..., parameters: _Optional[_Iterable[str]] = ..., optimizer: _Optional[_Union[Optimizer, _Mapping]] = ..., distributed: bool = ..., staleness: _Optional[int] = ..., num_workers: _Optional[int] = ..., non_finite: _Optional[_Union[NonFinitePolicy, str]] = ..., worker_loss: _Optional[_Union[WorkerLossPolicy, str]] = ..., two_bit_threshold: _Optional[float] = ..., update_each_copy: bool = ...) -> None: ...

class TrainerWorker(_message.Message):
    __slots__ = ("worker", "rank", "clock", "staged")
    WORKER_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    CLOCK_FIELD_NUMBER: _ClassVar[int]
    STAGED_FIELD_NUMBER: _ClassVar[int]
    worker: str
    rank: int
    clock: int
    staged: bool
    def __init__(self, worker: _Optional[str] = ..., rank: _Optional[int] = ..., clock: _Optional[int] = ..., staged: bool = ...) -> None: ...

class TrainerInfo(_message.Message):
    __slots__ = ("spec", "learning_rate", "num_update", "num_steps", "workers", "num_non_finite", "num_skipped", "state_bytes", "num_lost_steps")
    SPEC_FIELD_NUMBER: _ClassVar[int]
    LEARNING_RATE_FIELD_NUMBER: _ClassVar[int]
    NUM_UPDATE_FIELD_NUMBER: _ClassVar[int]
    NUM_STEPS_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    NUM_NON_FINITE_FIELD_NUMBER: _ClassVar[int]
    NUM_SKIPPED_FIELD_NUMBER: _ClassVar[int]
    STATE_BYTES_FIELD_NUMBER: _ClassVar[int]
    NUM_LOST_STEPS_FIELD_NUMBER: _ClassVar[int]
    spec: TrainerSpec
    learning_rate: float
    num_update: int
    num_steps: int
    workers: _containers.RepeatedCompositeFieldContainer[TrainerWorker]
    num_non_finite: int
    num_skipped: int
    state_bytes: int
    num_lost_steps: int
    def __init__(self, spec: _Optional[_Union[TrainerSpec, _Mapping]] = ..., learning_rate: _Optional[float] = ..., num_update: _Optional[int] = ..., num_steps: _Optional[int] = ..., workers: _Optional[_Iterable[_Union[TrainerWorker, _Mapping]]] = ..., num_non_finite: _Optional[int] = ..., num_skipped: _Optional[int] = ..., state_bytes: _Optional[int] = ..., num_lost_steps: _Optional[int] = ...) -> None: ...
