"""Members and arguments of the other versions of Gluon, and what is unlike MXNet 1.9.1."""

from __future__ import annotations

__all__ = ["OTHER_MEMBERS", "UNLIKE"]

_V2 = "MXNet 2.0"
_V1 = "MXNet 1.0"
_PERL = "AI::MXNet::Gluon"
_V18 = "MXNet 1.8 manual of ParameterDict"

_PARAMETER_V2 = (
    ("cast", ("dtype",)),
    ("data", ("device",)),
    ("grad", ("device",)),
    ("initialize", ("init", "device", "default_init", "force_reinit")),
    ("list_ctx", ()),
    ("list_data", ()),
    ("list_device", ()),
    ("list_grad", ()),
    ("list_row_sparse_data", ("row_id",)),
    ("reset_ctx", ("ctx",)),
    ("reset_device", ("device",)),
    ("row_sparse_data", ("row_id",)),
    ("set_data", ("data",)),
    ("var", ()),
    ("zero_grad", ()),
    ("dtype", ()),
    ("shape", ()),
    ("grad_req", ()),
)
_PARAMETER_V1 = (
    ("initialize", ("init", "ctx", "default_init", "force_reinit")),
    ("reset_ctx", ("ctx",)),
    ("set_data", ("data",)),
    ("data", ("ctx",)),
    ("list_data", ()),
    ("grad", ("ctx",)),
    ("list_grad", ()),
    ("list_ctx", ()),
    ("zero_grad", ()),
    ("var", ()),
)
_DICT_V1 = (
    ("get", ("name",)),
    ("update", ("other",)),
    ("initialize", ("init", "ctx", "verbose", "force_reinit")),
    ("zero_grad", ()),
    ("reset_ctx", ("ctx",)),
    ("setattr", ("name", "value")),
    ("save", ("filename", "strip_prefix")),
    ("load", ("filename", "ctx", "allow_missing", "ignore_extra", "restore_prefix")),
    ("items", ()),
    ("keys", ()),
    ("values", ()),
    ("prefix", ()),
)
_DICT_V18 = (
    ("get_constant", ("name", "value")),
    ("list_ctx", ()),
    (
        "load_dict",
        (
            "param_dict",
            "ctx",
            "allow_missing",
            "ignore_extra",
            "restore_prefix",
            "filename",
            "cast_dtype",
            "dtype_source",
        ),
    ),
    ("load", ("cast_dtype", "dtype_source")),
)

OTHER_MEMBERS: tuple[tuple[str, str, tuple[str, ...], str], ...] = (
    *(("Parameter", member, arguments, _V2) for member, arguments in _PARAMETER_V2),
    *(("Parameter", member, arguments, _V1) for member, arguments in _PARAMETER_V1),
    *(("Parameter", member, arguments, _PERL) for member, arguments in _PARAMETER_V1),
    *(("ParameterDict", member, arguments, _V1) for member, arguments in _DICT_V1),
    *(("ParameterDict", member, arguments, _PERL) for member, arguments in _DICT_V1[:8]),
    *(("ParameterDict", member, arguments, _V18) for member, arguments in _DICT_V18),
    ("Constant", "__init__", ("name", "value"), _V18),
)

# What paramd has differently, or not at all, and why. An entry that is alike again fails.
UNLIKE: dict[str, str] = {
    "Parameter.__init__": "name is 'weight' by default, as in MXNet 2.0",
}
