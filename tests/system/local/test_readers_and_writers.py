"""Values that are read in place while they are written in every way: never torn, never of the past.

Two parameters have one constant, in all of their elements, whatever is written: who finds two
numbers has read a value that never was.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

import paramd
from paramd import cpu, optimizer
from paramd.errors import NotInitializedError, ParameterNotFoundError
from paramd.session import Session
from paramd.spec import InitializeEntry, InitializerSpec, ParameterSpec, Selector, TensorHead
from paramd.trainer_spec import StepOptions, TrainerSpec
from paramd.transport.local.places import Located, Places
from paramd.transport.records import TensorWrite
from tests.support.server_process import ServerProcess, server_environment
from tests.system.local.conftest import make

pytestmark = pytest.mark.real_devices

# Of a segment of its own, and one among others.
SIZES: Final = {"a": 1 << 18, "b": 1000}
ROWS, WIDTH = 2000, 40
READS: Final = 300
SECONDS: Final = 20.0
CPU: Final = cpu(0)
# What may be between a deletion and a new value.
GONE: Final = (ParameterNotFoundError, NotInitializedError)

Array = np.ndarray[Any, Any]


@dataclass
class Seen:
    """What one reader has found.

    Attributes:
        in_place: how many reads were no calls.
        constants: all the numbers.
        wrong: what must not be, in words.
    """

    in_place: int = 0
    constants: set[float] = field(default_factory=set)
    wrong: list[str] = field(default_factory=list)

    def take(self, found: list[tuple[TensorHead, Array]]) -> None:
        for head, value in found:
            if not (value == found[0][1].flat[0]).all():
                some = sorted({float(each) for each in np.unique(value)})[:5]
                self.wrong.append(f"{head.name} of {head.version}: {some}")
        self.constants.add(float(found[0][1].flat[0]))


class Reader:
    """Reads one pair or rows until it has enough.

    Args:
        session: reads in place.
        seed: of the rows.
        grows: whether versions only grow: nothing is deleted.
    """

    def __init__(self, session: Session, seed: int, *, grows: bool) -> None:
        self._session = session
        self._random = np.random.default_rng(seed)
        self._grows = grows
        self._last = 0
        self.seen = Seen()

    def read(self, kind: str) -> None:
        """Reads 'pair' or 'rows', in place where that is possible."""
        local = self._session._connection.local.values()
        assert local is not None
        found: Any
        if kind == "rows":
            ids = np.unique(self._random.integers(0, ROWS, 500))
            selected = Selector("table")
            found = local.take_rows(selected, ids, CPU, None)
            self.seen.in_place += found is not None
            taken = [found or self._session.calls.pull_rows("table", ids, None, CPU)]
        else:
            selectors = [Selector(name) for name in SIZES]
            found = local.get_data(selectors, CPU, None)
            self.seen.in_place += found is not None
            taken = found or self._session.calls.get_data(selectors, CPU)
        self.seen.take(taken)
        version = taken[0][0].version
        assert version is not None
        counter = version.counter
        if self._grows and counter < self._last:
            self.seen.wrong.append(f"version {counter} after {self._last}")
        self._last = counter

    def run(self, kind: str) -> None:
        """Reads until it has enough, of two values at least, or time is up."""
        give_up_at, reads = time.monotonic() + SECONDS, 0
        while not self.seen.wrong and time.monotonic() < give_up_at:
            if reads >= READS and len(self.seen.constants) > 1:
                return
            try:
                self.read(kind)
                reads += 1
            except GONE:
                if self._grows:
                    raise


class Writer:
    """Writes in all ways.

    Args:
        session: makes the calls.
        seed: of what it writes.
    """

    def __init__(self, session: Session, seed: int) -> None:
        self._calls = session.calls
        self._random = random.Random(seed)

    def prepare(self) -> None:
        names = [name for name in (*SIZES, "table") if self._is_there(name)]
        self._calls.delete(names)
        self.create()
        spec = ParameterSpec("table", (ROWS, WIDTH), stype="row_sparse", grad_stype="row_sparse")
        self._calls.declare([(spec, frozenset())])
        entry = InitializeEntry("table", InitializerSpec("zero"), 1, 0)
        self._calls.initialize([entry], [CPU], force_reinit=False)
        rule = optimizer.create("sgd", learning_rate=1.0)
        self._calls.training.declare(TrainerSpec("t", (*SIZES, "table"), rule))

    def _is_there(self, name: str) -> bool:
        return any(info.current.name == name for info in self._calls.list_parameters(name))

    def create(self) -> None:
        specs = [ParameterSpec(name, (size,)) for name, size in SIZES.items()]
        self._calls.declare([(spec, frozenset()) for spec in specs])
        self._calls.set_data(self._pair("assign"), initialize=True, contexts=[CPU])

    def _constant(self) -> int:
        return self._random.randrange(1, 1000)

    def _pair(self, mode: str) -> list[TensorWrite]:
        constant = self._constant()
        return [
            TensorWrite(name, np.full(size, constant, "f4"), mode=mode)
            for name, size in SIZES.items()
        ]

    def whole(self) -> None:
        self._calls.set_data(self._pair("assign"))

    def added(self) -> None:
        one = np.full(1, self._constant(), "f4")
        self._calls.set_data([TensorWrite(name, one, mode="add") for name in SIZES])

    def stepped(self) -> None:
        writes = self._pair("by_grad_req")
        options = StepOptions("t", 1.0, ignore_stale_grad=True)
        self._calls.training.step(options, writes, [], CPU)

    def cast(self) -> None:
        self._calls.cast(list(SIZES), np.dtype(self._random.choice(("f4", "f8"))))

    def moved(self) -> None:
        self._calls.reset_ctx(list(SIZES), [cpu(self._random.randrange(3))])

    def again(self) -> None:
        constant = InitializerSpec("constant", {"value": float(self._constant())})
        entries = [InitializeEntry(name, constant, 1, 0) for name in SIZES]
        self._calls.initialize(entries, [CPU], force_reinit=True)

    def anew(self) -> None:
        self._calls.delete(list(SIZES))
        self.create()

    def rows(self) -> None:
        rows = np.full((ROWS, WIDTH), self._constant(), "f4")
        value = paramd.files.RowSparseRows(np.arange(ROWS), rows, (ROWS, WIDTH))
        self._calls.set_data([TensorWrite("table", value, mode="assign_rows")])

    def stepped_rows(self) -> None:
        rows = np.full((ROWS, WIDTH), self._constant(), "f4")
        value = paramd.files.RowSparseRows(np.arange(ROWS), rows, (ROWS, WIDTH))
        options = StepOptions("t", 1.0, ignore_stale_grad=True)
        writes = [TensorWrite("table", value, mode="by_grad_req")]
        self._calls.training.step(options, writes, [], CPU)

    def run(self, ways: str, ended: threading.Event) -> None:
        while not ended.is_set():
            getattr(self, self._random.choice(ways.split()))()


def read_in_a_process() -> None:
    """What a child does: reads, and prints what it has found."""
    target, kind, seed, grows = sys.argv[1:]
    with paramd.connect(target, transport="shm") as session:
        reader = Reader(session, int(seed), grows=grows == "True")
        reader.run(kind)
        seen = reader.seen
    print(json.dumps([seen.in_place, sorted(seen.constants), seen.wrong]))


@pytest.mark.parametrize(
    ("ways", "kind"),
    [
        ("whole", "pair"),
        ("added", "pair"),
        ("stepped added whole", "pair"),
        ("cast cast added", "pair"),
        ("moved added", "pair"),
        ("again added", "pair"),
        ("anew", "pair"),
        ("whole added cast moved again anew", "pair"),
        ("rows", "rows"),
        ("stepped_rows rows", "rows"),
    ],
)
def test_no_read_is_torn(
    server: ServerProcess, in_place: Session, calling: Session, ways: str, kind: str
) -> None:
    seed = random.randrange(1 << 30)
    print("seed", seed)
    writer = Writer(calling, seed)
    writer.prepare()
    grows = "anew" not in ways
    ended, errors = threading.Event(), []

    def guarded(function: Callable[..., None], *arguments: Any) -> Callable[[], None]:
        def run() -> None:
            try:
                function(*arguments)
            except BaseException as err:
                errors.append(err)
                ended.set()

        return run

    code = "from tests.system.local.test_readers_and_writers import read_in_a_process as run; run()"
    command = [sys.executable, "-c", code, server.address, kind, str(seed), str(grows)]
    # Two threads read by one session: they share what it knows of places.
    readers = [Reader(in_place, seed + number, grows=grows) for number in range(2)]
    writing = threading.Thread(target=guarded(writer.run, ways, ended))
    reading = [threading.Thread(target=guarded(each.run, kind)) for each in readers]
    with subprocess.Popen(
        command,
        cwd=Path(__file__).parents[3],
        env=server_environment(),
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        for thread in (writing, *reading):
            thread.start()
        output, _ = child.communicate(timeout=100)
        for thread in reading:
            thread.join()
        ended.set()
        writing.join()
    assert errors == []
    in_place_there, constants, wrong = json.loads(output)
    for each in (*(reader.seen for reader in readers), Seen(in_place_there, set(constants), wrong)):
        assert each.wrong == []
        assert len(each.constants) > 1, "nothing was written meanwhile"
        # Who finds nothing makes calls for a while.
        assert each.in_place > 0 or not grows


def test_a_thread_never_reads_where_another_one_was_sent(
    in_place: Session, calling: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One has seen an old place, and comes to it when another has turned to the new one."""
    size = 1 << 17
    selectors = [Selector("shared")]
    for name in ("shared", "other"):
        make(calling, name, 0, size)
    in_place.calls.get_data(selectors, CPU)
    make(calling, "shared", 1, size)
    # Takes the memory that the value was in, so that the next one is not there again.
    in_place.calls.get_data([Selector("other")], CPU)
    late_waits, late_goes, late_came = (threading.Event() for _ in range(3))
    move = Places.move

    def moved(places: Places, located: Located, segment: int, offset: int) -> Any:
        if late_came.is_set():
            return move(places, located, segment, offset)
        if threading.current_thread().name == "late":
            late_waits.set()
            assert late_goes.wait(30)
            found = move(places, located, segment, offset)
            late_came.set()
            return found
        found = move(places, located, segment, offset)
        late_goes.set()
        assert late_came.wait(30)
        return found

    monkeypatch.setattr(Places, "move", moved)
    found: dict[str, float] = {}

    def read() -> None:
        ((_, value),) = in_place.calls.get_data(selectors, CPU)
        assert isinstance(value, np.ndarray)
        found[threading.current_thread().name] = float(value[0])

    late, first = (threading.Thread(target=read, name=name) for name in ("late", "first"))
    late.start()
    assert late_waits.wait(30)
    make(calling, "shared", 2, size)
    first.start()
    first.join(60)
    late.join(60)
    assert found == {"late": 2, "first": 2}
