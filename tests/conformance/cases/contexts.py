"""Cases for the section on contexts."""

from __future__ import annotations

from tests.conformance.cases.case import Case
from tests.conformance.program import New, Program, Ref, cpu, dense, gpu

__all__ = ["CASES"]


def contexts_by_type_and_id(p: Program) -> None:
    made = [
        p.make("cpu"),
        p.make("cpu", 1),
        p.make("gpu"),
        p.make("gpu", 2),
        p.make("cpu_pinned", 1),
        p.make("Context", "gpu", 1),
        p.make("Context", "cpu"),
        p.make("Context", cpu(3)),
        p.make("Context", "cpu_pinned", 0),
    ]
    for context in made:
        p.apply("repr", context)
        p.apply("str", context)
        p.get(context, "device_type")
        p.get(context, "device_id")
        p.get(context, "device_typeid")
    p.make("Context", "tpu", 1)


def equality_and_hash(p: Program) -> None:
    one = p.make("cpu", 1)
    for other in (cpu(1), cpu(0), gpu(1), New("cpu_pinned", (1,)), "cpu(1)", 1, None):
        p.apply("==", one, other)
    p.apply("hash", one)


def with_sets_the_current_context(p: Program) -> None:
    p.make("current_context")
    with p.within(cpu(2)):
        p.make("current_context")
        w = p.make("Parameter", "w", shape=(2,))
        p.call(w, "initialize", init="ones")
    p.make("current_context")
    p.call(w, "list_ctx")


def only_copy_whatever_the_current_context(p: Program) -> None:
    w = _ones(p, "w", ctx=cpu(1))
    p.call(w, "data")
    with p.within(cpu(2)):
        p.call(w, "data")
        p.call(w, "grad")
    p.call(w, "data", cpu(1))
    p.call(w, "data", ctx=cpu(1))


def current_copy_of_several(p: Program) -> None:
    w = _ones(p, "w", ctx=[cpu(0), cpu(2)])
    p.put(p.call(w, "data", cpu(2)), slice(None), 5)
    p.call(w, "data")
    with p.within(cpu(2)):
        p.call(w, "data")
        p.call(w, "grad")
    with p.within(cpu(1)):
        p.call(w, "data")
        p.call(w, "grad")


def context_without_a_copy(p: Program) -> None:
    w = _ones(p, "w", ctx=[cpu(1), cpu(2)])
    for context in (cpu(0), cpu(5), gpu(1)):
        p.call(w, "data", context)
        p.call(w, "grad", context)
    p.call(w, "data")
    p.state(w)


def pinned_context_finds_the_cpu_copy(p: Program) -> None:
    w = _ones(p, "w", ctx=[cpu(1), cpu(2)])
    p.put(p.call(w, "data", cpu(2)), slice(None), 5)
    p.call(w, "data", New("cpu_pinned", (2,)))
    p.call(w, "grad", New("cpu_pinned", (1,)))
    p.call(w, "data", New("cpu_pinned", (0,)))


def context_that_the_server_lacks(p: Program) -> None:
    w = _ones(p, "w", ctx=cpu(0))
    v = p.make("Parameter", "v", shape=(2,))
    with p.loosely("class"):
        p.call(v, "initialize", ctx=gpu(7))
        p.call(v, "initialize", ctx=[cpu(0), gpu(7)])
        p.call(w, "reset_ctx", gpu(7))
    p.state(v)


def gpu_contexts_without_a_gpu(p: Program) -> None:
    context = p.make("gpu", 3)
    p.apply("==", context, gpu(3))
    w = _ones(p, "w", ctx=cpu(0))
    p.call(w, "data", gpu(0))


def several_forms_of_the_list(p: Program) -> None:
    w = _ones(p, "w", ctx=(cpu(2), cpu(0)))
    p.call(w, "list_ctx")
    p.call(w, "reset_ctx", [cpu(1)])
    p.call(w, "list_ctx")
    p.call(w, "reset_ctx", cpu(2))
    p.call(w, "set_data", dense([1, 2]))
    p.state(w)


def _ones(p: Program, name: str, ctx: object) -> Ref:
    w = p.make("Parameter", name, shape=(2,))
    p.call(w, "initialize", init="ones", ctx=ctx)
    return w


CASES = (
    Case(contexts_by_type_and_id, ("contexts.1a",)),
    Case(equality_and_hash, ("contexts.1c",)),
    Case(with_sets_the_current_context, ("contexts.1d",)),
    Case(only_copy_whatever_the_current_context, ("contexts.2a",)),
    Case(current_copy_of_several, ("contexts.2b", "contexts.3a")),
    Case(context_without_a_copy, ("contexts.3a",)),
    Case(pinned_context_finds_the_cpu_copy, ("contexts.3a",)),
    Case(context_that_the_server_lacks, ("contexts.3b",)),
    Case(gpu_contexts_without_a_gpu, ("contexts.4",)),
    Case(several_forms_of_the_list, ("contexts.1a",)),
)
