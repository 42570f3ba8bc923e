"""Draws results.json: `python -m benchmarks.plot RESULTS.json IMAGE...`, each .svg or .png.

Runs in an environment of its own, which has matplotlib; nothing else of the project does.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

__all__: list[str] = []

Record = Mapping[str, Any]
_PANELS: Final = (
    ("pull of a tensor", "dense", "pull "),
    ("push of a tensor", "dense", "push "),
    ("push and pull", "dense", "push+pull "),
    ("pull of rows", "rows", "pull "),
    ("push of rows", "rows", "push "),
)


def _curves(axes: Any, records: Sequence[Record], systems: Sequence[str], size: str) -> None:
    """Medians over sizes, a line for each system, in the colour of its place in the table."""
    for place, system in enumerate(systems):
        points = sorted(
            (record[size], record["median_ms"]) for record in records if record["system"] == system
        )
        if points:
            style = {"color": f"C{place}", "marker": "o", "markersize": 3}
            axes.plot(*zip(*points, strict=True), label=system, **style)
    axes.set_yscale("log")
    axes.set_ylabel("ms")
    axes.grid(visible=True, which="major", alpha=0.3)


def _bars(axes: Any, records: Sequence[Record], systems: Sequence[str]) -> None:
    for place, system in enumerate(systems):
        rates = [each["samples_per_second"] for each in records if each["system"] == system]
        axes.bar([system] * len(rates), rates, color=f"C{place}")
    axes.tick_params(axis="x", labelrotation=30)
    axes.set_ylabel("samples/s")


def draw(document: Mapping[str, Any], images: Sequence[Path]) -> None:
    """Draws a run's figures into files."""
    matplotlib: Any = importlib.import_module("matplotlib")
    matplotlib.use("agg")
    pyplot: Any = importlib.import_module("matplotlib.pyplot")
    systems, records = list(document["systems"]), document["measurements"]
    figure, grid = pyplot.subplots(2, 4, figsize=(20, 9), layout="constrained")
    panels = list(grid.flat)
    for axes, (title, section, prefix) in zip(panels, _PANELS, strict=False):
        chosen = [
            each
            for each in records
            if each["section"] == section and each["case"].startswith(prefix)
        ]
        _curves(axes, chosen, systems, "size_bytes")
        axes.set_title(title)
        axes.set_xscale("log", base=2)
        axes.set_xlabel("bytes")
    latency = [each for each in records if each["section"] == "latency"]
    _curves(panels[5], latency, systems, "clients")
    panels[5].set_title("pull of 4 KB, median")
    panels[5].set_xscale("log", base=2)
    panels[5].set_xlabel("clients")
    _bars(panels[6], [each for each in records if each["section"] == "embedding"], systems)
    panels[6].set_title("embedding model, 2 workers")
    panels[7].axis("off")
    lines: dict[str, Any] = {}
    for axes in panels:
        handles, labels = axes.get_legend_handles_labels()
        lines.update(zip(labels, handles, strict=True))
    if lines:
        panels[7].legend(lines.values(), lines.keys(), loc="center")
    for image in images:
        figure.savefig(image, dpi=120)


if __name__ == "__main__":
    draw(json.loads(Path(sys.argv[1]).read_text()), [Path(each) for each in sys.argv[2:]])
