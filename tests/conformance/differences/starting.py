"""Differences in contexts, construction and initialization."""

from __future__ import annotations

from tests.conformance.differences.entry import OnPurpose, Raises, deferred, ones
from tests.conformance.program import Program, Ref, cpu, dense, gpu, init, numpy

__all__ = ["ENTRIES"]


def _from_string(p: Program) -> Ref:
    read = p.make("Context.from_string", "gpu(1)")
    p.apply("repr", read)
    return read


def _count_gpus(p: Program) -> None:
    p.make("num_gpus")


def _failed_reset_ctx(p: Program) -> None:
    w = ones(p)
    with p.loosely("class"):
        p.call(w, "reset_ctx", gpu(7))
    p.call(w, "list_ctx")


def _minus_one(p: Program) -> None:
    w = p.make("Parameter", "w", shape=(-1,), allow_deferred_init=True)
    p.call(w, "initialize", init="ones")


def _minus_one_now(p: Program) -> None:
    w = p.make("Parameter", "w", shape=(-1,))
    p.call(w, "initialize", init="ones")


def _failed_force_reinit(p: Program) -> None:
    w = ones(p)
    with p.loosely("class"):
        p.call(w, "initialize", init=init("Xavier"), force_reinit=True)
    p.call(w, "data")


def _first_access_finishes(p: Program) -> None:
    w = deferred(p)
    p.set(w, "shape", (2,))
    p.call(w, "data")


def _deferred_dtype(p: Program) -> Ref:
    w = deferred(p, dtype="float64")
    p.call(w, "set_data", dense([1, 2]))
    value = p.call(w, "data")
    p.get(value, "dtype")
    return value


def _deferred_numpy(p: Program) -> None:
    w = deferred(p)
    p.call(w, "set_data", numpy([1, 2]))
    p.call(w, "data")


def _mixed(p: Program) -> None:
    w = p.make("Parameter", "w_bias", shape=(2,))
    mixed = init("Mixed", [".*bias", ".*"], [init("Zero"), init("One")])
    p.call(w, "initialize", init=mixed)


def _load(p: Program) -> None:
    w = p.make("Parameter", "w", shape=(2,))
    p.call(w, "initialize", init=init("Load", {"w": dense([3, 4])}))


def _bilinear_of_a_vector(p: Program) -> None:
    w = p.make("Parameter", "w", shape=(4,))
    p.call(w, "initialize", init=init("Bilinear"))


def _context_as_text(p: Program) -> None:
    w = ones(p)
    p.call(w, "data", "cpu(0)")


def _context_twice(p: Program) -> None:
    w = ones(p, ctx=[cpu(0), cpu(0)])
    p.call(w, "list_ctx")


def _no_context(p: Program) -> None:
    w = p.make("Parameter", "w", shape=(2,))
    p.call(w, "initialize", ctx=[])


def _list_device(p: Program) -> None:
    w = ones(p, ctx=[cpu(1), cpu(0)])
    p.call(w, "list_device")


def _reset_device(p: Program) -> None:
    w = ones(p)
    p.call(w, "reset_device", cpu(1))


def _data_of_device(p: Program) -> None:
    w = ones(p)
    p.call(w, "data", device=cpu(0))


def _two_of_one_name(p: Program) -> None:
    ones(p)
    other = p.make("Parameter", "w", shape=(2,))
    p.call(other, "data")


def _name_of_weight(p: Program) -> Ref:
    w = p.make("Parameter")
    p.get(w, "name")
    return w


def _device_spelling(p: Program) -> None:
    w = p.make("Parameter", "w", shape=(2,))
    p.call(w, "initialize", device=cpu(1))


ENTRIES: tuple[OnPurpose, ...] = (
    OnPurpose(
        "Context.from_string",
        ("contexts.1b",),
        "has no such method",
        "reads 'gpu(1)'",
        "contexts come from configuration files and command lines",
        _from_string,
        "gpu(1)",
    ),
    OnPurpose(
        "num_gpus is exported",
        ("contexts.1e",),
        "`mx.context.num_gpus()` counts this machine's",
        "asks the server",
        "contexts are the server's",
        _count_gpus,
        0,
    ),
    OnPurpose(
        "failed reset_ctx",
        ("contexts.3b",),
        "list_ctx() names the context that failed",
        "nothing changes",
        "a failed call leaves the state alone",
        _failed_reset_ctx,
        ["cpu(0)"],
    ),
    OnPurpose(
        "dimension -1",
        ("initialize.3c",),
        "AssertionError unless NumPy shapes are switched on",
        "unknown, like 0",
        "MXNet 2.0 writes unknown dimensions that way",
        _minus_one,
        None,
    ),
    OnPurpose(
        "dimension -1 that may not wait",
        ("initialize.3c",),
        "AssertionError unless NumPy shapes are switched on",
        "ValueError, as for 0",
        "MXNet 2.0 writes unknown dimensions that way",
        _minus_one_now,
        Raises("ValueError"),
    ),
    OnPurpose(
        "failed force_reinit",
        ("initialize.3d",),
        "the old value is lost",
        "the old value stays",
        "a failed call leaves the state alone",
        _failed_force_reinit,
        [1, 1],
    ),
    OnPurpose(
        "deferred initialization finishes without a network",
        ("initialize.4f",),
        "only the first forward pass finishes",
        "the first access after the shape is known does",
        "there is no forward pass here",
        _first_access_finishes,
        [1, 1],
        as_is=True,
    ),
    OnPurpose(
        "set_data of a deferred parameter casts",
        ("values.2b",),
        "keeps the array's dtype, against Parameter.dtype",
        "casts as always",
        "an accident of MXNet",
        _deferred_dtype,
        "float64",
    ),
    OnPurpose(
        "NumPy value for a deferred parameter",
        (),
        "AttributeError in the forward pass",
        "taken",
        "set_data takes NumPy arrays everywhere else",
        _deferred_numpy,
        [1, 2],
    ),
    OnPurpose(
        "Mixed on a Gluon parameter",
        ("initialize.5b",),
        "AssertionError",
        "works",
        "an accident of MXNet",
        _mixed,
        None,
    ),
    OnPurpose(
        "Load on a Gluon parameter",
        ("initialize.5b",),
        "AssertionError",
        "works",
        "an accident of MXNet",
        _load,
        None,
    ),
    OnPurpose(
        "Bilinear on a vector",
        (),
        "IndexError",
        "ValueError, as for other initializers",
        "an accident of MXNet",
        _bilinear_of_a_vector,
        Raises("ValueError"),
    ),
    OnPurpose(
        "context given as text",
        (),
        "AttributeError",
        "TypeError",
        "an accident of MXNet",
        _context_as_text,
        Raises("TypeError"),
    ),
    OnPurpose(
        "a context given twice",
        (),
        "makes two copies, one of which no context finds",
        "makes one copy",
        "an accident of MXNet",
        _context_twice,
        ["cpu(0)"],
    ),
    OnPurpose(
        "an empty list of contexts",
        (),
        "makes a parameter without copies",
        "is refused",
        "an accident of MXNet",
        _no_context,
        Raises("ValueError"),
    ),
    OnPurpose(
        "list_device",
        (),
        "does not exist in 1.9.1",
        "is list_ctx",
        "as in MXNet 2.0",
        _list_device,
        ["cpu(1)", "cpu(0)"],
    ),
    OnPurpose(
        "reset_device",
        (),
        "does not exist in 1.9.1",
        "is reset_ctx",
        "as in MXNet 2.0",
        _reset_device,
        None,
    ),
    OnPurpose(
        "data(device=)",
        (),
        "TypeError in 1.9.1",
        "taken",
        "as in MXNet 2.0",
        _data_of_device,
        [1, 1],
    ),
    OnPurpose(
        "two objects of one name",
        (),
        "are two parameters",
        "are one",
        "the name is the identity on the cluster",
        _two_of_one_name,
        [1, 1],
    ),
    OnPurpose(
        "default name",
        (),
        "name is required in 1.9.1",
        "is 'weight'",
        "as in MXNet 2.0",
        _name_of_weight,
        "weight",
    ),
    OnPurpose(
        "device= instead of ctx=",
        (),
        "TypeError in 1.9.1",
        "taken",
        "as in MXNet 2.0",
        _device_spelling,
        None,
    ),
)
