"""Differences in the gradients and numbers that a Trainer takes."""

from __future__ import annotations

from typing import Any

from tests.conformance.differences.entry import OnPurpose, Raises, ones
from tests.conformance.program import Program, Ref, cpu, dense, row_sparse

__all__ = ["ENTRIES"]

_ALL = slice(None)
_TWO = [cpu(0), cpu(1)]
_RATE = {"learning_rate": 0.5}


def _write(p: Program, w: Ref, contexts: Any = (None,), value: Any = 1) -> None:
    for context in contexts:
        p.put(p.call(w, "grad", *([context] if context else [])), _ALL, value)
    p.make("backward_wrote", w)


def _compressed_locally(p: Program) -> Ref:
    w = ones(p, ctx=_TWO)
    compression = {"type": "2bit", "threshold": 0.5}
    trainer = p.make("Trainer", [w], "sgd", _RATE, "local", compression)
    _write(p, w, _TWO)
    step = p.call(trainer, "step", 1)
    p.call(w, "data", cpu(0))
    return step


def _compressed_rows(p: Program) -> Ref:
    w = ones(p, shape=(3, 1), ctx=_TWO, grad_stype="row_sparse", stype="row_sparse")
    compression = {"type": "2bit", "threshold": 0.5}
    trainer = p.make("Trainer", [w], "sgd", _RATE, "device", compression)
    _write(p, w, _TWO, row_sparse([[1]], [0], (3, 1)))
    p.call(trainer, "step", 1)
    return p.call(w, "row_sparse_data", dense([0, 1], "int64"))


def _compressed_float64(p: Program) -> Ref:
    w = ones(p, dtype="float64", ctx=_TWO)
    compression = {"type": "2bit", "threshold": 0.5}
    trainer = p.make("Trainer", [w], "sgd", _RATE, "device", compression)
    _write(p, w, _TWO)
    step = p.call(trainer, "step", 1)
    p.call(w, "data", cpu(0))
    return step


def _float64(name: str) -> Any:
    def write(p: Program) -> Ref:
        w = ones(p, dtype="float64")
        trainer = p.make("Trainer", [w], name)
        _write(p, w)
        with p.loosely("class"):
            step = p.call(trainer, "step", 1)
        p.get(p.call(w, "data"), "dtype")
        return step

    return write


def _float16(p: Program) -> Ref:
    w = ones(p, dtype="float16")
    trainer = p.make("Trainer", [w], "sgd", _RATE)
    _write(p, w)
    step = p.call(trainer, "step", 1)
    p.call(w, "data")
    return step


def _ftrl_at_rest(p: Program) -> None:
    w = ones(p, lr_mult=0.0)
    trainer = p.make("Trainer", [w], "ftrl")
    _write(p, w)
    p.call(trainer, "step", 1)
    p.call(w, "data")


def _integers(p: Program) -> Ref:
    w = ones(p, dtype="int32")
    trainer = p.make("Trainer", [w], "sgd", _RATE)
    _write(p, w)
    with p.loosely("class"):
        return p.call(trainer, "step", 1)


def _another_batch_size(p: Program) -> Ref:
    w = ones(p)
    trainer = p.make("ClusterTrainer", [w], "sgd", _RATE, kvstore="dist_sync")
    p.call(trainer, "step", 1, [{"w": dense([1, 1])}])
    step = p.call(trainer, "step", 2, [{"w": dense([1, 1])}])
    p.call(w, "data")
    return step


def _buffers_of_a_cluster(p: Program) -> None:
    w = ones(p)
    trainer = p.make("ClusterTrainer", [w], "sgd", _RATE, kvstore="dist_sync")
    _write(p, w)
    p.call(trainer, "step_by_buffers", 1)


ENTRIES: tuple[OnPurpose, ...] = (
    OnPurpose(
        "compression with kvstore='local'",
        ("trainer.1p",),
        "an Exception in the first step",
        "works as with 'device'",
        "the two are the same here",
        _compressed_locally,
        [0.5, 0.5],
    ),
    OnPurpose(
        "compression of row_sparse gradients",
        ("trainer.1p",),
        "makes them dense",
        "leaves them as they are",
        "rows that nobody touched stay out of the update",
        _compressed_rows,
        [[0], [1], [0]],
    ),
    OnPurpose(
        "compression of float64",
        ("trainer.1p",),
        "fails in the engine",
        "works",
        "an accident of MXNet",
        _compressed_float64,
        [0.5, 0.5],
    ),
    *(
        OnPurpose(
            f"{name} on float64",
            ("trainer.1a",),
            "fails in the engine",
            "works",
            "an accident of MXNet",
            _float64(name),
            {"kind": "dtype", "name": "float64"},
        )
        for name in ("adagrad", "rmsprop", "adadelta", "ftrl")
    ),
    OnPurpose(
        "float16 without multi_precision",
        ("trainer.1a",),
        "a UserWarning about accuracy",
        "none",
        "updates are computed in float32 and rounded once",
        _float16,
        [0.5, 0.5],
    ),
    OnPurpose(
        "ftrl with a learning rate of 0",
        ("trainer.1j",),
        "NaN",
        "no change",
        "lr_mult=0 freezes a parameter under every optimizer",
        _ftrl_at_rest,
        [1, 1],
    ),
    OnPurpose(
        "integers",
        (),
        "fails in the engine",
        "fails, and says which parameter",
        "an accident of MXNet",
        _integers,
        Raises("DTypeMismatchError"),
    ),
    OnPurpose(
        "another batch_size under dist_sync",
        ("trainer.1i",),
        "UserWarning, and no step",
        "is divided by",
        "each step carries its own",
        _another_batch_size,
        [0.25, 0.25],
    ),
    OnPurpose(
        "step without grads= under dist_sync",
        ("trainer.1i",),
        "takes this worker's gradient buffers",
        "ValueError",
        "the buffers belong to the cluster and not to a worker",
        _buffers_of_a_cluster,
        Raises("ValueError"),
    ),
)
