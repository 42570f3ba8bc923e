"""The state of one moment, while workers push."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paramd.context import cpu
from paramd.errors import MemoryLimitError
from paramd.spec import TensorHead
from paramd_server.arrays.backend import host_array
from paramd_server.core import held_buffers
from paramd_server.core.capture import CapturedState, Standstill
from paramd_server.core.capture import capture as take
from paramd_server.core.operations import Operation
from paramd_server.core.snapshot import Section, restore_sections
from paramd_server.core.snapshot_parameters import ParametersSection
from paramd_server.core.snapshot_sessions import OperationsSection
from paramd_server.core.training.sections import MembersSection, TrainersSection
from paramd_server.core.value_writing import ValueStage
from paramd_server.storage.snapshot_files import ScratchFile
from tests.support.plain_trainers import Plant, full, identity_of
from tests.support.snapshots import MemorySnapshot, captured

ROWS, WIDTH = 3000, 8
WAIT_S = 30.0


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """A buffer takes many steps to read."""
    monkeypatch.setattr(held_buffers, "_PIECE_BYTES", 4096)


def sections_of(plant: Plant) -> list[Section]:
    return [
        ParametersSection(plant.registry),
        OperationsSection(plant.operations),
        MembersSection(plant.members),
        TrainersSection(plant.registry, plant.trainers),
    ]


def capture(plant: Plant, folder: Path) -> CapturedState:
    return captured(
        sections_of(plant),
        plant.registry,
        gate=plant.operations.gate,
        locks=lambda: [each.condition for each in plant.trainers.all()],
        scratch=lambda: ScratchFile(folder),
    )


def taken_up(memory: MemorySnapshot) -> Plant:
    """Another server that has taken a snapshot up."""
    other = Plant()
    restore_sections(sections_of(other), memory)
    return other


class Pushers:
    """Workers that push to a trainer without end, each the same numbers for the same operation."""

    def __init__(self, plant: Plant, trainer: Any, workers: str) -> None:
        self.plant, self.trainer, self.workers = plant, trainer, workers
        self.pushed = dict.fromkeys(workers, 0)
        self.failures: list[BaseException] = []
        self._end = threading.Event()

    def gradients(self, worker: str, sequence: int) -> dict[str, Any]:
        random = np.random.default_rng([ord(worker), sequence])
        ids = np.unique(random.integers(0, ROWS, 40))
        rows = random.integers(-3, 4, (len(ids), WIDTH)).astype("f4")
        return {"table": (ids, rows), "dense": full(sequence % 5 + 1, (50, 60)), "b": full(1, (3,))}

    def _work(self, worker: str) -> None:
        try:
            while not self._end.is_set():
                self.push(worker)
        except BaseException as err:
            self.failures.append(err)

    def push(self, worker: str) -> None:
        sequence = self.pushed[worker] + 1
        # Nothing is acknowledged: the window has all of them.
        operation = Operation(identity_of(worker), sequence, 1)
        self.plant.push(
            self.trainer, worker, operation=operation, **self.gradients(worker, sequence)
        )
        self.pushed[worker] = sequence

    @contextmanager
    def running(self) -> Iterator[None]:
        threads = [
            threading.Thread(target=self._work, args=(each,), daemon=True) for each in self.workers
        ]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._end.set()
            for thread in threads:
                thread.join(WAIT_S)
        assert self.failures == []

    def await_pushes(self, more: int) -> None:
        until = sum(self.pushed.values()) + more
        while sum(self.pushed.values()) < until and not self.failures:
            threading.Event().wait(0.001)


def expected(pushers: Pushers, counts: dict[str, int]) -> dict[str, np.ndarray[Any, Any]]:
    """What the parameters are after so many pushes of each worker, by sgd with the rate 1."""
    sums = {"table": np.zeros((ROWS, WIDTH), "f4"), "dense": full(0, (50, 60)), "b": full(0, (3,))}
    for worker, count in counts.items():
        for sequence in range(1, count + 1):
            for name, gradient in pushers.gradients(worker, sequence).items():
                if isinstance(gradient, tuple):
                    sums[name][gradient[0]] -= gradient[1]
                else:
                    sums[name] -= gradient
    return sums


def test_values_states_counts_and_answers_are_those_of_one_moment(tmp_path: Path) -> None:
    """Three workers push all the while; several snapshots are taken, and read slowly."""
    plant = Plant()
    plant.create("table", (ROWS, WIDTH), stype="row_sparse", grad_stype="row_sparse")
    plant.create("dense", (50, 60))
    plant.create("b", (3,), contexts=(cpu(0), cpu(1)))
    pushers = Pushers(plant, plant.trainer("table", "b", "dense"), "abc")
    seen = []
    with pushers.running():
        for _ in range(4):
            pushers.await_pushes(20)
            state = capture(plant, tmp_path)
            pushers.await_pushes(30)
            memory = MemorySnapshot(state.sections())
            state.release()
            seen.append(memory)
    for memory in seen:
        other = taken_up(memory)
        counts = {
            worker: max(window.answers, default=0)
            for window in other.operations.saved()
            for worker in "abc"
            if window.identity == identity_of(worker)
        }
        assert sum(counts.values()) == other.trainers.find("t").info().num_steps > 0
        for name, value in expected(pushers, counts).items():
            np.testing.assert_array_equal(other.value(name), value, err_msg=str(counts))
        np.testing.assert_array_equal(other.value("b"), other.value("b", cpu(1)))
        with other.registry.hold(["dense"]) as (parameter,):
            assert parameter.counter == 1 + sum(counts.values())
    assert plant.account.used_bytes < 2 * 1024 * 1024, "nothing is held any more"


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adagrad", "ftrl"])
@pytest.mark.parametrize("lazy", [True, False])
def test_optimizer_states_go_with_their_values(tmp_path: Path, optimizer: str, lazy: bool) -> None:
    """A server that goes on from the snapshot comes to the very same values and states."""
    options: dict[str, Any] = {"learning_rate": 0.25}
    if optimizer == "sgd":
        options |= {"momentum": 0.5}
    if optimizer in ("sgd", "adam"):
        options |= {"lazy_update": lazy}
    plant = Plant()
    plant.create("table", (ROWS, WIDTH), stype="row_sparse", grad_stype="row_sparse", init="one")
    plant.create("dense", (50, 60), init="one")
    plant.create("b", (3,))
    trainer = plant.trainer("table", "dense", "b", optimizer=optimizer, optimizer_params=options)
    pushers = Pushers(plant, trainer, "a")
    for _ in range(5):
        pushers.push("a")
    state = capture(plant, tmp_path)
    later = iter(range(10))

    def push_between() -> None:
        if next(later, None) is not None:
            pushers.push("a")

    push_between()
    sections = state.sections()
    for section in sections.values():
        for index, array in enumerate(section.arrays):
            section.arrays[index] = _disturbed(array, push_between)  # type: ignore[index]
    memory = MemorySnapshot(sections)
    state.release()
    other = taken_up(memory)
    again = Pushers(other, other.trainers.find("t"), "a")
    again.pushed["a"] = 5
    while again.pushed["a"] < pushers.pushed["a"]:
        again.push("a")
    assert pushers.pushed["a"] == 15
    assert other.values() == plant.values()
    one, two = (_states(each) for each in (plant, other))
    assert one == two


def _disturbed(array: Any, disturb: Any) -> Any:
    def blocks() -> Iterator[Any]:
        for piece in array.blocks():
            yield piece
            disturb()

    return replace(array, blocks=blocks)


def _states(plant: Plant) -> dict[str, bytes]:
    stepped = plant.trainers.find("t").updates.stepped()
    return {
        f"{name} {state} {entry.count}": host_array(
            plant.registry.devices.backend(cpu()), buffer
        ).tobytes()
        for name, entry in stepped.items()
        for states in entry.states.values()
        for state, buffer in states.items()
    }


def test_table_is_not_copied_and_a_dense_value_once(tmp_path: Path) -> None:
    plant = Plant()
    plant.create(
        "table", (ROWS, WIDTH), stype="row_sparse", grad_stype="row_sparse", grad_req="null"
    )
    plant.create("dense", (500, 600), grad_req="null")
    used = plant.account.used_bytes
    state = capture(plant, tmp_path)
    assert plant.account.used_bytes == used
    for number in range(3):
        write_region(plant, number)
        write_row(plant, 7 + number)
        # A copy of the dense value, and places in the scratch file for the table.
        assert plant.account.used_bytes < used + 500 * 600 * 4 + ROWS * WIDTH * 4 * 0.04
    with plant.registry.hold(["table"]) as (parameter,):
        table = parameter.copies[cpu()]
        assert table.readers == 0
    memory = MemorySnapshot(state.sections())
    assert plant.account.used_bytes <= used + ROWS * WIDTH * 4 * 0.04, "what was read is let go of"
    state.release()
    assert plant.account.used_bytes == used
    with plant.registry.hold(["table"]) as (parameter,):
        assert parameter.copies[cpu()] is table
        assert table.hold is None
    assert list(memory.stored) == ["operations/" + key for key in _WINDOW], "all zeros"


_WINDOW = ("identities", "floors", "counts", "sequences", "sizes", "answers")


def stage(plant: Plant, head: TensorHead, *arrays: Any) -> ValueStage:
    made = ValueStage(plant.registry)
    for place, array in zip(made.place(head), arrays, strict=True):
        place[...] = array
    return made


def write_region(plant: Plant, value: float) -> None:
    head = TensorHead(
        "dense", (1, 600), np.dtype("f4"), region=((3, 1, 1), (0, 600, 1)), mode="assign"
    )
    stage(plant, head, np.full((1, 600), value + 1, "f4")).commit()


def write_row(plant: Plant, row: int) -> None:
    head = TensorHead(
        "table",
        (ROWS, WIDTH),
        np.dtype("f4"),
        stype="row_sparse",
        num_rows=1,
        mode="assign_rows",
    )
    stage(plant, head, [row], np.ones((1, WIDTH), "f4")).commit()


def test_write_does_not_fail_where_a_copy_for_the_snapshot_does_not_fit(tmp_path: Path) -> None:
    size = 2000 * 600 * 4
    plant = Plant(memory_limit=int(size * 1.5))
    plant.create("dense", (2000, 600), init="one", grad_req="null")
    state = capture(plant, tmp_path)
    for number in range(3):
        write_region(plant, number)
    memory = MemorySnapshot(state.sections())
    state.release()
    (array,) = (memory.stored[key] for key in memory.stored if key.startswith("parameters/"))
    assert (array == 1).all()
    assert plant.value("dense")[3, 0] == 3
    # Whoever reads is another matter.
    with plant.registry.hold(["dense"]) as (parameter,):
        parameter.copies[cpu()].readers += 1
    with pytest.raises(MemoryLimitError):
        write_region(plant, 9)


def test_whole_writes_of_a_table_of_several_copies(tmp_path: Path) -> None:
    plant = Plant()
    plant.create("table", (ROWS, WIDTH), stype="row_sparse", contexts=(cpu(0), cpu(1)), init="one")
    state = capture(plant, tmp_path)
    head = TensorHead("table", (ROWS, WIDTH), np.dtype("f4"), mode="assign")
    for number in (5, 6):
        stage(plant, head, np.full((ROWS, WIDTH), number, "f4")).commit()
        write_row(plant, 3)
    memory = MemorySnapshot(state.sections())
    state.release()
    other = taken_up(memory)
    for context in (cpu(0), cpu(1)):
        assert (other.value("table", context) == 1).all()


def test_deleted_parameter_is_still_in_a_snapshot_of_before(tmp_path: Path) -> None:
    plant = Plant()
    plant.create("w", (50, 60), init="one")
    plant.create("v", (50, 60))
    state = capture(plant, tmp_path)
    plant.registry.delete(["w"])
    plant.create("w", (4,))
    other = taken_up(MemorySnapshot(state.sections()))
    state.release()
    assert (other.value("w") == full(1, (50, 60))).all()


def test_mark_is_called_while_everything_is_held(tmp_path: Path) -> None:
    plant = Plant()
    plant.create("w", (2, 3))
    entered: list[bool] = []

    def mark() -> str:
        with plant.registry.hold(["w"]) as (parameter,):
            others: list[bool] = []
            thread = threading.Thread(
                target=lambda: others.append(parameter.lock.acquire(blocking=False))
            )
            thread.start()
            thread.join(WAIT_S)
        entered.extend(others)
        return "here"

    arguments: dict[str, Any] = {
        "standstill": Standstill(plant.operations.gate, list, plant.registry),
        "devices": plant.registry.devices,
    }
    state = take(sections_of(plant), mark=mark, **arguments)
    assert (state.mark, entered) == ("here", [False])
    state.release()

    def refuse() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        take(sections_of(plant), mark=refuse, **arguments)
    with plant.registry.hold(["w"]) as (parameter,):
        assert parameter.copies[cpu()].hold is None
    names: Sequence[str] = plant.registry.names()
    assert names == ["w"]
