"""Curves of the site: how often the miniature is right, by setting, from what `benchmarks.mini_world` measured.

Run `python -m scripts.site_figures` after a measurement; it needs the extra `docs`. A test compares the numbers that the
figure holds with those that were measured.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.mini_world import Rows
from benchmarks.mini_world_tables import CURVES, RESULTS, TITLES, mean
from ltx2_diffusers.atomic import complete_file
from scripts.pages import ROOT

FIGURE = ROOT / "docs" / "images" / "curves.svg"
_PANELS = ("guidance", "stg", "modality", "steps", "sampler")
_COLUMNS, _PANEL_SIZE = 2, (4.2, 2.6)
_LOWEST = 60.0
"""Bottom of the axes unless a score lies lower."""

Curves = dict[str, dict[str, dict[str, float]]]


def curves(scores: Mapping[str, Rows]) -> Curves:
    """Percentages by panel, line and setting, of the scores that there are."""
    lines = {
        "mean of the five": mean,
        "shape": lambda row: row["shape"],
        TITLES["direction"]: lambda row: row["direction"],
    }
    return {
        panel: {
            line: {setting: round(value(row), 1) for setting, row in scores[panel].items()}
            for line, value in lines.items()
        }
        for panel in _PANELS
        if panel in scores
    }


def held(figure: Path) -> Curves:
    """The numbers that a figure was drawn from."""
    text = figure.read_text(encoding="utf-8")
    return json.loads(text.partition("<dc:description>")[2].partition("</dc:description>")[0].replace("&quot;", '"'))


def draw(content: Curves, file: Any) -> None:
    """Draw a panel a score, as SVG that tells its numbers."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "curves", "font.size": 9})
    rows = -(-len(content) // _COLUMNS)
    size = (_COLUMNS * _PANEL_SIZE[0], rows * _PANEL_SIZE[1])
    figure, places = pyplot.subplots(
        rows, min(_COLUMNS, len(content)), figsize=size, squeeze=False, layout="constrained"
    )
    for place, (panel, lines) in zip(places.flat, content.items()):
        for line, points in lines.items():
            place.plot(list(points), list(points.values()), marker="o", markersize=3.5, label=line)
        place.set_xlabel(CURVES[panel].partition(" (")[0])
        place.set_ylabel("clips that are right, in %")
        place.set_ylim(min(_LOWEST, *(min(points.values()) - 2 for points in lines.values())), 101)
        place.tick_params(axis="x", rotation=20 if panel == "sampler" else 0)
        place.grid(alpha=0.3)
    for place in places.flat[len(content) :]:
        place.axis("off")
    places.flat[0].legend(loc="lower right")
    figure.savefig(file, format="svg", metadata={"Date": None, "Description": json.dumps(content)})


def main() -> int:
    """Draw the figure into `docs/images`."""
    with complete_file(FIGURE) as path:
        draw(curves(json.loads(RESULTS.read_text())["scores"]), path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
