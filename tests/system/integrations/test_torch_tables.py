"""`paramd.torch`: embeddings of which rows are pulled and pushed."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

from paramd import Session, init
from paramd.errors import NotInitializedError
from tests.system.integrations.conftest import Together

torch = pytest.importorskip("torch", reason="PyTorch is not installed: make frameworks")
integration = pytest.importorskip("paramd.torch", reason="PyTorch is not installed")

RATE = 0.125
BATCHES = ([[1, 3, 3], [0, 1, 9]], [[4, 4, 4], [9, 3, 1]])
TOUCHED = [0, 1, 3, 4, 9]
UNTOUCHED = [2, 5, 6, 7, 8]


class Bags(torch.nn.Module):  # type: ignore[name-defined, misc]
    """A sparse bag, a sparse embedding below another module, a dense layer."""

    def __init__(self, dtype: Any = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.bag = torch.nn.EmbeddingBag(10, 4, mode="sum", sparse=True)
        self.inner = torch.nn.Sequential(torch.nn.Embedding(10, 4, sparse=True))
        self.output = torch.nn.Linear(4, 1)
        self.to(dtype)

    def forward(self, ids: Any) -> Any:
        return self.output(self.bag(ids) + self.inner(ids).sum(1))


def fresh_rows(remote: Any) -> None:
    remote.pull_rows({"bag": None, "inner.0": None})


def test_weights_of_sparse_embeddings_are_row_sparse(session: Session) -> None:
    module = torch.nn.ModuleDict(
        {
            "sparse": torch.nn.Embedding(10, 4, sparse=True),
            "bag": torch.nn.EmbeddingBag(10, 4, sparse=True),
            "dense": torch.nn.Embedding(10, 4),
        }
    )
    remote = integration.attach(module, session=session)
    assert {name: (each.stype, each.grad_stype) for name, each in remote.parameters.items()} == {
        "sparse.weight": ("row_sparse", "row_sparse"),
        "bag.weight": ("row_sparse", "row_sparse"),
        "dense.weight": ("default", "default"),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_sparse_training_gives_what_a_local_optimizer_gives(session: Session, dtype: Any) -> None:
    module, expected = Bags(dtype), Bags(dtype)
    start = copy.deepcopy(expected)
    remote = integration.attach(
        module, "sgd", {"learning_rate": RATE}, prefix="net_", session=session
    )
    optimizer = torch.optim.SGD(expected.parameters(), lr=RATE)
    for batch in BATCHES:
        ids = torch.tensor(batch)
        remote.pull_rows({"bag": ids, "inner.0": ids})
        module(ids).sum().backward()
        remote.step(1)
        optimizer.zero_grad()
        expected(ids).sum().backward()
        optimizer.step()
    fresh_rows(remote)
    # bfloat16 has 8 bits; sums of a few of its numbers in another order.
    tolerance = (
        {"rtol": 1e-6, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 0, "atol": 0.05}
    )
    torch.testing.assert_close(module.state_dict(), expected.state_dict(), **tolerance)
    assert torch.equal(module.bag.weight[UNTOUCHED], start.bag.weight[UNTOUCHED])
    assert (module.bag.weight[TOUCHED] != start.bag.weight[TOUCHED]).any(dim=1).all()


def test_adagrad_on_rows_gives_what_a_local_optimizer_gives(session: Session) -> None:
    module, expected = Bags(), Bags()
    remote = integration.attach(module, "adagrad", {"learning_rate": RATE}, session=session)
    optimizer = torch.optim.Adagrad(expected.parameters(), lr=RATE, eps=0)
    with torch.sparse.check_sparse_tensor_invariants():
        for batch in BATCHES:
            ids = torch.tensor(batch)
            remote.pull_rows({"bag": ids, "inner.0": ids})
            module(ids).sum().backward()
            remote.step(1)
            optimizer.zero_grad()
            expected(ids).sum().backward()
            optimizer.step()
    fresh_rows(remote)
    # MXNet adds its epsilon (1e-7) below the root, PyTorch beside it.
    torch.testing.assert_close(module.state_dict(), expected.state_dict(), rtol=1e-4, atol=1e-5)


def test_only_the_rows_asked_for_are_brought(session: Session) -> None:
    module, other = Bags(), Bags()
    other.bag.weight.detach().zero_()
    integration.attach(module, session=session)
    remote = integration.attach(other, session=session)
    remote.pull_rows({"bag": [[7, 2], [2, 7]]})
    assert torch.equal(other.bag.weight[[2, 7]], module.bag.weight[[2, 7]])
    assert not other.bag.weight[[0, 1, 3, 4, 5, 6, 8, 9]].any()
    with pytest.raises(IndexError, match=r"bag\.weight"):
        remote.pull_rows({"bag": [10]})
    with pytest.raises(KeyError, match=r"'output' is no sparse embedding.*'bag', 'inner\.0'"):
        remote.pull_rows({"output": [1]})


def test_dense_gradient_of_a_table_is_pushed(session: Session) -> None:
    module = Bags()
    remote = integration.attach(module, "sgd", {"learning_rate": RATE}, session=session)
    expected = copy.deepcopy(module.bag.weight.detach())
    ids = torch.tensor(BATCHES[0])
    # The penalty's gradient is dense, and so the sum is.
    (module(ids).sum() + (module.bag.weight**2).sum()).backward()
    assert module.bag.weight.grad.layout == torch.strided
    expected -= RATE * module.bag.weight.grad
    remote.step(1)
    fresh_rows(remote)
    torch.testing.assert_close(module.bag.weight.detach(), expected, rtol=0, atol=0)


def test_table_tied_to_a_dense_layer_is_dense(session: Session) -> None:
    module = torch.nn.ModuleDict(
        {"words": torch.nn.Embedding(10, 4, sparse=True), "out": torch.nn.Linear(4, 10, bias=False)}
    )
    module["out"].weight = module["words"].weight
    remote = integration.attach(module, "sgd", {"learning_rate": RATE}, session=session)
    assert remote.parameters["words.weight"].stype == "default"
    start = module["words"].weight.detach().clone()
    module["words"](torch.tensor([1, 1])).sum().backward()
    remote.step(1)
    start[1] -= 2 * RATE
    torch.testing.assert_close(module["words"].weight.detach(), start, rtol=0, atol=0)


class Lookup(torch.nn.Module):  # type: ignore[name-defined, misc]
    """A table on the server alone, and a dense layer."""

    def __init__(self, rows: int = 10, start: Any = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words = integration.Embedding(rows, 4, init=start)
        self.output = torch.nn.Linear(4, 1)

    def forward(self, ids: Any) -> Any:
        return self.output(self.words(ids).sum(1))


class Local(torch.nn.Module):  # type: ignore[name-defined, misc]
    """The same with a table of its own."""

    def __init__(self, weight: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words = torch.nn.Embedding.from_pretrained(weight, freeze=False, sparse=True)
        self.output = torch.nn.Linear(4, 1)

    def forward(self, ids: Any) -> Any:
        return self.output(self.words(ids).sum(1))


def table_of(remote: Any, rows: int = 10) -> Any:
    table = remote.parameters[f"{remote.parameters.prefix}words.weight"]
    return torch.from_numpy(table.row_sparse_data(np.arange(rows)).data.asnumpy())


def test_lookups_train_a_table_as_an_embedding_does(session: Session) -> None:
    module = Lookup()
    remote = integration.attach(
        module, "sgd", {"learning_rate": RATE}, prefix="net_", session=session
    )
    expected = Local(table_of(remote))
    expected.output.load_state_dict(module.output.state_dict())
    optimizer = torch.optim.SGD(expected.parameters(), lr=RATE)
    for batch in BATCHES:
        ids = torch.tensor(batch)
        # Two forward and backward passes, whose gradients add up.
        for part in (ids[:1], ids):
            output = module(part)
            torch.testing.assert_close(output, expected(part), rtol=1e-6, atol=1e-6)
            (output**2).sum().backward()
            (expected(part) ** 2).sum().backward()
        remote.step(2)
        for each in expected.parameters():
            each.grad /= 2
        optimizer.step()
        optimizer.zero_grad()
    table = table_of(remote)
    torch.testing.assert_close(table, expected.words.weight.detach(), rtol=1e-5, atol=1e-6)
    assert module.output.state_dict().keys() == expected.output.state_dict().keys()
    assert list(module.state_dict()) == ["output.weight", "output.bias"]


def test_workers_share_a_table(session: Session, together: Together) -> None:
    batch = torch.tensor(BATCHES[0])

    def work(own: Session, rank: int) -> None:
        module = Lookup(start=init.Constant(1.0))
        remote = integration.attach(module, "sgd", {"learning_rate": RATE}, session=own)
        with torch.no_grad():
            module.output.weight.fill_(1.0)
        module(batch[rank : rank + 1]).sum().backward()
        remote.step(1)

    together(work)
    counts = np.bincount(batch.flatten().numpy(), minlength=10)
    expected = 1.0 - RATE * counts[:, None] * np.ones((1, 4))
    held = session.parameters()["words.weight"].row_sparse_data(np.arange(10)).data.asnumpy()
    np.testing.assert_array_equal(held, expected)


def test_table_is_larger_than_what_the_worker_holds(session: Session) -> None:
    module = Lookup(rows=2_000_000, start="zeros")
    remote = integration.attach(module, "sgd", {"learning_rate": RATE}, session=session)
    module(torch.tensor([[1_999_999, 5]])).sum().backward()
    (pushed,) = [ids for ids, _ in module.words._gradients]
    assert pushed.tolist() == [5, 1_999_999]
    weight = module.output.weight.detach().clone()
    remote.step(1)
    rows = remote.parameters["words.weight"].row_sparse_data([4, 5]).data.asnumpy()
    np.testing.assert_array_equal(rows, [[0] * 4, (-RATE * weight[0]).tolist()])


def test_lookups_without_a_gradient_leave_nothing(session: Session) -> None:
    module = Lookup()
    with pytest.raises(NotInitializedError, match=r"attach\(\) the module"):
        module(torch.tensor([[1]]))
    remote = integration.attach(module, "sgd", {"learning_rate": RATE}, session=session)
    module(torch.tensor([[1, 2]]))
    with torch.no_grad():
        assert not module(torch.tensor([[1, 2]])).requires_grad
    assert module.words._gradients == []
    module(torch.tensor([[1, 2]])).sum().backward()
    remote.zero_grad()
    assert module.words._gradients == []
    assert module(torch.zeros((2, 0), dtype=torch.int64)).shape == (2, 1)
    with pytest.raises(IndexError):
        module(torch.tensor([[10]]))


class Scores(torch.utils.data.Dataset):  # type: ignore[name-defined, misc]
    """Looks up rows in the processes of a DataLoader."""

    def __init__(self, module: Any) -> None:
        self.module = module

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Any:
        with torch.no_grad():
            return self.module(torch.tensor([[index, index + 1]]))[0]


@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_forked_loader_uses_the_module(session: Session) -> None:
    module = Lookup()
    remote = integration.attach(module, "sgd", {"learning_rate": RATE}, session=session)
    loader = torch.utils.data.DataLoader(
        Scores(module), num_workers=1, multiprocessing_context="fork", batch_size=2
    )
    found = torch.cat(list(loader))
    expected = torch.cat([Scores(module)[index][None] for index in range(4)])
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    module(torch.tensor([[1, 2]])).sum().backward()
    remote.step(1)
