"""Differences in what a Trainer is made of, and in what is refused."""

from __future__ import annotations

from typing import Any

from tests.conformance.differences.entry import OnPurpose, Raises, ones
from tests.conformance.program import Program, Ref, cpu

__all__ = ["ENTRIES"]

_ALL = slice(None)
_TWO = [cpu(0), cpu(1)]
_RATE = {"learning_rate": 0.5}


def _step(p: Program, trainer: Ref, *parameters: Ref, contexts: Any = (None,)) -> Ref:
    for parameter in parameters:
        for context in contexts:
            p.put(p.call(parameter, "grad", *([context] if context else [])), _ALL, 1)
        p.make("backward_wrote", parameter)
    return p.call(trainer, "step", 1)


def _unknown_store(p: Program) -> None:
    p.make("Trainer", [ones(p)], "sgd", _RATE, kvstore="bogus")


def _no_store_name(p: Program) -> None:
    p.make("Trainer", [ones(p)], "sgd", _RATE, kvstore=5)


def _sparse_weight_updated_in_place(p: Program) -> None:
    w = ones(p, shape=(3, 1), stype="row_sparse", grad_stype="row_sparse")
    p.make("Trainer", [w], "sgd", _RATE, update_on_kvstore=False)


def _sparse_weight_without_store(p: Program) -> None:
    w = ones(p, shape=(3, 1), stype="row_sparse", grad_stype="row_sparse")
    p.make("Trainer", [w], "sgd", _RATE, kvstore=None)


def _wrong_compression(p: Program) -> None:
    w = ones(p, ctx=_TWO)
    p.make("Trainer", [w], "sgd", _RATE, compression_params={"type": "1bit"})


def _unknown_compression_key(p: Program) -> None:
    compression = {"type": "2bit", "thresh": 0.5}
    p.make("Trainer", [ones(p)], "sgd", _RATE, compression_params=compression)


def _split_on_servers(p: Program) -> None:
    w = ones(p)
    p.make("ClusterTrainer", [w], "sgd", _RATE, kvstore="dist_sync", update_on_kvstore=False)


def _nothing_to_train(p: Program) -> None:
    p.make("Trainer", [], "sgd")


def _given_twice(p: Program) -> None:
    w = ones(p)
    p.make("Trainer", [w, w], "sgd")


def _number_as_optimizer(p: Program) -> None:
    p.make("Trainer", [ones(p)], 5)


def _adamw(p: Program) -> None:
    p.make("Trainer", [ones(p)], "adamw")


def _missing_optimizer(p: Program) -> None:
    p.make("Trainer", [ones(p)], "nadam")


def _another_trainer(p: Program) -> None:
    w = ones(p)
    p.make("Trainer", [w], "sgd", _RATE)
    p.make("Trainer", [w], "adam")


def _the_same_trainer(p: Program) -> Ref:
    w = ones(p)
    trainers = [p.make("Trainer", [w], "sgd", {**_RATE, "momentum": 0.5}) for _ in range(2)]
    _step(p, trainers[0], w)
    _step(p, trainers[1], w)
    return p.call(w, "data")


def _another_trainer_of_rows(p: Program) -> None:
    w = ones(p, shape=(3, 1), stype="row_sparse", grad_stype="row_sparse")
    p.make("Trainer", [w], "sgd", _RATE)
    p.make("Trainer", [w], "sgd", _RATE)


_FIRST_STEP = "fails in the first step"
_FAILS_EARLY = "the mistake is where the error is"

ENTRIES: tuple[OnPurpose, ...] = (
    OnPurpose(
        "unknown kvstore",
        ("trainer.1m",),
        "taken as another one, or never looked at",
        "ValueError",
        "a wrong name must not train in another way",
        _unknown_store,
        Raises("ValueError"),
    ),
    OnPurpose(
        "kvstore that is no name",
        ("trainer.1h",),
        _FIRST_STEP,
        "TypeError",
        _FAILS_EARLY,
        _no_store_name,
        Raises("TypeError"),
    ),
    OnPurpose(
        "row_sparse parameters with update_on_kvstore=False",
        ("trainer.1h",),
        _FIRST_STEP,
        "ValueError",
        _FAILS_EARLY,
        _sparse_weight_updated_in_place,
        Raises("ValueError"),
    ),
    OnPurpose(
        "row_sparse parameters without a key-value store",
        ("trainer.1h",),
        _FIRST_STEP,
        "TypeError",
        _FAILS_EARLY,
        _sparse_weight_without_store,
        Raises("TypeError"),
    ),
    OnPurpose(
        "unknown type of compression",
        ("trainer.1p",),
        _FIRST_STEP,
        "ValueError",
        _FAILS_EARLY,
        _wrong_compression,
        Raises("ValueError"),
    ),
    OnPurpose(
        "unknown argument of compression",
        ("trainer.1p",),
        "ignored",
        "TypeError",
        "a misspelled threshold must not train with another one",
        _unknown_compression_key,
        Raises("TypeError"),
    ),
    OnPurpose(
        "kvstore='dist_sync' with update_on_kvstore=False",
        ("trainer.1n",),
        "each worker updates",
        "ValueError",
        "optimizers run on the server",
        _split_on_servers,
        Raises("ValueError"),
    ),
    OnPurpose(
        "trainer of no parameters",
        (),
        "TypeError",
        "ValueError",
        "an accident of MXNet",
        _nothing_to_train,
        Raises("ValueError"),
    ),
    OnPurpose(
        "parameter given to a trainer twice",
        (),
        "is updated twice in each step",
        "ValueError",
        "an accident of MXNet",
        _given_twice,
        Raises("ValueError"),
    ),
    OnPurpose(
        "optimizer that is no name",
        (),
        "AttributeError",
        "TypeError",
        "an accident of MXNet",
        _number_as_optimizer,
        Raises("TypeError"),
    ),
    OnPurpose(
        "optimizer 'adamw'",
        ("trainer.1q",),
        "ValueError",
        "works",
        "MXNet has it in another module",
        _adamw,
        {"type": "Trainer"},
    ),
    OnPurpose(
        "optimizer 'nadam'",
        ("trainer.1q",),
        "works",
        "ValueError that lists what there is, as for other optimizers of MXNet",
        "the list of optimizers is short and tested",
        _missing_optimizer,
        Raises("ValueError"),
    ),
    OnPurpose(
        "second trainer of a parameter",
        (),
        "both have their own states, and change the same value",
        "TrainerMismatchError",
        "workers that disagree about the settings must find out",
        _another_trainer,
        Raises("TrainerMismatchError"),
    ),
    OnPurpose(
        "second trainer with the same settings",
        (),
        "begins anew",
        "is the one that the server has",
        "each worker makes it, and it is one trainer",
        _the_same_trainer,
        [-0.25, -0.25],
    ),
    OnPurpose(
        "second trainer of a row_sparse parameter",
        (),
        "RuntimeError",
        "is the one that the server has",
        "each worker makes it, and it is one trainer",
        _another_trainer_of_rows,
        {"type": "Trainer"},
    ),
)
