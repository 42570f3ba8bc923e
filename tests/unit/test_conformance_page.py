"""docs/conformance.md lists what the tests list."""

from __future__ import annotations

from tests.conformance.document import PAGE, page


def test_the_page_is_that_of_the_list() -> None:
    assert PAGE.read_text() == page(), "run: .venv/bin/python -m tests.conformance.document"
