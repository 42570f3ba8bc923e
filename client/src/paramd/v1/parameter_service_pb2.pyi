from paramd.v1 import parameter_pb2 as _parameter_pb2
from paramd.v1 import tensor_pb2 as _tensor_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class InitializeOutcome(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    INITIALIZE_OUTCOME_UNSPECIFIED: _ClassVar[InitializeOutcome]
    INITIALIZE_OUTCOME_INITIALIZED: _ClassVar[InitializeOutcome]
    INITIALIZE_OUTCOME_DEFERRED: _ClassVar[InitializeOutcome]
    INITIALIZE_OUTCOME_ALREADY_INITIALIZED: _ClassVar[InitializeOutcome]

class DTypeSource(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DTYPE_SOURCE_UNSPECIFIED: _ClassVar[DTypeSource]
    DTYPE_SOURCE_CURRENT: _ClassVar[DTypeSource]
    DTYPE_SOURCE_SAVED: _ClassVar[DTypeSource]
INITIALIZE_OUTCOME_UNSPECIFIED: InitializeOutcome
INITIALIZE_OUTCOME_INITIALIZED: InitializeOutcome
INITIALIZE_OUTCOME_DEFERRED: InitializeOutcome
INITIALIZE_OUTCOME_ALREADY_INITIALIZED: InitializeOutcome
DTYPE_SOURCE_UNSPECIFIED: DTypeSource
DTYPE_SOURCE_CURRENT: DTypeSource
DTYPE_SOURCE_SAVED: DTypeSource

class DeclareRequest(_message.Message):
    __slots__ = ("declarations",)
    DECLARATIONS_FIELD_NUMBER: _ClassVar[int]
    declarations: _containers.RepeatedCompositeFieldContainer[Declaration]
    def __init__(self, declarations: _Optional[_Iterable[_Union[Declaration, _Mapping]]] = ...) -> None: ...

class Declaration(_message.Message):
    __slots__ = ("spec", "compared")
    SPEC_FIELD_NUMBER: _ClassVar[int]
    COMPARED_FIELD_NUMBER: _ClassVar[int]
    spec: _parameter_pb2.ParameterSpec
    compared: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, spec: _Optional[_Union[_parameter_pb2.ParameterSpec, _Mapping]] = ..., compared: _Optional[_Iterable[str]] = ...) -> None: ...

class DeclareResponse(_message.Message):
    __slots__ = ("parameters",)
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    parameters: _containers.RepeatedCompositeFieldContainer[_parameter_pb2.ParameterInfo]
    def __init__(self, parameters: _Optional[_Iterable[_Union[_parameter_pb2.ParameterInfo, _Mapping]]] = ...) -> None: ...

class ListRequest(_message.Message):
    __slots__ = ("names", "prefix", "page_token")
    NAMES_FIELD_NUMBER: _ClassVar[int]
    PREFIX_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    names: _containers.RepeatedScalarFieldContainer[str]
    prefix: str
    page_token: str
    def __init__(self, names: _Optional[_Iterable[str]] = ..., prefix: _Optional[str] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListResponse(_message.Message):
    __slots__ = ("parameters", "next_page_token")
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    parameters: _containers.RepeatedCompositeFieldContainer[_parameter_pb2.ParameterInfo]
    next_page_token: str
    def __init__(self, parameters: _Optional[_Iterable[_Union[_parameter_pb2.ParameterInfo, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class DeleteRequest(_message.Message):
    __slots__ = ("operation", "names")
    OPERATION_FIELD_NUMBER: _ClassVar[int]
    NAMES_FIELD_NUMBER: _ClassVar[int]
    operation: _parameter_pb2.Operation
    names: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, operation: _Optional[_Union[_parameter_pb2.Operation, _Mapping]] = ..., names: _Optional[_Iterable[str]] = ...) -> None: ...

class DeleteResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class InitializeRequest(_message.Message):
    __slots__ = ("operation", "entries", "contexts", "force_reinit")
    OPERATION_FIELD_NUMBER: _ClassVar[int]
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    CONTEXTS_FIELD_NUMBER: _ClassVar[int]
    FORCE_REINIT_FIELD_NUMBER: _ClassVar[int]
    operation: _parameter_pb2.Operation
    entries: _containers.RepeatedCompositeFieldContainer[InitializeEntry]
    contexts: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.Context]
    force_reinit: bool
    def __init__(self, operation: _Optional[_Union[_parameter_pb2.Operation, _Mapping]] = ..., entries: _Optional[_Iterable[_Union[InitializeEntry, _Mapping]]] = ..., contexts: _Optional[_Iterable[_Union[_tensor_pb2.Context, _Mapping]]] = ..., force_reinit: bool = ...) -> None: ...

class InitializeEntry(_message.Message):
    __slots__ = ("name", "init", "seed", "draw")
    NAME_FIELD_NUMBER: _ClassVar[int]
    INIT_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    DRAW_FIELD_NUMBER: _ClassVar[int]
    name: str
    init: _parameter_pb2.Initializer
    seed: int
    draw: int
    def __init__(self, name: _Optional[str] = ..., init: _Optional[_Union[_parameter_pb2.Initializer, _Mapping]] = ..., seed: _Optional[int] = ..., draw: _Optional[int] = ...) -> None: ...

class InitializeResponse(_message.Message):
    __slots__ = ("outcomes", "parameters")
    OUTCOMES_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    outcomes: _containers.RepeatedScalarFieldContainer[InitializeOutcome]
    parameters: _containers.RepeatedCompositeFieldContainer[_parameter_pb2.ParameterInfo]
    def __init__(self, outcomes: _Optional[_Iterable[_Union[InitializeOutcome, str]]] = ..., parameters: _Optional[_Iterable[_Union[_parameter_pb2.ParameterInfo, _Mapping]]] = ...) -> None: ...

class TensorSelector(_message.Message):
    __slots__ = ("name", "context", "region", "part")
    NAME_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    REGION_FIELD_NUMBER: _ClassVar[int]
    PART_FIELD_NUMBER: _ClassVar[int]
    name: str
    context: _tensor_pb2.Context
    region: _tensor_pb2.Region
    part: _tensor_pb2.Part
    def __init__(self, name: _Optional[str] = ..., context: _Optional[_Union[_tensor_pb2.Context, _Mapping]] = ..., region: _Optional[_Union[_tensor_pb2.Region, _Mapping]] = ..., part: _Optional[_Union[_tensor_pb2.Part, _Mapping]] = ...) -> None: ...

class GetDataRequest(_message.Message):
    __slots__ = ("tensors", "current_context")
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    CURRENT_CONTEXT_FIELD_NUMBER: _ClassVar[int]
    tensors: _containers.RepeatedCompositeFieldContainer[TensorSelector]
    current_context: _tensor_pb2.Context
    def __init__(self, tensors: _Optional[_Iterable[_Union[TensorSelector, _Mapping]]] = ..., current_context: _Optional[_Union[_tensor_pb2.Context, _Mapping]] = ...) -> None: ...

class GetDataResponse(_message.Message):
    __slots__ = ("header", "data", "pack", "heads")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    PACK_FIELD_NUMBER: _ClassVar[int]
    HEADS_FIELD_NUMBER: _ClassVar[int]
    header: _tensor_pb2.TensorHeader
    data: bytes
    pack: _tensor_pb2.TensorPack
    heads: _tensor_pb2.TensorHeads
    def __init__(self, header: _Optional[_Union[_tensor_pb2.TensorHeader, _Mapping]] = ..., data: _Optional[bytes] = ..., pack: _Optional[_Union[_tensor_pb2.TensorPack, _Mapping]] = ..., heads: _Optional[_Union[_tensor_pb2.TensorHeads, _Mapping]] = ...) -> None: ...

class SetDataRequest(_message.Message):
    __slots__ = ("header", "data", "open", "end", "pack", "heads")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    OPEN_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    PACK_FIELD_NUMBER: _ClassVar[int]
    HEADS_FIELD_NUMBER: _ClassVar[int]
    header: _tensor_pb2.TensorHeader
    data: bytes
    open: SetDataOpen
    end: _tensor_pb2.StreamEnd
    pack: _tensor_pb2.TensorPack
    heads: _tensor_pb2.TensorHeads
    def __init__(self, header: _Optional[_Union[_tensor_pb2.TensorHeader, _Mapping]] = ..., data: _Optional[bytes] = ..., open: _Optional[_Union[SetDataOpen, _Mapping]] = ..., end: _Optional[_Union[_tensor_pb2.StreamEnd, _Mapping]] = ..., pack: _Optional[_Union[_tensor_pb2.TensorPack, _Mapping]] = ..., heads: _Optional[_Union[_tensor_pb2.TensorHeads, _Mapping]] = ...) -> None: ...

class SetDataOpen(_message.Message):
    __slots__ = ("operation", "initialize", "force_reinit", "contexts")
    OPERATION_FIELD_NUMBER: _ClassVar[int]
    INITIALIZE_FIELD_NUMBER: _ClassVar[int]
    FORCE_REINIT_FIELD_NUMBER: _ClassVar[int]
    CONTEXTS_FIELD_NUMBER: _ClassVar[int]
    operation: _parameter_pb2.Operation
    initialize: bool
    force_reinit: bool
    contexts: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.Context]
    def __init__(self, operation: _Optional[_Union[_parameter_pb2.Operation, _Mapping]] = ..., initialize: bool = ..., force_reinit: bool = ..., contexts: _Optional[_Iterable[_Union[_tensor_pb2.Context, _Mapping]]] = ...) -> None: ...

class SetDataResponse(_message.Message):
    __slots__ = ("versions",)
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    versions: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.Version]
    def __init__(self, versions: _Optional[_Iterable[_Union[_tensor_pb2.Version, _Mapping]]] = ...) -> None: ...

class GetGradRequest(_message.Message):
    __slots__ = ("tensors", "current_context")
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    CURRENT_CONTEXT_FIELD_NUMBER: _ClassVar[int]
    tensors: _containers.RepeatedCompositeFieldContainer[TensorSelector]
    current_context: _tensor_pb2.Context
    def __init__(self, tensors: _Optional[_Iterable[_Union[TensorSelector, _Mapping]]] = ..., current_context: _Optional[_Union[_tensor_pb2.Context, _Mapping]] = ...) -> None: ...

class GetGradResponse(_message.Message):
    __slots__ = ("header", "data", "pack", "heads")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    PACK_FIELD_NUMBER: _ClassVar[int]
    HEADS_FIELD_NUMBER: _ClassVar[int]
    header: _tensor_pb2.TensorHeader
    data: bytes
    pack: _tensor_pb2.TensorPack
    heads: _tensor_pb2.TensorHeads
    def __init__(self, header: _Optional[_Union[_tensor_pb2.TensorHeader, _Mapping]] = ..., data: _Optional[bytes] = ..., pack: _Optional[_Union[_tensor_pb2.TensorPack, _Mapping]] = ..., heads: _Optional[_Union[_tensor_pb2.TensorHeads, _Mapping]] = ...) -> None: ...

class SetGradRequest(_message.Message):
    __slots__ = ("header", "data", "open", "end", "pack", "heads")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    OPEN_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    PACK_FIELD_NUMBER: _ClassVar[int]
    HEADS_FIELD_NUMBER: _ClassVar[int]
    header: _tensor_pb2.TensorHeader
    data: bytes
    open: SetGradOpen
    end: _tensor_pb2.StreamEnd
    pack: _tensor_pb2.TensorPack
    heads: _tensor_pb2.TensorHeads
    def __init__(self, header: _Optional[_Union[_tensor_pb2.TensorHeader, _Mapping]] = ..., data: _Optional[bytes] = ..., open: _Optional[_Union[SetGradOpen, _Mapping]] = ..., end: _Optional[_Union[_tensor_pb2.StreamEnd, _Mapping]] = ..., pack: _Optional[_Union[_tensor_pb2.TensorPack, _Mapping]] = ..., heads: _Optional[_Union[_tensor_pb2.TensorHeads, _Mapping]] = ...) -> None: ...

class SetGradOpen(_message.Message):
    __slots__ = ("operation", "current_context")
    OPERATION_FIELD_NUMBER: _ClassVar[int]
    CURRENT_CONTEXT_FIELD_NUMBER: _ClassVar[int]
    operation: _parameter_pb2.Operation
    current_context: _tensor_pb2.Context
    def __init__(self, operation: _Optional[_Union[_parameter_pb2.Operation, _Mapping]] = ..., current_context: _Optional[_Union[_tensor_pb2.Context, _Mapping]] = ...) -> None: ...

class SetGradResponse(_message.Message):
    __slots__ = ("versions",)
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    versions: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.Version]
    def __init__(self, versions: _Optional[_Iterable[_Union[_tensor_pb2.Version, _Mapping]]] = ...) -> None: ...

class ZeroGradRequest(_message.Message):
    __slots__ = ("operation", "names")
    OPERATION_FIELD_NUMBER: _ClassVar[int]
    NAMES_FIELD_NUMBER: _ClassVar[int]
    operation: _parameter_pb2.Operation
    names: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, operation: _Optional[_Union[_parameter_pb2.Operation, _Mapping]] = ..., names: _Optional[_Iterable[str]] = ...) -> None: ...

class ZeroGradResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ResetCtxRequest(_message.Message):
    __slots__ = ("operation", "names", "contexts")
    OPERATION_FIELD_NUMBER: _ClassVar[int]
    NAMES_FIELD_NUMBER: _ClassVar[int]
    CONTEXTS_FIELD_NUMBER: _ClassVar[int]
    operation: _parameter_pb2.Operation
    names: _containers.RepeatedScalarFieldContainer[str]
    contexts: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.Context]
    def __init__(self, operation: _Optional[_Union[_parameter_pb2.Operation, _Mapping]] = ..., names: _Optional[_Iterable[str]] = ..., contexts: _Optional[_Iterable[_Union[_tensor_pb2.Context, _Mapping]]] = ...) -> None: ...

class ResetCtxResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class CastRequest(_message.Message):
    __slots__ = ("operation", "names", "dtype")
    OPERATION_FIELD_NUMBER: _ClassVar[int]
    NAMES_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    operation: _parameter_pb2.Operation
    names: _containers.RepeatedScalarFieldContainer[str]
    dtype: _tensor_pb2.DType
    def __init__(self, operation: _Optional[_Union[_parameter_pb2.Operation, _Mapping]] = ..., names: _Optional[_Iterable[str]] = ..., dtype: _Optional[_Union[_tensor_pb2.DType, str]] = ...) -> None: ...

class CastResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class SetAttributesRequest(_message.Message):
    __slots__ = ("operation", "names", "shape", "grad_req", "lr_mult", "wd_mult", "init", "clear_init", "part")
    OPERATION_FIELD_NUMBER: _ClassVar[int]
    NAMES_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    GRAD_REQ_FIELD_NUMBER: _ClassVar[int]
    LR_MULT_FIELD_NUMBER: _ClassVar[int]
    WD_MULT_FIELD_NUMBER: _ClassVar[int]
    INIT_FIELD_NUMBER: _ClassVar[int]
    CLEAR_INIT_FIELD_NUMBER: _ClassVar[int]
    PART_FIELD_NUMBER: _ClassVar[int]
    operation: _parameter_pb2.Operation
    names: _containers.RepeatedScalarFieldContainer[str]
    shape: _tensor_pb2.Shape
    grad_req: _parameter_pb2.GradReq
    lr_mult: float
    wd_mult: float
    init: _parameter_pb2.Initializer
    clear_init: bool
    part: _tensor_pb2.Part
    def __init__(self, operation: _Optional[_Union[_parameter_pb2.Operation, _Mapping]] = ..., names: _Optional[_Iterable[str]] = ..., shape: _Optional[_Union[_tensor_pb2.Shape, _Mapping]] = ..., grad_req: _Optional[_Union[_parameter_pb2.GradReq, str]] = ..., lr_mult: _Optional[float] = ..., wd_mult: _Optional[float] = ..., init: _Optional[_Union[_parameter_pb2.Initializer, _Mapping]] = ..., clear_init: bool = ..., part: _Optional[_Union[_tensor_pb2.Part, _Mapping]] = ...) -> None: ...

class SetAttributesResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class PullRowSparseRequest(_message.Message):
    __slots__ = ("open", "ids")
    OPEN_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    open: PullRowSparseOpen
    ids: bytes
    def __init__(self, open: _Optional[_Union[PullRowSparseOpen, _Mapping]] = ..., ids: _Optional[bytes] = ...) -> None: ...

class PullRowSparseOpen(_message.Message):
    __slots__ = ("name", "context", "current_context")
    NAME_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    CURRENT_CONTEXT_FIELD_NUMBER: _ClassVar[int]
    name: str
    context: _tensor_pb2.Context
    current_context: _tensor_pb2.Context
    def __init__(self, name: _Optional[str] = ..., context: _Optional[_Union[_tensor_pb2.Context, _Mapping]] = ..., current_context: _Optional[_Union[_tensor_pb2.Context, _Mapping]] = ...) -> None: ...

class PullRowSparseResponse(_message.Message):
    __slots__ = ("header", "data")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    header: _tensor_pb2.TensorHeader
    data: bytes
    def __init__(self, header: _Optional[_Union[_tensor_pb2.TensorHeader, _Mapping]] = ..., data: _Optional[bytes] = ...) -> None: ...

class SaveRequest(_message.Message):
    __slots__ = ("names", "path", "strip_prefix")
    NAMES_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    STRIP_PREFIX_FIELD_NUMBER: _ClassVar[int]
    names: _containers.RepeatedScalarFieldContainer[str]
    path: str
    strip_prefix: str
    def __init__(self, names: _Optional[_Iterable[str]] = ..., path: _Optional[str] = ..., strip_prefix: _Optional[str] = ...) -> None: ...

class SaveResponse(_message.Message):
    __slots__ = ("header", "data", "manifest", "summary")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    header: _tensor_pb2.TensorHeader
    data: bytes
    manifest: SaveManifest
    summary: SaveSummary
    def __init__(self, header: _Optional[_Union[_tensor_pb2.TensorHeader, _Mapping]] = ..., data: _Optional[bytes] = ..., manifest: _Optional[_Union[SaveManifest, _Mapping]] = ..., summary: _Optional[_Union[SaveSummary, _Mapping]] = ...) -> None: ...

class SaveManifest(_message.Message):
    __slots__ = ("headers", "last")
    HEADERS_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    headers: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.TensorHeader]
    last: bool
    def __init__(self, headers: _Optional[_Iterable[_Union[_tensor_pb2.TensorHeader, _Mapping]]] = ..., last: bool = ...) -> None: ...

class SaveSummary(_message.Message):
    __slots__ = ("num_tensors", "size_bytes")
    NUM_TENSORS_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    num_tensors: int
    size_bytes: int
    def __init__(self, num_tensors: _Optional[int] = ..., size_bytes: _Optional[int] = ...) -> None: ...

class LoadRequest(_message.Message):
    __slots__ = ("header", "data", "open", "end", "pack", "heads")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    OPEN_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    PACK_FIELD_NUMBER: _ClassVar[int]
    HEADS_FIELD_NUMBER: _ClassVar[int]
    header: _tensor_pb2.TensorHeader
    data: bytes
    open: LoadOpen
    end: _tensor_pb2.StreamEnd
    pack: _tensor_pb2.TensorPack
    heads: _tensor_pb2.TensorHeads
    def __init__(self, header: _Optional[_Union[_tensor_pb2.TensorHeader, _Mapping]] = ..., data: _Optional[bytes] = ..., open: _Optional[_Union[LoadOpen, _Mapping]] = ..., end: _Optional[_Union[_tensor_pb2.StreamEnd, _Mapping]] = ..., pack: _Optional[_Union[_tensor_pb2.TensorPack, _Mapping]] = ..., heads: _Optional[_Union[_tensor_pb2.TensorHeads, _Mapping]] = ...) -> None: ...

class LoadOpen(_message.Message):
    __slots__ = ("operation", "names", "contexts", "allow_missing", "ignore_extra", "restore_prefix", "cast_dtype", "dtype_source", "source", "path", "file_names")
    OPERATION_FIELD_NUMBER: _ClassVar[int]
    NAMES_FIELD_NUMBER: _ClassVar[int]
    CONTEXTS_FIELD_NUMBER: _ClassVar[int]
    ALLOW_MISSING_FIELD_NUMBER: _ClassVar[int]
    IGNORE_EXTRA_FIELD_NUMBER: _ClassVar[int]
    RESTORE_PREFIX_FIELD_NUMBER: _ClassVar[int]
    CAST_DTYPE_FIELD_NUMBER: _ClassVar[int]
    DTYPE_SOURCE_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    FILE_NAMES_FIELD_NUMBER: _ClassVar[int]
    operation: _parameter_pb2.Operation
    names: _containers.RepeatedScalarFieldContainer[str]
    contexts: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.Context]
    allow_missing: bool
    ignore_extra: bool
    restore_prefix: str
    cast_dtype: bool
    dtype_source: DTypeSource
    source: str
    path: str
    file_names: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, operation: _Optional[_Union[_parameter_pb2.Operation, _Mapping]] = ..., names: _Optional[_Iterable[str]] = ..., contexts: _Optional[_Iterable[_Union[_tensor_pb2.Context, _Mapping]]] = ..., allow_missing: bool = ..., ignore_extra: bool = ..., restore_prefix: _Optional[str] = ..., cast_dtype: bool = ..., dtype_source: _Optional[_Union[DTypeSource, str]] = ..., source: _Optional[str] = ..., path: _Optional[str] = ..., file_names: _Optional[_Iterable[str]] = ...) -> None: ...

class LoadResponse(_message.Message):
    __slots__ = ("loaded",)
    LOADED_FIELD_NUMBER: _ClassVar[int]
    loaded: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, loaded: _Optional[_Iterable[str]] = ...) -> None: ...
