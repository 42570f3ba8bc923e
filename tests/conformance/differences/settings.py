"""Differences in the settings of a Trainer: hyperparameters, rates, states."""

from __future__ import annotations

from typing import Any

from tests.conformance.differences.entry import OnPurpose, Raises, ones
from tests.conformance.program import New, Program, Ref, dense, file

__all__ = ["ENTRIES"]

_ALL = slice(None)
_RATE = {"learning_rate": 0.5}


def _step(p: Program, trainer: Ref, *parameters: Ref, contexts: Any = (None,)) -> Ref:
    for parameter in parameters:
        for context in contexts:
            p.put(p.call(parameter, "grad", *([context] if context else [])), _ALL, 1)
        p.make("backward_wrote", parameter)
    return p.call(trainer, "step", 1)


def _argument(name: str, value: float) -> Any:
    def write(p: Program) -> None:
        p.make("Trainer", [ones(p)], "sgd", {name: value})

    return write


def _rate_below_zero(p: Program) -> None:
    trainer = p.make("Trainer", [ones(p)], "sgd", _RATE)
    p.call(trainer, "set_learning_rate", -1.0)


def _rate_is_text(p: Program) -> None:
    trainer = p.make("Trainer", [ones(p)], "sgd", _RATE)
    p.call(trainer, "set_learning_rate", "fast")


def _batch_of_nothing(p: Program) -> None:
    w = ones(p)
    _write = p.make("Trainer", [w], "sgd", _RATE)
    p.put(p.call(w, "grad"), _ALL, 1)
    p.make("backward_wrote", w)
    p.call(_write, "step", 0)


def _batch_below_zero(p: Program) -> None:
    w = ones(p)
    trainer = p.make("Trainer", [w], "sgd", _RATE)
    p.put(p.call(w, "grad"), _ALL, 1)
    p.make("backward_wrote", w)
    p.call(trainer, "step", -1)


def _rate_of_a_schedule(p: Program) -> None:
    schedule = New("lr_scheduler.FactorScheduler", (2,))
    p.make("Trainer", [ones(p)], "sgd", {"learning_rate": 0.5, "lr_scheduler": schedule})


def _schedule_of_some(p: Program) -> None:
    w, v = ones(p, "w"), ones(p, "v")
    schedule = New("lr_scheduler.FactorScheduler", (1, 0.5), (("base_lr", 0.5),))
    trainer = p.make("Trainer", [w, v], "sgd", {"lr_scheduler": schedule})
    p.put(p.call(v, "grad"), _ALL, 1)
    p.make("backward_wrote", v)
    p.call(trainer, "step", 1, ignore_stale_grad=True)
    _step(p, trainer, w, v)
    p.call(w, "data")


def _optimizer_is_a_declaration(p: Program) -> Ref:
    trainer = p.make("Trainer", [ones(p)], "sgd", _RATE)
    p.call(trainer, "set_learning_rate", 0.25)
    return p.get(p.get(trainer, "optimizer"), "learning_rate")


def _optimizer_cannot_change(p: Program) -> None:
    trainer = p.make("Trainer", [ones(p)], "sgd", _RATE)
    p.set(p.get(trainer, "optimizer"), "wd", 0.5)


def _states_of_another(p: Program) -> None:
    p.call(p.make("Trainer", [ones(p, "w")], "adam"), "save_states", file("w.states"))
    p.call(p.make("Trainer", [ones(p, "v")], "sgd"), "load_states", file("w.states"))


def _states_of_another_parameter(p: Program) -> None:
    w = ones(p, "w")
    saved = p.make("Trainer", [w], "sgd", {"momentum": 0.5})
    _step(p, saved, w)
    p.call(saved, "save_states", file("w.states"))
    trainer = p.make("Trainer", [ones(p, "v")], "sgd", {"momentum": 0.5})
    p.call(trainer, "load_states", file("w.states"))


def _states_with_another_momentum(p: Program) -> None:
    w, v = ones(p, "w"), ones(p, "v")
    saved = p.make("Trainer", [w], "sgd", {"learning_rate": 0.5, "momentum": 0.5})
    p.call(saved, "save_states", file("w.states"))
    trainer = p.make("Trainer", [v], "sgd", _RATE)
    p.call(trainer, "load_states", file("w.states"))
    _step(p, trainer, v)
    _step(p, trainer, v)
    p.call(v, "data")


def _states_that_are_none(p: Program) -> None:
    p.make("nd.save", file("parameters.states"), {"w": dense([1])})
    p.call(p.make("Trainer", [ones(p)], "sgd"), "load_states", file("parameters.states"))


def _states_of_deferred_parameters(p: Program) -> None:
    d = p.make("Parameter", "d", shape=(0,), allow_deferred_init=True)
    p.call(d, "initialize", init="ones")
    p.call(p.make("Trainer", [d], "sgd"), "save_states", file("d.states"))


_FAILS_EARLY = "the mistake is where the error is"

ENTRIES: tuple[OnPurpose, ...] = (
    OnPurpose(
        "learning rate below 0",
        (),
        "taken",
        "ValueError",
        "a sign that is wrong must not train",
        _argument("learning_rate", -0.5),
        Raises("ValueError"),
    ),
    OnPurpose(
        "momentum above 1",
        (),
        "taken",
        "ValueError",
        "it cannot converge",
        _argument("momentum", 1.5),
        Raises("ValueError"),
    ),
    OnPurpose(
        "weight decay below 0",
        (),
        "taken",
        "ValueError",
        "a sign that is wrong must not train",
        _argument("wd", -0.5),
        Raises("ValueError"),
    ),
    OnPurpose(
        "clip_gradient of 0 or below",
        (),
        "switches clipping off, or clips all to 0",
        "ValueError",
        "None is what switches it off",
        _argument("clip_gradient", -1.0),
        Raises("ValueError"),
    ),
    OnPurpose(
        "set_learning_rate below 0",
        ("trainer.1c",),
        "taken",
        "ValueError",
        "a sign that is wrong must not train",
        _rate_below_zero,
        Raises("ValueError"),
    ),
    OnPurpose(
        "set_learning_rate of something else",
        ("trainer.1c",),
        "taken, the next step fails",
        "ValueError",
        _FAILS_EARLY,
        _rate_is_text,
        Raises("ValueError"),
    ),
    OnPurpose(
        "batch_size of 0",
        (),
        "ZeroDivisionError",
        "ValueError, as for others below",
        "one rule for all sizes",
        _batch_of_nothing,
        Raises("ValueError"),
    ),
    OnPurpose(
        "batch_size below 0",
        (),
        "climbs",
        "ValueError",
        "a sign that is wrong must not train",
        _batch_below_zero,
        Raises("ValueError"),
    ),
    OnPurpose(
        "learning rate beside a schedule",
        ("trainer.1c",),
        "replaces its base_lr, and prints that",
        "replaces its base_lr, with a UserWarning",
        "programs can see warnings",
        _rate_of_a_schedule,
        {"type": "Trainer"},
    ),
    OnPurpose(
        "schedule after a parameter was passed over",
        ("trainer.1c",),
        "sgd counts four parameters before it asks for their rate, the others one by one",
        "one by one",
        "one rule for all optimizers",
        _schedule_of_some,
        [0.5, 0.5],
    ),
    OnPurpose(
        "trainer.optimizer after set_learning_rate",
        ("trainer.1d",),
        "has the new rate",
        "is what was declared: the rate is trainer.learning_rate",
        "optimizers are values, their state is the server's",
        _optimizer_is_a_declaration,
        0.5,
    ),
    OnPurpose(
        "assigning to attributes of trainer.optimizer",
        ("trainer.1d",),
        "changes the training",
        "fails",
        "optimizers are values, their state is the server's",
        _optimizer_cannot_change,
        Raises("AttributeError"),
    ),
    OnPurpose(
        "load_states of another optimizer",
        ("trainer.1e",),
        "takes over the optimizer of the file",
        "StatesMismatchError",
        "all workers go by what was declared",
        _states_of_another,
        Raises("StatesMismatchError"),
    ),
    OnPurpose(
        "load_states of another parameter",
        ("trainer.1e",),
        "goes by the order of the parameters",
        "StatesMismatchError",
        "states belong to names",
        _states_of_another_parameter,
        Raises("StatesMismatchError"),
    ),
    OnPurpose(
        "load_states from other settings",
        ("trainer.1e",),
        "takes over the optimizer of the file with its settings",
        "takes over states, counts and a rate that was set",
        "all workers go by what was declared",
        _states_with_another_momentum,
        [0, 0],
    ),
    OnPurpose(
        "load_states of a file without states",
        ("trainer.1e",),
        "UnpicklingError; what is a pickle is executed",
        "FileFormatError, also for MXNet's own files",
        "nothing is ever unpickled",
        _states_that_are_none,
        Raises("FileFormatError"),
    ),
    OnPurpose(
        "save_states with deferred parameters",
        ("trainer.1e",),
        "DeferredInitializationError",
        "writes what there is",
        "states do not need values",
        _states_of_deferred_parameters,
        None,
    ),
)
