"""The tables of `docs/miniature.md` that say how good the miniature is, from what `benchmarks.mini_world` measured.

Run `python -m benchmarks.mini_world_tables`; a test holds the page to what it prints.
"""

import json
import statistics
from collections.abc import Callable, Mapping, Sequence

from benchmarks.common import RESULTS_DIR
from benchmarks.mini_world import SAID, Numbers, Rows

RESULTS = RESULTS_DIR / "mini_world.json"
TITLES = {"direction": "motion"}
CURVES = {
    "guidance": "guidance scale (`off`: no other guidance either)",
    "stg": "STG scale",
    "modality": "modality scale",
    "steps": "denoising steps",
    "sampler": "sampler",
    "two_stage": "stages",
    "distilled": "distilled LoRA",
    "precision": "data type",
}
"""Scores whose settings are compared by what captions say."""
DETAILS = (
    ("vae", "17x64x64", {"psnr_db": "PSNR {:.1f} dB", "shape": "shape right {:.0f} %"}),
    ("vae", "17x128x128", {"psnr_db": "PSNR {:.1f} dB", "shape": "shape right {:.0f} %"}),
    ("audio", "audio VAE", {"log_spectral_distance_db": "log-spectral distance {:.1f} dB"}),
    (
        "audio",
        "vocoder",
        {"log_spectral_distance_db": "log-spectral distance {:.1f} dB", "pitch": "pitch right {:.0f} %"},
    ),
    ("image_to_video", "captions", {"first_frame_psnr_db": "first frame {:.1f} dB", "shape": "shape right {:.0f} %"}),
    ("audio_to_video", "no text", {"shape": "shape of the pitch {:.0f} %", "clicks": "clicks at bounces {:.0f} %"}),
    (
        "video_to_audio",
        "no text",
        {"pitch": "pitch of the shape {:.0f} %", "pan_error": "place of the sound off by {:.3f}"},
    ),
    ("retake", "retaken", {"kept_psnr_db": "kept frames {:.0f} dB", "seam_step": "step at the seam {:.3f}"}),
    ("retake", "drawn", {"seam_step": "step at the seam {:.3f}"}),
    ("extension", "extended", {"same_pitch": "pitch kept {:.0f} %", "seam_step": "step at the seam {:.3f}"}),
    ("extension", "drawn", {"seam_step": "step at the seam {:.3f}"}),
    ("in_context", "outline", {"overlap": "overlap with the outline's area {:.2f}"}),
    ("in_context", "no reference", {"overlap": "overlap {:.2f}"}),
    (
        "tiling",
        "tiled",
        {"psnr_to_whole_db": "{:.1f} dB to decoding as a whole", "psnr_db": "{:.1f} dB to what is drawn"},
    ),
    ("precision", "bfloat16", {"psnr_to_float32_db": "{:.1f} dB to float32"}),
)
"""What else is measured: score, setting, and how its numbers are written."""


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows, the first of them titles, in Markdown."""
    titles, *others = rows
    return "\n".join(f"| {' | '.join(row)} |" for row in (titles, ["---"] * len(titles), *others))


def main_table(rows: Rows) -> str:
    """What captions say, with and without them."""
    names = [TITLES.get(name, name) for name in SAID]
    said = {"captions": "with the prompt", "no text": "without any text"}
    return table(
        [["", *names], *([text, *(f"{rows[name][key]:.0f} %" for key in SAID)] for name, text in said.items())]
    )


def mean(row: Numbers) -> float:
    """Of the rates of what captions say."""
    return statistics.fmean(row[name] for name in SAID if row.get(name) is not None)  # type: ignore[misc]


def curves_table(scores: Mapping[str, Rows]) -> str:
    """Rates by setting, a score in a row."""
    found = [
        [title, by_setting(scores[name], lambda row: row["shape"]), by_setting(scores[name], mean)]
        for name, title in CURVES.items()
        if name in scores
    ]
    return table([["setting", "shape right, in %", "mean of the five, in %"], *found])


def by_setting(rows: Rows, number: Callable[[Numbers], float | None]) -> str:
    """A number of each setting."""
    return ", ".join(f"{setting}: {number(row):.0f}" for setting, row in rows.items())


def details_table(scores: Mapping[str, Rows]) -> str:
    """Numbers of single scores."""
    found = [
        [
            name.replace("_", " ") + f", {setting}",
            ", ".join(text.format(scores[name][setting][key]) for key, text in said.items()),
        ]
        for name, setting, said in DETAILS
        if name in scores
    ]
    return table([["score", "measured"], *found])


def tables() -> list[str]:
    """All of them, of the written results."""
    scores = json.loads(RESULTS.read_text())["scores"]
    curves = [curves_table(scores)] if CURVES.keys() & scores.keys() else []
    return [main_table(scores["default"]), *curves, details_table(scores)]


if __name__ == "__main__":
    print("\n\n".join(tables()))
