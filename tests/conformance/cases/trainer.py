"""Cases for the section on Trainer: what it is made of, and what is refused."""

from __future__ import annotations

from typing import Any

from tests.conformance.cases.case import Case
from tests.conformance.program import New, Program, Ref, cpu, dense, file

__all__ = ["CASES"]

_ALL = slice(None)
_ONE = [cpu(0)]
_TWO = [cpu(0), cpu(1)]
_STEPS = 3


def params_are_a_list_or_a_dict(p: Program) -> None:
    w, v = _weight(p, "w"), _weight(p, "v")
    for wrong in (w, "abc", 5, None, [1], [w, "v"], {"w": 3}, (w, None)):
        with p.loosely("class"):
            p.make("Trainer", wrong, "sgd")
    for right in ([w, v], (w, v), {"b": w, "a": v}):
        trainer = p.make("Trainer", right, "sgd", {"learning_rate": 0.5})
        p.get(trainer, "learning_rate")
        p.call(trainer, "step", 1, True)


def optimizers_by_name(p: Program) -> None:
    for index, name in enumerate(("sgd", "SGD", "Adam", "adagrad", "nag", "signum", "ftrl")):
        trainer = p.make("Trainer", [_weight(p, f"w{index}")], name)
        p.get(trainer, "optimizer")
        p.get(trainer, "learning_rate")
    w = _weight(p, "w")
    for wrong in ("bogus", "", "sgdd"):
        p.make("Trainer", [w], wrong)
    p.make("Trainer", [w], "sgd", {"bogus": 1})
    p.make("Trainer", [w], "adam", {"momentum": 0.9})
    p.make("Trainer", [w], optimizer="sgd", optimizer_params=None)


def optimizers_as_instances(p: Program) -> None:
    w = _weight(p, "w")
    made = p.make("optimizer.SGD", learning_rate=0.25, momentum=0.5, wd=0.5)
    p.make("Trainer", [w], made, {"momentum": 0.5})
    trainer = p.make("Trainer", [w], made, {})
    p.get(trainer, "learning_rate")
    optimizer = p.get(trainer, "optimizer")
    for name in ("learning_rate", "momentum", "wd", "clip_gradient", "rescale_grad"):
        p.get(optimizer, name)
    _gradients(p, w, _ONE)
    p.call(trainer, "step", 2)
    p.state(w)
    p.get(trainer, "optimizer")


def uninitialized_parameters(p: Program) -> None:
    u = p.make("Parameter", "u", shape=(3, 2))
    p.make("Trainer", [u], "sgd")
    p.make("Trainer", [_weight(p, "w"), u], "sgd")
    p.make("Trainer", {"u": u}, "sgd")


def deferred_parameters(p: Program) -> None:
    d = p.make("Parameter", "d", shape=(0, 2), allow_deferred_init=True)
    p.call(d, "initialize", init="ones")
    trainer = p.make("Trainer", [d], "sgd", {"learning_rate": 0.5})
    p.get(trainer, "learning_rate")
    p.call(trainer, "step", 1)
    p.call(trainer, "step", 1, ignore_stale_grad=True)
    p.set(d, "shape", (3, 2))
    p.call(d, "data")
    _gradients(p, d, _ONE)
    p.call(trainer, "step", 1)
    p.state(d)


def same_contexts(p: Program) -> None:
    w, v = _weight(p, "w", ctx=_TWO), _weight(p, "v", ctx=[cpu(0)])
    o = _weight(p, "o", ctx=[cpu(1), cpu(0)])
    p.make("Trainer", [w, v], "sgd")
    p.make("Trainer", {"a": v, "b": w}, "sgd")
    p.make("Trainer", [w, o], "sgd")


def wrong_batch_sizes(p: Program) -> None:
    w = _weight(p, "w")
    trainer = p.make("Trainer", [w], "sgd", {"learning_rate": 0.5})
    _gradients(p, w, _ONE)
    for wrong in ("a", None, [1]):
        p.call(trainer, "step", wrong)
    p.call(trainer, "step")
    p.state(w)
    for size in (1, 0.5, 4, 2.5):
        _gradients(p, w, _ONE)
        p.call(trainer, "step", size)
        p.state(w)


def learning_rates(p: Program) -> None:
    w = _weight(p, "w")
    trainer = p.make("Trainer", [w], "sgd", {"learning_rate": 0.5})
    for rate in (0.25, 1, 0.0, 0.125):
        p.call(trainer, "set_learning_rate", rate)
        p.get(trainer, "learning_rate")
        _gradients(p, w, _ONE)
        p.call(trainer, "step", 2)
        p.state(w)
    p.set(trainer, "learning_rate", 3.0)
    p.set(trainer, "optimizer", 3.0)


def learning_rates_of_schedules(p: Program) -> None:
    schedules = (
        New("lr_scheduler.FactorScheduler", (2, 0.5)),
        New("lr_scheduler.MultiFactorScheduler", ([2, 5], 0.5)),
        New("lr_scheduler.PolyScheduler", (6,)),
        New("lr_scheduler.CosineScheduler", (6,), (("warmup_steps", 2),)),
    )
    for index, schedule in enumerate(schedules):
        w = _weight(p, f"w{index}")
        trainer = p.make("Trainer", [w], "sgd", {"lr_scheduler": schedule, "momentum": 0.5})
        with p.loosely("close"):
            for _ in range(7):
                p.get(trainer, "learning_rate")
                _gradients(p, w, _ONE)
                p.call(trainer, "step", 2)
                p.state(w)
        p.call(trainer, "set_learning_rate", 0.5)
        with p.loosely("close"):
            p.get(trainer, "learning_rate")


def states_go_on(p: Program) -> None:
    for name, arguments in (("sgd", {"momentum": 0.5}), ("adam", {}), ("adagrad", {})):
        for index, contexts in enumerate((_ONE, _TWO)):
            w = _weight(p, f"{name}{index}", contexts)
            trainer = p.make("Trainer", [w], name, {"learning_rate": 0.5, "wd": 0.25, **arguments})
            p.call(trainer, "save_states", file("empty.states"))
            with p.loosely("close"):
                _several_steps(p, w, trainer, contexts)
                p.call(trainer, "save_states", file("trainer.states"))
                p.call(trainer, "set_learning_rate", 0.25)
                _several_steps(p, w, trainer, contexts)
                p.call(trainer, "load_states", file("trainer.states"))
                p.get(trainer, "learning_rate")
                p.set(w, "lr_mult", 0.5)
                p.set(w, "wd_mult", 2.0)
                _several_steps(p, w, trainer, contexts)
                p.call(trainer, "load_states", file("empty.states"))
                _several_steps(p, w, trainer, contexts)


def states_of_nothing(p: Program) -> None:
    w = _weight(p, "w")
    trainer = p.make("Trainer", [w], "sgd", {"momentum": 0.5})
    with p.loosely("class"):
        p.call(trainer, "load_states", file("missing.states"))
    _gradients(p, w, _ONE)
    p.call(trainer, "step", 1)
    p.state(w)


def multipliers_at_once(p: Program) -> None:
    w = _weight(p, "w", lr_mult=0.5, wd_mult=2.0)
    v = _weight(p, "v", wd_mult=0.0)
    trainer = p.make("Trainer", [w, v], "sgd", {"learning_rate": 0.5, "wd": 0.25})
    for name, value in (("lr_mult", 2.0), ("wd_mult", 0.5), ("lr_mult", 0.0), ("wd_mult", 0.0)):
        _gradients(p, w, _ONE)
        _gradients(p, v, _ONE)
        p.call(trainer, "step", 1)
        p.state(w, v)
        p.set(w, name, value)
    _gradients(p, w, _ONE)
    _gradients(p, v, _ONE)
    p.call(trainer, "step", 1)
    p.state(w, v)


def split_steps_on_the_key_value_store(p: Program) -> None:
    for index, asked in enumerate((None, True)):
        w = _weight(p, f"w{index}", _TWO)
        trainer = _trainer(p, w, update_on_kvstore=asked)
        _gradients(p, w, _TWO)
        p.call(trainer, "allreduce_grads")
        p.call(trainer, "update", 1)
        p.state(w)
        p.call(trainer, "step", 2)
        p.state(w)
    s = _weight(p, "s", stype="row_sparse", grad_stype="row_sparse")
    trainer = _trainer(p, s, kvstore="local")
    p.call(trainer, "allreduce_grads")
    p.call(trainer, "update", 1)


def stores_and_places(p: Program) -> None:
    """What is allowed of: store, update_on_kvstore, contexts, dense or row_sparse gradients."""
    for kvstore in ("local", "device", None):
        for asked in (None, True, False):
            for contexts in (_ONE, _TWO):
                for stype in ("default", "row_sparse"):
                    if asked and (kvstore is None or (len(contexts) == 1 and stype == "default")):
                        continue  # 'update_on_kvstore without a key-value store'
                    name = f"w_{kvstore}_{asked}_{len(contexts)}_{stype}"
                    w = _weight(p, name, contexts, grad_stype=stype)
                    trainer = _trainer(p, w, kvstore=kvstore, update_on_kvstore=asked)
                    with p.loosely("close"):
                        _several_steps(p, w, trainer, contexts)


def stores_of_row_sparse_parameters(p: Program) -> None:
    for kvstore in ("local", "device"):
        for asked in (None, True):
            for contexts in (_ONE, _TWO):
                w = _weight(
                    p, f"w_{kvstore}_{asked}_{len(contexts)}", contexts,
                    stype="row_sparse", grad_stype="row_sparse",
                )  # fmt: skip
                trainer = _trainer(p, w, kvstore=kvstore, update_on_kvstore=asked)
                with p.loosely("close"):
                    _several_steps(p, w, trainer, contexts)


def null_and_constant_are_passed_over(p: Program) -> None:
    params = p.make("ParameterDict", "n_")
    w = p.call(params, "get", "w", shape=(3, 2), init="ones")
    n = p.call(params, "get", "a", shape=(3, 2), init="ones", grad_req="null")
    c = p.call(params, "get_constant", "c", dense([[1, 2]]))
    p.call(params, "initialize")
    trainer = p.make("Trainer", params, "sgd", {"learning_rate": 0.5, "momentum": 0.5, "wd": 0.5})
    for _ in range(2):
        _gradients(p, w, _ONE)
        p.call(trainer, "step", 2)
        p.state(w, n, c)
    m = _weight(p, "m", grad_req="null")
    nothing = p.make("Trainer", [m], "adam")
    p.call(nothing, "step", 1)
    p.state(m)


def members(p: Program) -> None:
    trainer = p.make("Trainer", [_weight(p, "w")], "sgd", {"learning_rate": 0.5}, "local", None)
    p.apply("type", trainer)
    for name in ("learning_rate", "optimizer"):
        p.get(trainer, name)


def _weight(p: Program, name: str, ctx: Any = None, **kwargs: Any) -> Ref:
    w = p.make("Parameter", name, shape=(3, 2), **kwargs)
    p.call(w, "initialize", init="ones", ctx=ctx or _ONE)
    return w


def _trainer(p: Program, w: Ref, **kwargs: Any) -> Ref:
    arguments = {"learning_rate": 0.5, "momentum": 0.5, "wd": 0.25}
    return p.make("Trainer", [w], "sgd", arguments, **kwargs)


def _gradients(p: Program, w: Ref, contexts: Any, start: int = 1) -> None:
    for place, context in enumerate(contexts):
        values = [[start + place, 2], [0, -1], [4, start * place]]
        p.put(p.call(w, "grad", context), _ALL, dense(values))
    p.make("backward_wrote", w)


def _several_steps(p: Program, w: Ref, trainer: Ref, contexts: Any) -> None:
    for step in range(_STEPS):
        _gradients(p, w, contexts, step)
        p.call(trainer, "step", 4)
        p.state(w)


CASES = (
    Case(params_are_a_list_or_a_dict, ("trainer.1h",)),
    Case(optimizers_by_name, ("trainer.1d", "trainer.1q")),
    Case(optimizers_as_instances, ("trainer.1d", "trainer.1h")),
    Case(uninitialized_parameters, ("trainer.1h",)),
    Case(deferred_parameters, ("trainer.1a",)),
    Case(same_contexts, ("trainer.1g",)),
    Case(wrong_batch_sizes, ("trainer.1a", "trainer.1h")),
    Case(learning_rates, ("trainer.1c",)),
    Case(learning_rates_of_schedules, ("trainer.1c",)),
    Case(states_go_on, ("trainer.1e", "trainer.1j")),
    Case(states_of_nothing, ("trainer.1e",)),
    Case(multipliers_at_once, ("trainer.1j",)),
    Case(split_steps_on_the_key_value_store, ("trainer.1b", "trainer.1h")),
    Case(stores_and_places, ("trainer.1m", "trainer.1n", "trainer.1a")),
    Case(stores_of_row_sparse_parameters, ("trainer.1m", "trainer.1n")),
    Case(null_and_constant_are_passed_over, ("trainer.1a",)),
    Case(members, ("trainer.1d",)),
)
