"""Differences in what the steps of a Trainer do."""

from __future__ import annotations

from typing import Any

from tests.conformance.differences.entry import OnPurpose, Raises, ones
from tests.conformance.program import Program, Ref, cpu, dense, row_sparse

__all__ = ["ENTRIES"]

_ALL = slice(None)
_TWO = [cpu(0), cpu(1)]
_RATE = {"learning_rate": 0.5}
_MOMENTUM = {"learning_rate": 0.5, "momentum": 0.5}


def _write(p: Program, w: Ref, contexts: Any = (None,), value: Any = 1) -> None:
    for context in contexts:
        p.put(p.call(w, "grad", *([context] if context else [])), _ALL, value)
    p.make("backward_wrote", w)


def _written_by_hand(p: Program) -> Ref:
    w = ones(p)
    trainer = p.make("Trainer", [w], "sgd", _RATE)
    p.put(p.call(w, "grad"), _ALL, 1)
    step = p.call(trainer, "step", 1)
    p.call(w, "data")
    return step


def _second_step_on_the_store(p: Program) -> None:
    w = ones(p, ctx=_TWO)
    trainer = p.make("Trainer", [w], "sgd", _RATE)
    _write(p, w, _TWO)
    p.call(trainer, "step", 1)
    p.call(trainer, "step", 1)


def _ignored_on_the_store(p: Program) -> None:
    w = ones(p, ctx=_TWO)
    trainer = p.make("Trainer", [w], "sgd", {**_RATE, "wd": 0.5})
    p.call(trainer, "step", 1, ignore_stale_grad=True)
    p.call(w, "data", cpu(0))


def _refused_on_the_store(p: Program) -> None:
    w = ones(p, ctx=_TWO)
    trainer = p.make("Trainer", [w], "sgd", {**_RATE, "wd": 0.5})
    p.call(trainer, "step", 1)
    p.call(w, "data", cpu(0))


def _refused_after_summing(p: Program) -> None:
    w, v = ones(p, "w", ctx=_TWO), ones(p, "v", ctx=_TWO)
    trainer = p.make("Trainer", [w, v], "sgd", _RATE, update_on_kvstore=False)
    _write(p, w, _TWO)
    p.call(trainer, "step", 1)
    p.call(w, "grad", cpu(0))


def _refused_after_others(p: Program) -> None:
    w, v = ones(p, "w"), ones(p, "v")
    trainer = p.make("Trainer", [w, v], "sgd", _RATE)
    _write(p, w)
    p.call(trainer, "step", 1)
    p.call(trainer, "step", 1, ignore_stale_grad=True)
    p.call(w, "data")


def _one_copy_is_stale(p: Program) -> None:
    w = ones(p, ctx=_TWO)
    trainer = p.make("Trainer", [w], "sgd", _RATE, update_on_kvstore=False)
    p.put(p.call(w, "grad", cpu(0)), _ALL, 1)
    p.make("backward_wrote", w, context=cpu(0))
    p.call(trainer, "step", 1, ignore_stale_grad=True)
    p.call(w, "data", cpu(0))


def _store_for_one(p: Program) -> Ref:
    w = ones(p)
    trainer = p.make("Trainer", [w], "sgd", _RATE, update_on_kvstore=True)
    _write(p, w)
    step = p.call(trainer, "step", 1)
    p.call(w, "data")
    return step


def _dense_gradients_of_rows(p: Program) -> Ref:
    w = ones(p, shape=(3, 1), stype="row_sparse")
    trainer = p.make("Trainer", [w], "sgd", _RATE)
    _write(p, w)
    step = p.call(trainer, "step", 1)
    p.call(w, "row_sparse_data", dense([0, 1, 2], "int64"))
    return step


def _rows_without_lazy_update(p: Program) -> None:
    w = ones(p, shape=(2, 1), grad_stype="row_sparse")
    trainer = p.make("Trainer", [w], "nag", {**_MOMENTUM, "wd": 0.5})
    _write(p, w, value=row_sparse([[1]], [0], (2, 1)))
    p.call(trainer, "step", 1)
    p.call(w, "data")


def _set_data_on_the_store(p: Program) -> None:
    w = ones(p, ctx=_TWO)
    trainer = p.make("Trainer", [w], "sgd", _MOMENTUM)
    _write(p, w, _TWO)
    p.call(trainer, "step", 1)
    p.call(w, "set_data", dense([1, 1]))
    _write(p, w, _TWO, 0)
    p.call(trainer, "step", 1)
    p.call(w, "data", cpu(0))


def _written_on_the_store(p: Program) -> None:
    w = ones(p, ctx=_TWO)
    trainer = p.make("Trainer", [w], "sgd", _RATE)
    _write(p, w, _TWO, 0)
    p.call(trainer, "step", 1)
    p.put(p.call(w, "data", cpu(0)), _ALL, 5)
    _write(p, w, _TWO, 0)
    p.call(trainer, "step", 1)
    p.call(w, "data", cpu(0))


def _written_under_multi_precision(p: Program) -> None:
    w = ones(p, dtype="float16")
    trainer = p.make("Trainer", [w], "sgd", {**_RATE, "multi_precision": True})
    _write(p, w)
    p.call(trainer, "step", 1)
    p.call(w, "set_data", dense([3, 3]))
    _write(p, w)
    p.call(trainer, "step", 1)
    p.call(w, "data")


def _copies_that_differ(p: Program) -> None:
    w = ones(p, ctx=_TWO)
    trainer = p.make("Trainer", [w], "sgd", _RATE, update_on_kvstore=False)
    p.put(p.call(w, "data", cpu(1)), _ALL, 5)
    _write(p, w, _TWO, 0)
    p.call(trainer, "step", 1)
    p.call(w, "data", cpu(1))


def _cast_after_a_step(p: Program) -> Ref:
    w = ones(p)
    trainer = p.make("Trainer", [w], "sgd", _MOMENTUM)
    _write(p, w)
    p.call(trainer, "step", 1)
    p.call(w, "cast", "float64")
    _write(p, w)
    with p.loosely("class"):
        step = p.call(trainer, "step", 1)
    p.call(w, "data")
    return step


def _moved(p: Program) -> Ref:
    w = ones(p)
    trainer = p.make("Trainer", [w], "sgd", _MOMENTUM)
    p.call(w, "reset_ctx", cpu(1))
    _write(p, w)
    step = p.call(trainer, "step", 1)
    p.call(w, "data")
    return step


ENTRIES: tuple[OnPurpose, ...] = (
    OnPurpose(
        "gradients that were written by hand",
        ("trainer.1o",),
        "are stale: only autograd makes them fresh",
        "are fresh",
        "there is no autograd here, workers write gradients",
        _written_by_hand,
        [0.5, 0.5],
    ),
    OnPurpose(
        "stale gradients on a key-value store",
        ("trainer.1o",),
        "go unnoticed once a gradient was written",
        "are those not written since the last step",
        "one rule with and without a key-value store",
        _second_step_on_the_store,
        Raises("UserWarning"),
    ),
    OnPurpose(
        "ignore_stale_grad on a key-value store",
        ("trainer.1o",),
        "updates the stale parameters, too",
        "passes over them",
        "one rule with and without a key-value store",
        _ignored_on_the_store,
        [1, 1],
    ),
    OnPurpose(
        "step that fails on a key-value store",
        ("trainer.1o",),
        "has updated",
        "changes nothing",
        "a failed call leaves the state alone",
        _refused_on_the_store,
        [1, 1],
    ),
    OnPurpose(
        "step that fails on several contexts",
        ("trainer.1o",),
        "has summed the gradients",
        "changes nothing",
        "a failed call leaves the state alone",
        _refused_after_summing,
        [1, 1],
    ),
    OnPurpose(
        "step that fails at a later parameter",
        ("trainer.1o",),
        "counts the gradients before it as used",
        "changes nothing",
        "a failed call leaves the state alone",
        _refused_after_others,
        [0.5, 0.5],
    ),
    OnPurpose(
        "a stale gradient of one copy",
        ("trainer.1o",),
        "ignore_stale_grad updates the other copies",
        "ignore_stale_grad passes over the parameter",
        "the copies of a parameter have one value",
        _one_copy_is_stale,
        [1, 1],
    ),
    OnPurpose(
        "update_on_kvstore without a key-value store",
        ("trainer.1n",),
        "AttributeError in the first step",
        "there is nothing to choose, and it works",
        "an accident of MXNet",
        _store_for_one,
        [0.5, 0.5],
    ),
    OnPurpose(
        "dense gradients of row_sparse parameters",
        ("trainer.1h",),
        "RuntimeError in the first step",
        "update all rows",
        "an accident of MXNet",
        _dense_gradients_of_rows,
        [[0.5], [0.5], [0.5]],
    ),
    OnPurpose(
        "rows in optimizers without lazy_update",
        ("trainer.1k",),
        "update the other rows with a gradient of 0",
        "update the rows that came, as with sgd and adam",
        "a step on a table costs what its rows cost",
        _rows_without_lazy_update,
        [[-0.125], [1]],
    ),
    OnPurpose(
        "set_data on a key-value store",
        ("trainer.1a",),
        "forgets the optimizer's states",
        "keeps them, as without one",
        "an accident of MXNet",
        _set_data_on_the_store,
        [0.5, 0.5],
    ),
    OnPurpose(
        "values written on a key-value store",
        ("trainer.1a",),
        "are lost: the store has its own",
        "are what is updated",
        "there is one value",
        _written_on_the_store,
        [5, 5],
    ),
    OnPurpose(
        "values written under multi_precision",
        ("trainer.1a",),
        "are lost: the optimizer has its own in float32",
        "are what is updated",
        "there is one value",
        _written_under_multi_precision,
        [2.5, 2.5],
    ),
    OnPurpose(
        "copies that differ before the first step",
        ("trainer.1n",),
        "become the first one",
        "are updated each for itself",
        "update_on_kvstore=False says so",
        _copies_that_differ,
        [5, 5],
    ),
    OnPurpose(
        "cast after a step",
        ("trainer.1a",),
        "the optimizer's states no longer fit",
        "casts them, too",
        "an accident of MXNet",
        _cast_after_a_step,
        [-0.25, -0.25],
    ),
    OnPurpose(
        "reset_ctx after a trainer was made",
        ("trainer.1a", "trainer.1g"),
        "the trainer stays on the contexts of before",
        "the states move along",
        "an accident of MXNet",
        _moved,
        [0.5, 0.5],
    ),
)
