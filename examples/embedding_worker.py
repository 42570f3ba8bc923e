"""One worker of the embedding example: `python -m examples.embedding_worker RANK`."""

from __future__ import annotations

import sys

import torch
from tqdm import tqdm

import paramd
import paramd.torch

NUM_WORKERS = 2
WORDS = 5000
TOPICS = 4
LENGTH = 12  # words of a text
ON_TOPIC = 0.6  # share of a text's words that belong to its topic
TRAINING = 8000  # texts
HELD_OUT = 2000
EPOCHS = 3
BATCH = 64


def load_texts() -> tuple[torch.Tensor, torch.Tensor]:
    """Texts (rows of word ids) with their topics: every fourth word belongs to the same one.

    Most of a text's words are of its topic, the others are any: which word belongs to which topic
    is what a model has to find out.
    """
    generator = torch.Generator().manual_seed(7)
    number = TRAINING + HELD_OUT
    topics = torch.randint(TOPICS, (number,), generator=generator)
    words = torch.randint(WORDS, (number, LENGTH), generator=generator)
    on_topic = torch.rand((number, LENGTH), generator=generator) < ON_TOPIC
    texts = torch.where(on_topic, words - words % TOPICS + topics[:, None], words)
    return texts, topics


class Classifier(torch.nn.Module):  # type: ignore[misc]
    """The mean of a text's word vectors, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.words = torch.nn.EmbeddingBag(WORDS, 16, mode="mean", sparse=True)
        self.topics = torch.nn.Linear(16, TOPICS)

    def forward(self, texts: torch.Tensor) -> torch.Tensor:
        """Logits of the topics."""
        return self.topics(self.words(texts))


def train(rank: int) -> None:
    """Trains on this worker's share of the texts."""
    torch.manual_seed(rank)
    torch.set_num_threads(1)
    texts, topics = (part[rank:TRAINING:NUM_WORKERS] for part in load_texts())
    model = Classifier()
    # The first worker's first values become everybody's: attach() works under session.once().
    remote = paramd.torch.attach(model, "adagrad", {"learning_rate": 0.5}, prefix="net_")
    touched = steps = 0
    for epoch in range(EPOCHS):
        order = torch.randperm(len(texts)).split(BATCH)
        for batch in tqdm(order, desc=f"epoch {epoch + 1}", disable=None if rank == 0 else True):
            remote.pull_rows({"words": texts[batch]})
            logits = model(texts[batch])
            torch.nn.functional.cross_entropy(logits, topics[batch], reduction="sum").backward()
            remote.step(len(batch) * NUM_WORKERS)
            touched += len(texts[batch].unique())
            steps += 1
    print(
        f"worker {rank}: {steps} steps; the table has {WORDS} rows, a batch pulled and updated "
        f"{touched / steps:.0f} of them on average",
        flush=True,
    )


def main() -> None:
    """Trains against the server of PARAMD_TARGET."""
    rank = int(sys.argv[1])
    with paramd.connect(worker=f"worker-{rank}", num_workers=NUM_WORKERS):
        train(rank)


if __name__ == "__main__":
    main()
