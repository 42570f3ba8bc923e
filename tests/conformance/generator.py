"""Random programs over the whole surface, for hypothesis.

A small model of each parameter makes most steps succeed; some fail on purpose. What is on the list
of differences is left out here, and the comment beside each omission names its entry.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from tests.conformance.model import EXACT_MEANS, Draw, Model, Writer
from tests.conformance.program import (
    Program,
    Ref,
    cpu,
    dense,
    dtype,
    file,
    gpu,
    init,
    numpy,
    row_sparse,
)

__all__ = ["programs"]

_ALL = slice(None)
_FLOATS = ("float32", "float64", "float16")
_DTYPES = (*_FLOATS, "uint8", "int32", "int8", "int64", "bool")
_DETERMINISTIC = ("zeros", "ones", init("Constant", 3), init("One"), init("Zero"))


@st.composite
def programs(draw: Draw, max_steps: int = 18) -> Program:
    """Programs with one to three parameters in a dictionary, and up to `max_steps` actions."""
    w = Writer(draw)
    w.params = w.program.make("ParameterDict", "p_")
    count = w.number(1, 3)
    for index in range(count):
        _make(w, f"x{index}", is_constant=index == 1)
    if w.number(0, 3) > 0:
        for model in w.models:
            _initialize(w, model)
    # A permutation spreads better than independent choices, which hypothesis likes to repeat.
    for action in draw(st.permutations(_ACTIONS))[: w.number(3, max_steps)]:
        for model in w.models if w.maybe() else [w.model()]:
            action(w, model)
    w.program.state(*(model.ref for model in w.models))
    return w.program


def _make(w: Writer, name: str, *, is_constant: bool) -> None:
    assert w.params is not None
    if is_constant:
        shape = tuple(w.number(1, 3) for _ in range(w.number(1, 2)))
        dtype_name = w.one_of("float32", "float64", "int32")
        ref = w.program.call(w.params, "get_constant", name, dense(w.values(shape), dtype_name))
        constant = Model(f"p_{name}", ref, shape, dtype_name, "default", "default", "null", False)
        constant.is_constant = True
        w.models.append(constant)
        return
    stype = w.one_of("default", "default", "default", "row_sparse")
    grad_stype = w.one_of("default", "default", "row_sparse")
    rank = w.number(2 if "row_sparse" in (stype, grad_stype) else 1, 3)
    may_wait = w.maybe()
    shape = tuple(w.number(0 if may_wait and i else 1, 3) for i in range(rank))
    names: tuple[str, ...] = EXACT_MEANS if grad_stype == "row_sparse" else _DTYPES
    if stype == "row_sparse":
        names = ("float32",)  # 'rows of other dtypes'
    model = Model(
        f"p_{name}", Ref(""), shape, w.one_of(*names), stype, grad_stype,
        w.one_of("write", "write", "add", "null"), may_wait, state="new",
    )  # fmt: skip
    model.is_differentiable = w.number(0, 7) > 0
    options: dict[str, Any] = {
        "shape": shape,
        "dtype": w.one_of(model.dtype, dtype(model.dtype), dtype(model.dtype, "dtype")),
        "grad_req": model.grad_req,
        "allow_deferred_init": may_wait,
        "stype": stype,
        "grad_stype": grad_stype,
        "differentiable": model.is_differentiable,
        "lr_mult": w.one_of(1.0, 0.5, 2.0),
        "wd_mult": w.one_of(1.0, 0.0),
        "init": w.one_of(None, *_DETERMINISTIC),
    }
    if not model.is_differentiable:
        model.grad_req = "null"
    model.ref = w.program.call(w.params, "get", name, **options)
    w.models.append(model)


def _initialize(w: Writer, m: Model) -> None:
    ids = w.contexts()
    force = w.maybe()
    w.program.call(
        m.ref,
        "initialize",
        init=None if m.is_constant else w.one_of(*_DETERMINISTIC),
        ctx=[cpu(i) for i in ids],
        default_init="ones",
        force_reinit=force,
    )
    if m.state == "new" and not m.is_known and not m.may_wait:
        return
    if m.state != "done" or force:
        m.contexts, m.differs = ids, False
        m.state = "waiting"


def _initialize_randomly(w: Writer, m: Model) -> None:
    """Draws random values and overwrites them, so that what follows can be compared exactly."""
    if m.dtype not in _FLOATS or not m.is_known or m.is_constant:
        return
    ids = w.contexts()
    random = w.one_of(init("Uniform", 1), init("Normal", 2), "uniform", None)
    w.program.call(m.ref, "initialize", init=random, ctx=[cpu(i) for i in ids], force_reinit=True)
    m.contexts, m.state, m.differs = ids, "done", False
    w.program.call(m.ref, "set_data", dense(w.values(m.shape), m.dtype))


def _set_data(w: Writer, m: Model) -> None:
    if m.state == "new" and not m.is_known:
        return  # 'shape of a refused set_data'
    shape = tuple(size or w.number(1, 3) for size in m.shape)
    wrong = w.number(0, 5) == 0
    if wrong:
        shape = w.one_of((*shape, 2), (*shape[:-1], shape[-1] + 1))
        if len(shape) == len(m.shape) and not m.is_known:
            return
    # 'set_data of a deferred parameter casts', 'set_data of a row_sparse parameter casts'
    same = m.state != "done" or m.stype != "default"
    source = m.dtype if same else w.one_of(*_DTYPES)
    kinds = [dense] if same else [dense, numpy]  # 'NumPy value for a deferred parameter'
    value = w.one_of(*kinds)(w.values(shape), source)
    # A deferred one would keep a dense value: 'set_data of a deferred parameter casts'.
    if m.stype == "row_sparse" and not wrong and (m.state != "done" or w.maybe()):
        value = _rows(w, m, shape)
    w.program.call(m.ref, "set_data", value)
    if m.state != "new" and not wrong:
        m.shape, m.differs, m.state = shape, False, "done"
        member = "list_data" if m.stype == "default" else "list_row_sparse_data"
        args = [] if m.stype == "default" else [dense([0], "int64")]
        w.program.call(m.ref, member, *args)


def _rows(w: Writer, m: Model, shape: tuple[int, ...]) -> Any:
    ids = sorted(w.draw(st.sets(st.integers(0, shape[0] - 1), min_size=1)))
    return row_sparse(w.values((len(ids), *shape[1:])), ids, shape, m.dtype)


def _read(w: Writer, m: Model) -> None:
    member = w.one_of("list_ctx", "list_data", "list_grad", "var", "data", "grad")
    if member == "var" and m.is_constant:
        return  # 'var() of a Constant'
    context = w.one_of(None, cpu(0), cpu(1), cpu(2), gpu(1))
    args = [context] if member in ("data", "grad") and context is not None else []
    if w.maybe():
        with w.program.within(cpu(w.number(0, 2))):
            w.program.call(m.ref, member, *args)
    else:
        w.program.call(m.ref, member, *args)
    _finish(m, member)


def _finish(m: Model, member: str) -> None:
    if m.is_ready and member not in ("list_ctx", "var", "zero_grad"):
        m.state = "done"


def _read_rows(w: Writer, m: Model) -> None:
    member = w.one_of("row_sparse_data", "list_row_sparse_data")
    ids = w.draw(st.lists(st.integers(0, max(m.shape[0], 1) - 1), max_size=5))
    name = w.one_of("int64", "int32", "float32", "uint8")
    w.program.call(m.ref, member, dense(ids, name, cpu(w.number(0, 2))))
    if m.stype == "row_sparse":
        _finish(m, member)


def _read_attribute(w: Writer, m: Model) -> None:
    for name in ("shape", "dtype", "grad_req", "lr_mult", "wd_mult", "name"):
        w.program.get(m.ref, name)


def _represent(w: Writer, m: Model) -> None:
    w.program.apply(w.one_of("repr", "str"), m.ref)


def _write_data(w: Writer, m: Model) -> None:
    if m.stype != "default" or not m.is_ready or not m.contexts:
        return
    handle = w.program.call(m.ref, "data", cpu(w.one_of(*m.contexts)))
    m.state, m.differs = "done", True
    _write(w, m, handle)


def _write_grad(w: Writer, m: Model) -> None:
    if not m.is_ready or m.grad_req == "null":
        return
    handle = w.program.call(m.ref, "grad", cpu(w.one_of(*m.contexts)))
    m.state = "done"
    w.program.call(m.ref, "list_grad")
    if m.grad_stype == "default":
        _write(w, m, handle)
        return
    value = w.one_of(_rows(w, m, m.shape), 2)
    if m.dtype == "float32" and w.maybe():  # MXNet makes rows of other dense values as float32.
        value = dense(w.values(m.shape), m.dtype)
    w.program.put(handle, _ALL, value)


def _write(w: Writer, m: Model, handle: Ref) -> None:
    kind = w.number(0, 5)
    if m.dtype == "bool":
        kind = min(kind, 1)  # 'parts of booleans'
    if kind == 0:
        w.program.put(handle, _ALL, w.number(0, 9))
    elif kind == 1:
        source = w.one_of(*_DTYPES)
        w.program.put(handle, _ALL, w.one_of(dense, numpy)(w.values(m.shape), source))
    elif kind == 2:
        row = w.number(-m.shape[0], m.shape[0] - 1)
        w.program.put(handle, row, w.one_of(w.number(0, 9), numpy(w.values(m.shape[1:] or (1,)))))
    elif kind == 3:
        part = w.program.item(handle, w.number(0, m.shape[0] - 1))
        w.program.put(part, _ALL, w.number(0, 9))
    elif kind == 4:
        start = w.number(0, m.shape[0] - 1)
        w.program.put(handle, slice(start, None), w.number(0, 9))
    elif m.dtype not in ("uint8", "int8"):
        w.program.apply(w.one_of("+=", "-=", "*="), handle, w.number(1, 3))


def _hold(w: Writer, m: Model) -> None:
    """Holds handles over changes that both libraries make in place."""
    if m.stype != "default" or not m.is_ready:
        return
    context = cpu(w.one_of(*m.contexts))
    value = w.program.call(m.ref, "data", context)
    m.state, m.differs = "done", False
    w.program.call(m.ref, "set_data", dense(w.values(m.shape), m.dtype))
    w.program.call(value, "asnumpy")
    if m.grad_req != "null" and m.grad_stype == "default":
        gradient = w.program.call(m.ref, "grad", context)
        w.program.put(gradient, _ALL, w.number(1, 5))
        w.program.call(m.ref, "zero_grad")
        w.program.call(gradient, "asnumpy")


def _set_grad_req(w: Writer, m: Model) -> None:
    value = w.one_of("write", "add", "null", "bogus")
    w.program.set(m.ref, "grad_req", value)
    if value != "bogus" and not m.is_constant and m.is_differentiable:
        m.grad_req = value


def _set_number(w: Writer, m: Model) -> None:
    w.program.set(m.ref, w.one_of("lr_mult", "wd_mult"), w.one_of(0.0, 0.5, 3.0))


def _set_init(w: Writer, m: Model) -> None:
    if not m.is_constant:
        w.program.set(m.ref, "init", w.one_of("zeros", "ones"))


def _set_shape(w: Writer, m: Model) -> None:
    shape = tuple(size or w.number(0, 3) for size in m.shape)
    if w.number(0, 3) == 0:
        shape = w.one_of((*shape, 1), (shape[0] + 1, *shape[1:]))
    w.program.set(m.ref, "shape", shape)
    if len(shape) == len(m.shape) and all(a in (0, b) for a, b in zip(m.shape, shape, strict=True)):
        m.shape = shape


def _cast(w: Writer, m: Model) -> None:
    if m.stype == "row_sparse":
        return  # 'rows of other dtypes'
    name = w.one_of(*(EXACT_MEANS if m.grad_stype == "row_sparse" else _DTYPES))
    spelled = w.one_of(name, dtype(name))
    if w.maybe():
        w.program.call(m.ref, "cast", spelled)
    else:
        w.program.set(m.ref, "dtype", spelled)
    m.dtype = name


def _zero_grad(w: Writer, m: Model) -> None:
    w.program.call(m.ref, "zero_grad")


def _reset_ctx(w: Writer, m: Model) -> None:
    if not m.mean_is_exact:
        return
    ids = w.contexts()
    w.program.call(m.ref, "reset_ctx", [cpu(i) for i in ids])
    if m.state != "new":
        m.contexts, m.differs = ids, False


def _get_again(w: Writer, m: Model) -> None:
    assert w.params is not None
    shape = tuple(w.one_of(size, 0, -1) if size else w.number(0, 3) for size in m.shape)
    options = w.one_of(
        {},
        {"shape": shape},
        {"shape": tuple(size + 1 for size in m.shape)} if m.is_known else {},
        {"shape": (*m.shape, 2)},
        {"dtype": dtype(m.dtype)},
        {"grad_req": m.grad_req},
        {"grad_req": "bogus"},
        {"lr_mult": 77.0},
        {"stype": m.stype},
        {} if m.is_constant else {"init": "xavier"},
    )
    w.program.call(w.params, "get", m.name[2:], **options)
    if options.get("shape") == shape:
        m.shape = tuple(a if a else max(b, 0) for a, b in zip(m.shape, shape, strict=True))


def _get_constant_again(w: Writer, m: Model) -> None:
    assert w.params is not None
    value = w.one_of(None, numpy(w.values(m.shape))) if m.is_known else None
    w.program.call(w.params, "get_constant", m.name[2:], value)


def _load(w: Writer, m: Model) -> None:
    assert w.params is not None
    shape = tuple(size or w.number(1, 3) for size in m.shape)
    saved = w.one_of(m.dtype, m.dtype, "float32", "float64")
    cast = w.maybe()
    source = w.one_of("current", "saved")
    ids = w.one_of(None, m.contexts or (0, 1), w.contexts())
    options: dict[str, Any] = {"allow_missing": len(w.models) > 1 or w.maybe()}
    if w.maybe():
        options["ctx"] = None if ids is None else [cpu(i) for i in ids]
    if cast:
        options.update(cast_dtype=True, dtype_source=source)
    if m.stype == "row_sparse" and source == "saved":
        return  # 'rows of other dtypes'
    prefix = w.one_of("", "arg:", "aux:")
    name, extra = m.name, {}
    if not prefix and w.maybe():
        options["restore_prefix"], name = "p_", m.name[2:]
    if w.number(0, 4) == 0:
        options["ignore_extra"] = True
        extra = {"zz": dense([1])}
    elsewhere = m.state != "new" and options.get("ctx") and set(ids or ()) != set(m.contexts)
    fails = elsewhere or (saved != m.dtype and not cast)
    if fails and (not m.is_known or (saved != m.dtype and cast)):
        return  # 'load that fails on a deferred parameter'
    stored = dense(w.values(shape), saved)
    if m.stype == "row_sparse" and saved == m.dtype and w.maybe():
        stored = _rows(w, m, shape)
    value = {f"{prefix}{name}": stored, **extra}
    if w.maybe():
        w.program.make("nd.save", file("values.params"), value)
        w.program.call(w.params, "load", file("values.params"), **options)
    else:
        w.program.call(w.params, "load_dict", value, **options)
    given = options.get("ctx") and ids
    if fails:
        return
    if m.state == "new":
        m.contexts = tuple(given or (0,))
    m.shape, m.state, m.differs = shape, "done", False
    if cast and source == "saved":
        m.dtype = saved


def _save(w: Writer, m: Model) -> None:
    assert w.params is not None
    if not all(model.mean_is_exact for model in w.models):
        return
    if any(model.stype == "row_sparse" and not model.is_ready for model in w.models):
        return  # MXNet fails in its engine.
    w.program.call(w.params, "save", file("random.params"), strip_prefix=w.one_of("", "p_", "q_"))
    for model in w.models:
        _finish(model, "save")
    if all(model.is_ready for model in w.models):
        w.program.call(w.params, "save", file("again.params"))
        if all(model.stype == "default" for model in w.models):  # 'rows in saved files'
            w.program.make("nd.load", file("again.params"))
        w.program.call(w.params, "load", file("again.params"))
        for model in w.models:
            model.differs = False


def _bulk(w: Writer, m: Model) -> None:
    assert w.params is not None
    kind = w.one_of("initialize", "zero_grad", "list_ctx", "reset_ctx", "setattr", "read")
    models = w.models
    if kind == "zero_grad" and any(model.dtype not in _FLOATS for model in models):
        return  # 'zero_grad of a dictionary with integer gradients'
    if kind == "zero_grad":
        w.program.call(w.params, "zero_grad")
    elif kind == "list_ctx":
        if all(model.state != "new" for model in models):
            with w.program.loosely("unordered"):
                w.program.call(w.params, "list_ctx")
    elif kind == "setattr":
        w.program.call(w.params, "setattr", w.one_of("lr_mult", "wd_mult"), w.one_of(0.25, 4.0))
        value = w.one_of("write", "add", "null")
        w.program.call(w.params, "setattr", "grad_req", value)
        for model in models:
            if not model.is_constant and model.is_differentiable:
                model.grad_req = value
    elif kind == "reset_ctx":
        if all(model.state != "new" and model.mean_is_exact for model in models):
            ids = w.contexts()
            w.program.call(w.params, "reset_ctx", [cpu(i) for i in ids])
            for model in models:
                model.contexts, model.differs = ids, False
    elif kind == "initialize":
        if all(model.is_known or model.may_wait for model in models):
            ids, force = w.contexts(), w.maybe()
            w.program.call(
                w.params, "initialize", init("One"), [cpu(i) for i in ids], force_reinit=force
            )
            for model in models:
                if model.state != "done" or force:
                    model.contexts, model.state, model.differs = ids, "waiting", False
    else:
        for member in ("keys", "items", "values"):
            w.program.apply("list", w.program.call(w.params, member))
        w.program.item(w.params, w.one_of(m.name, m.name[2:]))
        w.program.apply("list", w.params)
        w.program.apply("repr", w.params)
        w.program.get(w.params, "prefix")
        w.program.call(w.program.make("ParameterDict", "p_", shared=w.params), "get", m.name[2:])
        w.program.call(w.program.make("ParameterDict", "q_"), "update", w.params)


_ACTIONS: tuple[Callable[[Writer, Model], None], ...] = (
    _initialize,
    _initialize,
    _initialize_randomly,
    _set_data,
    _set_data,
    _read,
    _read,
    _read_rows,
    _read_rows,
    _read_attribute,
    _represent,
    _write_data,
    _write_data,
    _write_grad,
    _write_grad,
    _hold,
    _set_grad_req,
    _set_number,
    _set_init,
    _set_shape,
    _cast,
    _zero_grad,
    _reset_ctx,
    _get_again,
    _get_constant_again,
    _load,
    _load,
    _save,
    _bulk,
    _bulk,
)
