"""Cases for the section on Trainer: what its steps do to values, gradients and states."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.conformance.cases.case import Case
from tests.conformance.program import Program, Ref, cpu, dense, init, row_sparse

__all__ = ["CASES"]

_ALL = slice(None)
_ONE = [cpu(0)]
_TWO = [cpu(0), cpu(1)]
_SHAPE = (4, 2)
_OPTIMIZERS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("sgd", {"learning_rate": 0.1}),
    ("sgd", {"learning_rate": 0.1, "momentum": 0.9, "wd": 0.01}),
    ("sgd", {"learning_rate": 0.1, "momentum": 0.9, "clip_gradient": 0.3, "rescale_grad": 0.5}),
    ("nag", {"learning_rate": 0.1, "momentum": 0.9, "wd": 0.01}),
    ("adam", {"learning_rate": 0.1, "wd": 0.01}),
    ("adagrad", {"learning_rate": 0.1}),
    ("ftrl", {"learning_rate": 0.1, "lamda1": 0.01}),
)


def several_optimizers(p: Program) -> None:
    for index, (name, arguments) in enumerate(_OPTIMIZERS):
        for contexts in (_ONE, _TWO):
            w = _weight(p, f"w{index}_{len(contexts)}", contexts)
            trainer = p.make("Trainer", [w], name, arguments)
            with p.loosely("close"):
                _steps(p, trainer, [w], contexts, 5)


def several_dtypes(p: Program) -> None:
    for dtype in ("float64", "float16"):
        for mixed in (False, True):
            if dtype == "float16" and not mixed:
                continue  # 'float16 without multi_precision'
            w = _weight(p, f"w_{dtype}_{mixed}", dtype=dtype)
            arguments = {"learning_rate": 0.1, "momentum": 0.9, "multi_precision": mixed}
            trainer = p.make("Trainer", [w], "sgd", arguments)
            with p.loosely("close"):
                _steps(p, trainer, [w], _ONE, 4)


def gradient_buffers_after_a_step(p: Program) -> None:
    for asked in (None, False):
        for grad_req in ("write", "add"):
            w = _weight(p, f"w_{asked}_{grad_req}", _TWO, grad_req=grad_req)
            trainer = _momentum(p, [w], update_on_kvstore=asked)
            with p.loosely("close"):
                _steps(p, trainer, [w], _TWO, 2)
            for context in _TWO:
                p.put(p.call(w, "grad", context), _ALL, 0)
            p.make("backward_wrote", w)
            p.call(trainer, "step", 1)
            with p.loosely("close"):
                p.state(w)


def allreduce_then_update(p: Program) -> None:
    for stype in ("default", "row_sparse"):
        for contexts in (_ONE, _TWO):
            w = _weight(p, f"w_{stype}_{len(contexts)}", contexts, grad_stype=stype)
            trainer = _momentum(p, [w], update_on_kvstore=False)
            for step in range(3):
                _gradients(p, w, contexts, step)
                p.call(trainer, "allreduce_grads")
                with p.loosely("close"):
                    p.state(w)
                if stype == "default":
                    p.apply("*=", p.call(w, "grad", contexts[0]), 0.5)
                with p.loosely("close"):
                    p.call(trainer, "update", 2)
                    p.state(w)
    g = _weight(p, "g")
    trainer = _momentum(p, [g])
    _gradients(p, g, _ONE)
    p.call(trainer, "update", 2)
    p.state(g)
    p.call(trainer, "update", 2)
    p.call(trainer, "update", 2, ignore_stale_grad=True)
    p.state(g)


def keys_of_a_dictionary_in_order(p: Program) -> None:
    params = p.make("ParameterDict", "o_")
    refs = [p.call(params, "get", name, shape=(2,)) for name in ("z", "b", "a")]
    p.call(params, "initialize", init="ones")
    trainer = p.make("Trainer", params, "sgd", {"learning_rate": 0.5})
    # The first stale one in that order is named.
    for ref in refs[1:]:
        p.put(p.call(ref, "grad"), _ALL, 1)
    p.make("backward_wrote", *refs[1:])
    p.call(trainer, "step", 1)
    p.state(*refs)
    others = [_weight(p, name) for name in ("n", "m")]
    p.call(p.make("Trainer", {"x": others[1], "y": others[0]}, "sgd"), "step", 1)
    more = [_weight(p, name) for name in ("a", "b")]
    p.call(p.make("Trainer", [more[1], more[0]], "sgd"), "step", 1)


def stale_gradients(p: Program) -> None:
    w, v = _weight(p, "w"), _weight(p, "v")
    trainer = _momentum(p, [v, w])
    p.call(trainer, "step", 1)
    p.call(trainer, "step", 1, ignore_stale_grad=True)
    p.state(w, v)
    _gradients(p, w, _ONE)
    p.call(trainer, "step", 1)
    p.state(w, v)
    p.call(trainer, "step", 1, True)
    p.state(w, v)
    p.call(trainer, "step", 1, True)
    p.state(w, v)
    _gradients(p, w, _ONE)
    _gradients(p, v, _ONE)
    p.call(trainer, "step", 1)
    p.state(w, v)
    p.call(trainer, "step", 1)


def stale_gradients_of_two_copies(p: Program) -> None:
    w = _weight(p, "w", _TWO)
    trainer = _momentum(p, [w], update_on_kvstore=False)
    p.call(trainer, "step", 1)
    p.call(trainer, "step", 1, True)
    p.state(w)
    _gradients(p, w, _TWO)
    p.call(trainer, "step", 1, True)
    with p.loosely("close"):
        p.state(w)


def freshness_over_changes(p: Program) -> None:
    """Which changes leave a gradient that was written one that counts."""
    w = _weight(p, "w")
    trainer = _momentum(p, [w])
    changes: tuple[Callable[[], Ref], ...] = (
        lambda: p.call(w, "zero_grad"),
        lambda: p.call(w, "set_data", dense([[3, 3], [1, 1], [2, 2], [0, 0]])),
        lambda: p.set(w, "grad_req", "add"),
        lambda: p.set(w, "grad_req", "null"),
        lambda: p.set(w, "grad_req", "write"),
    )
    for change in changes:
        _gradients(p, w, _ONE)
        change()
        p.call(trainer, "step", 2)
        with p.loosely("close"):
            p.state(w)
        p.call(trainer, "step", 2, True)


def steps_after_changes(p: Program) -> None:
    w = _weight(p, "w")
    trainer = _momentum(p, [w])
    with p.loosely("close"):
        _steps(p, trainer, [w], _ONE, 2)
        p.call(w, "set_data", dense([[3, 3], [1, 1], [2, 2], [0, 0]]))
        _steps(p, trainer, [w], _ONE, 2)
        p.put(p.call(w, "data"), _ALL, 4)
        _steps(p, trainer, [w], _ONE, 2)
        p.set(w, "grad_req", "add")
        _steps(p, trainer, [w], _ONE, 2)
        p.set(w, "grad_req", "null")
        p.call(trainer, "step", 1)
        p.set(w, "grad_req", "write")
        _steps(p, trainer, [w], _ONE, 2)
        p.call(w, "initialize", init=init("Constant", 7), ctx=_ONE, force_reinit=True)
        _steps(p, trainer, [w], _ONE, 2)


def changes_before_the_first_step(p: Program) -> None:
    w, v = _weight(p, "w"), _weight(p, "v", _TWO)
    trainers = [_momentum(p, [each]) for each in (w, v)]
    for each in (w, v):
        p.call(each, "cast", "float64")
        p.call(each, "set_data", dense(_values(2)))
        p.set(each, "grad_req", "add")
    with p.loosely("close"):
        _steps(p, trainers[0], [w], _ONE, 2)
        _steps(p, trainers[1], [v], _TWO, 2)


def lazy_updates(p: Program) -> None:
    for stype in ("default", "row_sparse"):
        for name, arguments in (("sgd", {"momentum": 0.5}), ("adam", {}), ("sgd", {})):
            for lazy in (True, False):
                for contexts in (_ONE, _TWO):
                    w = _weight(
                        p, f"w_{stype}_{name}{len(arguments)}_{lazy}_{len(contexts)}", contexts,
                        stype=stype, grad_stype="row_sparse",
                    )  # fmt: skip
                    options = {"learning_rate": 0.5, "wd": 0.25, "lazy_update": lazy, **arguments}
                    trainer = p.make("Trainer", [w], name, options)
                    _rows_steps(p, w, trainer, contexts)


def rows_of_other_optimizers(p: Program) -> None:
    for name in ("adagrad", "ftrl"):
        w = _weight(p, f"w_{name}", stype="row_sparse", grad_stype="row_sparse")
        trainer = p.make("Trainer", [w], name, {"learning_rate": 0.5})
        _rows_steps(p, w, trainer, _ONE)


def gradients_without_rows(p: Program) -> None:
    w = _weight(p, "w", grad_stype="row_sparse")
    trainer = p.make("Trainer", [w], "sgd", {"learning_rate": 0.5, "momentum": 0.5, "wd": 0.5})
    p.put(p.call(w, "grad"), _ALL, row_sparse([[1, 1]], [2], _SHAPE))
    p.make("backward_wrote", w)
    p.call(trainer, "step", 1)
    p.put(p.call(w, "grad"), _ALL, dense([[0, 0]] * 4))
    p.make("backward_wrote", w)
    p.call(trainer, "step", 1)
    p.state(w)


def two_bit_compression(p: Program) -> None:
    for asked in (None, False):
        for threshold in (0.5, 2.0):
            w = _weight(p, f"w_{asked}_{threshold}", _TWO)
            trainer = p.make(
                "Trainer", [w], "sgd", {"learning_rate": 0.5}, kvstore="device",
                compression_params={"type": "2bit", "threshold": threshold},
                update_on_kvstore=asked,
            )  # fmt: skip
            for step in range(6):
                for place, context in enumerate(_TWO):
                    values = [[0.3, -0.3], [0.7, -step], [step * 0.2, 0.0], [place, 0.49]]
                    p.put(p.call(w, "grad", context), _ALL, dense(values))
                p.make("backward_wrote", w)
                p.call(trainer, "step", 1)
                with p.loosely("close"):
                    p.state(w)


def compression_of_one_context(p: Program) -> None:
    w = _weight(p, "w")
    compression = {"type": "2bit", "threshold": 0.5}
    trainer = p.make("Trainer", [w], "sgd", {"learning_rate": 0.5}, "device", compression)
    _steps(p, trainer, [w], _ONE, 2)


def workers_of_a_cluster(p: Program) -> None:
    for name, workers in (("dist_sync", 1), ("dist_device_sync", 1), ("dist_sync", 2)):
        contexts = _TWO[:workers]
        w = _weight(p, f"w_{name}{workers}", contexts)
        s = _weight(p, f"s_{name}{workers}", contexts, grad_stype="row_sparse")
        arguments = {"learning_rate": 0.5, "momentum": 0.5, "wd": 0.25}
        trainer = p.make("ClusterTrainer", [w, s], "sgd", arguments, kvstore=name, workers=workers)
        with p.loosely("close"):
            for step in range(3):
                gradients = [
                    {
                        f"w_{name}{workers}": dense(_values(step, worker)),
                        f"s_{name}{workers}": row_sparse([[step, 1]], [step + worker], _SHAPE),
                    }
                    for worker in range(workers)
                ]
                p.call(trainer, "step", 2, gradients)
                for each in (w, s):
                    p.call(each, "list_data")
        p.call(trainer, "allreduce_grads")
        p.call(trainer, "update", 2)


def _weight(p: Program, name: str, ctx: Any = None, **kwargs: Any) -> Ref:
    w = p.make("Parameter", name, shape=_SHAPE, **kwargs)
    p.call(w, "initialize", init="ones", ctx=ctx or _ONE)
    return w


def _momentum(p: Program, parameters: list[Ref], **kwargs: Any) -> Ref:
    arguments = {"learning_rate": 0.5, "momentum": 0.5, "wd": 0.25}
    return p.make("Trainer", parameters, "sgd", arguments, **kwargs)


def _values(step: int, place: int = 0) -> list[list[float]]:
    return [[step + 1, place], [0, -0.5], [0.25 * place, step], [-3, 0.125]]


def _gradients(p: Program, w: Ref, contexts: Any, step: int = 1) -> None:
    for place, context in enumerate(contexts):
        p.put(p.call(w, "grad", context), _ALL, dense(_values(step, place)))
    p.make("backward_wrote", w)


def _steps(p: Program, trainer: Ref, parameters: list[Ref], contexts: Any, count: int) -> None:
    for step in range(count):
        for w in parameters:
            _gradients(p, w, contexts, step)
        p.call(trainer, "step", 2)
        p.state(*parameters)


def _rows_steps(p: Program, w: Ref, trainer: Ref, contexts: Any) -> None:
    for step in range(4):
        for place, context in enumerate(contexts):
            rows = row_sparse([[step + 1, 2], [1, place]], [0, 1 + (step + place) % 3], _SHAPE)
            p.put(p.call(w, "grad", context), _ALL, rows)
        p.make("backward_wrote", w)
        with p.loosely("close"):
            p.call(trainer, "step", 2)
            p.state(w)


CASES = (
    Case(several_optimizers, ("trainer.1a",)),
    Case(several_dtypes, ("trainer.1a",)),
    Case(gradient_buffers_after_a_step, ("trainer.1a", "trainer.1n")),
    Case(allreduce_then_update, ("trainer.1b",)),
    Case(keys_of_a_dictionary_in_order, ("trainer.1f",)),
    Case(stale_gradients, ("trainer.1o",)),
    Case(stale_gradients_of_two_copies, ("trainer.1o",)),
    Case(freshness_over_changes, ("trainer.1o",)),
    Case(steps_after_changes, ("trainer.1a",)),
    Case(changes_before_the_first_step, ("trainer.1a", "trainer.1g")),
    Case(lazy_updates, ("trainer.1k", "trainer.1l")),
    Case(rows_of_other_optimizers, ("trainer.1k",)),
    Case(gradients_without_rows, ("trainer.1k",)),
    Case(two_bit_compression, ("trainer.1p",)),
    Case(compression_of_one_context, ("trainer.1p",)),
    Case(workers_of_a_cluster, ("trainer.1i", "trainer.1m")),
)
