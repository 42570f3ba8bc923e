"""docs/conformance.md, written from the list of differences.

Run `python -m tests.conformance.document` after a change of the list.
"""

from __future__ import annotations

from pathlib import Path

from tests.conformance.differences import DIFFERENCES

PAGE = Path(__file__).parents[2] / "docs" / "conformance.md"

_HEAD = """# Conformance with MXNet 1.9.1

`make conformance` installs MXNet 1.9.1 into an environment of its own and runs the same programs
on it and on paramd: a fixed set of cases for each line of a numbered list of Gluon's semantics, and
random programs over the whole surface. Values, dtypes, shapes, classes of exceptions, the facts in
their messages and warnings are compared; random initial values by their distribution. What a
trainer's steps compute may differ by rounding: relative to the larger of the value and 1, by 4e-6
for float32 and float64 (MXNet takes rates as float32) and 4e-3 for float16. The members of the
classes and their signatures are read from the installed MXNet and compared too.

A program of MXNet is run as a user of MXNet would: a deferred parameter gets its forward pass, a
row_sparse one its Trainer, which paramd does not need, and a gradient that was written counts as
one that autograd has written. A distributed key-value store of MXNet needs a scheduler and servers;
in its place stands its local one, which adds up over contexts what the workers of paramd push, and
answers that it is distributed.

These are all the differences on purpose. Each has a program in the tests, and an entry that no
longer differs fails.

| | MXNet 1.9.1 | paramd | why |
| --- | --- | --- | --- |
"""


def page() -> str:
    """The text of the page."""
    rows = [
        f"| {' | '.join(map(_cell, (each.name, each.mxnet, each.paramd, each.reason)))} |"
        for each in DIFFERENCES
    ]
    return _HEAD + "\n".join(rows) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


if __name__ == "__main__":
    PAGE.write_text(page())
