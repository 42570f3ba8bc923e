"""Random programs about Trainer, for hypothesis.

What is on the list of differences is left out here, and the comment beside each omission names its
entry. Everything after the first step is compared as closely as `compare` says.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from tests.conformance.model import Draw, Model, Writer
from tests.conformance.program import New, Program, Ref, cpu, dense, file, init, row_sparse

__all__ = ["training_programs"]

_ALL = slice(None)
_RATES = (0.5, 0.25, 0.125)
_SCHEDULES = (
    New("lr_scheduler.FactorScheduler", (2, 0.5)),
    New("lr_scheduler.MultiFactorScheduler", ([1, 4], 0.5)),
    New("lr_scheduler.PolyScheduler", (9,)),
    New("lr_scheduler.CosineScheduler", (9,), (("final_lr", 0.01),)),
)


@dataclass
class _Training:
    """What is known about the trainer of a program.

    Attributes:
        w: writes the program.
        trainer: the trainer.
        optimizer: its name.
        contexts: of all its parameters.
        on_store: whether MXNet updates on a key-value store.
        has_store: whether MXNet has one at all.
        stepped: whether there may be states.
        saved: whether states have been saved.
    """

    w: Writer
    trainer: Ref
    optimizer: str
    contexts: tuple[int, ...]
    on_store: bool
    has_store: bool
    stepped: bool = False
    saved: bool = False

    @property
    def trained(self) -> list[Model]:
        return [model for model in self.w.models if model.grad_req != "null"]


@st.composite
def training_programs(draw: Draw, max_steps: int = 16) -> Program:
    """Programs with a trainer of one to three parameters, and up to `max_steps` actions."""
    w = Writer(draw)
    w.params = w.program.make("ParameterDict", "t_")
    contexts = w.one_of((0,), (0,), (1,), (0, 1), (2, 0))
    dtype = w.one_of("float32", "float32", "float32", "float64", "float16")
    sparse = w.number(0, 3) == 0 and dtype != "float16"
    for name in ("b", "c", "a")[: w.number(1, 3)]:
        _make(w, name, contexts, dtype, sparse=sparse)
    training = _start(w, contexts)
    with w.program.loosely("close"):
        for action in draw(st.permutations(_ACTIONS))[: w.number(3, max_steps)]:
            action(training)
        w.program.state(*(model.ref for model in w.models))
    return w.program


def _make(w: Writer, name: str, contexts: tuple[int, ...], dtype: str, *, sparse: bool) -> None:
    assert w.params is not None
    stype = "row_sparse" if sparse and dtype == "float32" and w.maybe() else "default"
    # 'dense gradients of row_sparse parameters'
    grad_stype = "row_sparse" if stype == "row_sparse" else w.one_of("default", "row_sparse")
    if not sparse:
        grad_stype = "default"
    shape = (w.number(2, 4), w.number(1, 3))
    grad_req = w.one_of("write", "write", "write", "add", "null")
    ref = w.program.call(
        w.params, "get", name, shape=shape, dtype=dtype, stype=stype, grad_stype=grad_stype,
        grad_req=grad_req, lr_mult=w.one_of(1.0, 1.0, 0.5), wd_mult=w.one_of(1.0, 1.0, 2.0, 0.0),
    )  # fmt: skip
    model = Model(f"t_{name}", ref, shape, dtype, stype, grad_stype, grad_req, False)
    w.program.call(ref, "initialize", init="ones", ctx=[cpu(i) for i in contexts])
    model.contexts, model.state = contexts, "done"
    w.program.call(ref, "set_data", dense(w.values(shape), dtype))
    w.models.append(model)


def _start(w: Writer, contexts: tuple[int, ...]) -> _Training:
    weights = {model.stype for model in w.models}
    sparse_gradients = any(model.grad_stype != "default" for model in w.models)
    name, arguments = _optimizer(w, sparse_gradients=sparse_gradients)
    # 'schedule after a parameter was passed over'
    if (name == "nag" or (name == "sgd" and len(w.models) == 1)) and w.maybe():
        arguments["lr_scheduler"] = w.one_of(*_SCHEDULES)
        del arguments["learning_rate"]  # 'learning rate beside a schedule'
    kvstore = w.one_of("local", "device", None)
    asked = w.one_of(None, False, True)
    if len(contexts) > 1 or "row_sparse" in weights:
        kvstore = kvstore or "device"  # Without one the copies part: `cases/trainer.py` has that.
    has_store = len(contexts) > 1 or "row_sparse" in weights
    if not has_store:
        asked = None if asked else asked  # 'update_on_kvstore without a key-value store'
    if "row_sparse" in weights and asked is False:
        asked = None
    chosen = asked
    if asked is None:
        chosen = "row_sparse" in weights or not sparse_gradients
    options: dict[str, Any] = {"kvstore": kvstore, "update_on_kvstore": asked}
    # 'compression of float64', 'compression of row_sparse gradients', "... kvstore='local'"
    compressible = not sparse_gradients and all(model.dtype == "float32" for model in w.models)
    if compressible and len(contexts) > 1 and kvstore == "device" and w.maybe():
        options["compression_params"] = {"type": "2bit", "threshold": w.one_of(0.5, 3.0)}
    assert w.params is not None
    parameters = w.one_of(w.params, [model.ref for model in w.models])
    trainer = w.program.make("Trainer", parameters, name, arguments, **options)
    return _Training(w, trainer, name, contexts, bool(has_store and chosen), has_store)


def _optimizer(w: Writer, *, sparse_gradients: bool) -> tuple[str, dict[str, Any]]:
    name = w.one_of("sgd", "sgd", "sgd", "nag", "adam", "adagrad", "ftrl", "signum")
    if sparse_gradients:
        name = w.one_of("sgd", "sgd", "adam")  # 'rows in optimizers without lazy_update'
    if w.models[0].dtype != "float32":
        name = "sgd"  # 'adagrad on float64'; adam's 1 - beta2 has five digits in MXNet
    arguments: dict[str, Any] = {"learning_rate": w.one_of(*_RATES), "wd": w.one_of(0.0, 0.25)}
    if name in ("sgd", "nag", "signum"):
        arguments["momentum"] = w.one_of(0.0, 0.5)
    if name in ("sgd", "adam") and sparse_gradients:
        arguments["lazy_update"] = w.maybe()
    if w.models[0].dtype == "float16":
        arguments["multi_precision"] = True  # 'float16 without multi_precision'
    if w.number(0, 4) == 0:
        arguments["clip_gradient"] = w.one_of(0.5, 2.0)
    if w.number(0, 4) == 0:
        arguments["rescale_grad"] = 0.5
    if name == "adagrad":
        arguments["wd"] = 0.0
    return name, arguments


def _write_gradients(t: _Training, models: list[Model]) -> None:
    w = t.w
    for model in models:
        for context in t.contexts:
            handle = w.program.call(model.ref, "grad", cpu(context))
            w.program.put(handle, _ALL, _gradient(w, model))
        w.program.make("backward_wrote", model.ref)


def _gradient(w: Writer, model: Model) -> Any:
    values = [[float(w.number(-4, 4)) / 2 for _ in range(model.shape[1])] for _ in range(9)]
    if model.grad_stype == "default":
        return dense(values[: model.shape[0]], model.dtype)
    ids = sorted(w.draw(st.sets(st.integers(0, model.shape[0] - 1), min_size=1)))
    return row_sparse(values[: len(ids)], ids, model.shape, model.dtype)


def _read(t: _Training) -> None:
    t.w.program.state(*(model.ref for model in t.w.models))


def _step(t: _Training) -> None:
    for _ in range(t.w.number(1, 3)):
        _write_gradients(t, t.trained)
        ignoring = t.w.one_of((), (True,), (False,))
        t.w.program.call(t.trainer, "step", t.w.one_of(1, 2, 4), *ignoring)
        t.stepped = True
        _read(t)


def _step_without_some(t: _Training) -> None:
    if t.has_store or not t.trained:
        return  # 'stale gradients on a key-value store', 'a stale gradient of one copy'
    some = t.trained[t.w.number(0, 1) :]
    _write_gradients(t, some)
    if len(some) == len(t.trained) or t.w.maybe():
        t.w.program.call(t.trainer, "step", 2, ignore_stale_grad=True)
    else:
        # Those before the first stale one count as used in MXNet: 'a step that failed'.
        t.w.program.call(t.trainer, "step", 2, ignore_stale_grad=True)
        t.w.program.call(t.trainer, "step", 2)
    t.stepped = True
    _read(t)


def _step_in_two(t: _Training) -> None:
    if t.on_store:
        t.w.program.call(t.trainer, "allreduce_grads")
        t.w.program.call(t.trainer, "update", 1)
        return
    _write_gradients(t, t.trained)
    t.w.program.call(t.trainer, "allreduce_grads")
    _read(t)
    for model in t.trained:
        if model.grad_stype == "default" and t.w.maybe():
            handle = t.w.program.call(model.ref, "grad", cpu(t.contexts[0]))
            t.w.program.apply("*=", handle, 0.5)
    t.w.program.call(t.trainer, "update", t.w.one_of(1, 2))
    t.stepped = True
    _read(t)


def _set_rate(t: _Training) -> None:
    t.w.program.call(t.trainer, "set_learning_rate", t.w.one_of(*_RATES, 1))
    t.w.program.get(t.trainer, "learning_rate")


def _get_rate(t: _Training) -> None:
    t.w.program.get(t.trainer, "learning_rate")


def _set_multiplier(t: _Training) -> None:
    assert t.w.params is not None
    name, value = t.w.one_of("lr_mult", "wd_mult"), t.w.one_of(0.0, 0.5, 2.0)
    if t.optimizer == "ftrl" and not value:
        value = 1.5  # 'ftrl with a learning rate of 0'
    if t.w.maybe():
        t.w.program.call(t.w.params, "setattr", name, value)
    else:
        t.w.program.set(t.w.model().ref, name, value)


def _save(t: _Training) -> None:
    t.w.program.call(t.trainer, "save_states", file("random.states"))
    t.saved = True


def _load(t: _Training) -> None:
    if t.saved:
        t.w.program.call(t.trainer, "load_states", file("random.states"))


def _set_data(t: _Training) -> None:
    model = t.w.model()
    if t.stepped and (t.on_store or model.dtype == "float16"):
        return  # 'set_data on a key-value store', 'values written under multi_precision'
    t.w.program.call(model.ref, "set_data", dense(t.w.values(model.shape), model.dtype))


def _load_parameters(t: _Training) -> None:
    assert t.w.params is not None
    if t.stepped and (t.on_store or t.w.models[0].dtype == "float16"):
        return  # 'set_data on a key-value store', 'values written under multi_precision'
    values = {m.name: dense(t.w.values(m.shape), m.dtype) for m in t.w.models}
    t.w.program.call(t.w.params, "load_dict", values)


def _write_data(t: _Training) -> None:
    model = t.w.model()
    if t.on_store or model.stype != "default" or (t.stepped and model.dtype == "float16"):
        return  # 'values written on a key-value store', 'values written under multi_precision'
    value = t.w.number(0, 5)  # 'copies that differ before the first step'
    for context in t.contexts:
        handle = t.w.program.call(model.ref, "data", cpu(context))
        t.w.program.put(handle, _ALL, value)


def _zero_grad(t: _Training) -> None:
    assert t.w.params is not None
    t.w.program.call(t.w.params, "zero_grad")


def _set_grad_req(t: _Training) -> None:
    model = t.w.model()
    value = t.w.one_of("write", "add", "null")
    t.w.program.set(model.ref, "grad_req", value)
    model.grad_req = value


def _cast(t: _Training) -> None:
    if t.stepped or t.optimizer != "sgd" or any(m.grad_stype != "default" for m in t.w.models):
        return  # 'cast after a step', 'adagrad on float64'
    if t.has_store:
        return
    name = t.w.one_of("float32", "float64")
    for model in t.w.models:
        t.w.program.call(model.ref, "cast", name)
        model.dtype = name


def _initialize_again(t: _Training) -> None:
    model = t.w.model()
    if t.has_store or (t.stepped and model.dtype == "float16"):
        return  # 'values written on a key-value store', 'values written under multi_precision'
    value = init("Constant", t.w.number(1, 5))
    contexts = [cpu(i) for i in t.contexts]
    t.w.program.call(model.ref, "initialize", value, contexts, force_reinit=True)


def _fail(t: _Training) -> None:
    with t.w.program.loosely("class"):
        t.w.program.call(t.trainer, "load_states", file("never_written.states"))
        t.w.program.call(t.trainer, "step", "two")
        t.w.program.call(t.trainer, "step")


_ACTIONS: tuple[Callable[[_Training], None], ...] = (
    _step,
    _step,
    _step,
    _step,
    _step,
    _step_without_some,
    _step_without_some,
    _step_in_two,
    _step_in_two,
    _set_rate,
    _set_rate,
    _get_rate,
    _set_multiplier,
    _set_multiplier,
    _save,
    _save,
    _load,
    _load,
    _load,
    _set_data,
    _load_parameters,
    _write_data,
    _zero_grad,
    _set_grad_req,
    _cast,
    _initialize_again,
    _fail,
)
