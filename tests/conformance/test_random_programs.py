"""Random programs go the same on MXNet and on paramd.

`PARAMD_CONFORMANCE_EXAMPLES` is the number of programs, `PARAMD_CONFORMANCE_SEED` their seed.
"""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.strategies import SearchStrategy

from tests.conformance.both import Both, Counts, report
from tests.conformance.generator import programs
from tests.conformance.program import Program
from tests.conformance.training_generator import training_programs

_EXAMPLES = int(os.environ.get("PARAMD_CONFORMANCE_EXAMPLES", "300"))
_SEED = int(os.environ.get("PARAMD_CONFORMANCE_SEED", "20190520"))
# Below this many programs a rare member may not come up.
_ENOUGH = 300

IN_SCOPE = frozenset(
    {f"Parameter.{name}" for name in (
        "initialize", "set_data", "data", "list_data", "grad", "list_grad", "row_sparse_data",
        "list_row_sparse_data", "list_ctx", "zero_grad", "var", "cast", "reset_ctx",
        "name", "shape", "dtype", "grad_req", "lr_mult", "wd_mult",
        "shape=", "dtype=", "grad_req=", "lr_mult=", "wd_mult=", "init=",
    )}
    | {f"Constant.{name}" for name in (
        "initialize", "set_data", "data", "list_ctx", "zero_grad", "cast", "reset_ctx",
        "shape", "dtype", "grad_req", "grad_req=",
    )}
    | {f"ParameterDict.{name}" for name in (
        "get", "get_constant", "update", "initialize", "zero_grad", "reset_ctx", "list_ctx",
        "setattr", "save", "load", "load_dict", "items", "keys", "values", "prefix",
    )}
)  # fmt: skip


TRAINING = frozenset(
    {f"Trainer.{name}" for name in (
        "step", "allreduce_grads", "update", "learning_rate", "set_learning_rate", "save_states",
        "load_states",
    )}
    | {"Trainer", "ParameterDict.load_dict", "ParameterDict.setattr", "Parameter.set_data"}
)  # fmt: skip


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("strategy", "in_scope", "examples"),
    [
        pytest.param(programs(), IN_SCOPE, _EXAMPLES, id="parameters"),
        # These are longer, and each of their calls comes up often.
        pytest.param(training_programs(), TRAINING, -(-_EXAMPLES // 3), id="training"),
    ],
)
def test_random_programs_go_the_same_on_both(
    both: Both,
    counts: Counts,
    capsys: pytest.CaptureFixture[str],
    strategy: SearchStrategy[Program],
    in_scope: frozenset[str],
    examples: int,
) -> None:
    random = Counts()

    @seed(_SEED)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        print_blob=False,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def run(program: Program) -> None:
        differences = both.compare(program, random)
        assert not differences, report(program, differences)

    try:
        run()
    finally:
        with capsys.disabled():
            print(f"\n{random.programs} random programs of {random.steps} steps, seed {_SEED}")
        counts.merge(random)
    if _EXAMPLES >= _ENOUGH:
        assert sorted(in_scope - set(random.members)) == []
