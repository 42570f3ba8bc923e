from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from paramd import random
from paramd.context import Context, cpu


@pytest.fixture(autouse=True)
def _fresh_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random, "_keys", random._KeySource())


def test_draws_are_counted_for_each_name_since_the_seed() -> None:
    random.seed(5)
    assert [random.next_key(name) for name in "aab"] == [(5, 0), (5, 1), (5, 0)]
    random.seed(5)
    assert random.next_key("a") == (5, 0)


@pytest.mark.parametrize(
    ("seed", "expected"),
    [(-1, 2**64 - 1), (2**64 + 3, 3), (np.int64(7), 7), (True, 1)],
)
def test_seeds_are_taken_modulo_64_bits(seed: int, expected: int) -> None:
    random.seed(seed)
    assert random.next_key("w") == (expected, 0)


@pytest.mark.parametrize("seed", [1.5, "1", None])
def test_seeds_are_integers(seed: object) -> None:
    random.seed(3)
    with pytest.raises(ValueError, match="seed_state must be int"):
        random.seed(seed)  # type: ignore[arg-type]
    assert random.next_key("w") == (3, 0)


@pytest.mark.parametrize("ctx", ["all", "cpu", "gpu", cpu(3)])
def test_a_context_sets_the_one_seed(ctx: str | Context) -> None:
    random.seed(9, ctx=ctx)
    assert random.next_key("w") == (9, 0)


def test_an_unknown_kind_of_context_is_refused() -> None:
    random.seed(3)
    with pytest.raises(KeyError, match="tpu"):
        random.seed(4, ctx="tpu")
    assert random.next_key("w") == (3, 0)


def test_without_a_seed_each_process_draws_one() -> None:
    program = "from paramd import random; print(*random.next_key('w'), *random.next_key('w'))"
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program], check=True, capture_output=True, text=True
        ).stdout
        for _ in range(2)
    }
    assert len(outputs) == 2
    for output in outputs:
        first, draw, second, next_draw = map(int, output.split())
        assert (first, draw, next_draw) == (second, 0, 1)
        assert first < 2**64


# A process of its own: pytest's has threads, which must not be forked.
_FORK = """
import os, sys
from paramd import random
if sys.argv[1] == "chosen":
    random.seed(5)
random.next_key("w")
random._keys._lock.acquire()  # as if another thread were inside
read, write = os.pipe()
if os.fork() == 0:
    os.write(write, repr(random.next_key("w")).encode())
    os._exit(0)
os.wait()
random._keys._lock.release()
print([eval(os.read(read, 100)), random.next_key("w")])
"""


@pytest.mark.parametrize("how", ["chosen", "drawn"])
def test_a_fork_keeps_a_chosen_seed_and_draws_another(how: str) -> None:
    result = subprocess.run(
        [sys.executable, "-c", _FORK, how], check=True, capture_output=True, text=True, timeout=30
    )
    child, parent = eval(result.stdout)
    if how == "chosen":
        assert child == parent == (5, 1)
    else:
        assert child[0] != parent[0]


def test_threads_get_different_draws() -> None:
    random.seed(1)
    with ThreadPoolExecutor(8) as pool:
        keys = list(pool.map(random.next_key, ["w"] * 2000))
    assert sorted(keys) == [(1, draw) for draw in range(2000)]
