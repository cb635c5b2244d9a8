"""`--preview` keeps a contact sheet of the clip that is being made."""

import itertools

import numpy as np
import PIL.Image
import pytest

from ltx2_diffusers.cli.preview import ContactSheet
from ltx2_diffusers.media.reading import read_video
from tests.cli.running import QUICK, SMALL, STAGED, generate, manifest
from tests.pipelines.tiny import PROMPT, ours, seeded


def pictures(sheet: np.ndarray, count: int, height: int, width: int) -> list[np.ndarray]:
    """Frames of a contact sheet, three in a row."""
    places = [(4 + i // 3 * (height + 4), 4 + i % 3 * (width + 4)) for i in range(count)]
    return [sheet[top : top + height, left : left + width] for top, left in places]


def test_a_sheet_lies_beside_the_output_and_shows_the_finished_clip(tmp_path):
    path = tmp_path / "out.mp4"
    assert generate(path, "--preview", "--no-audio", *SMALL[:4], "--num-frames", "1", *QUICK) == 0
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out.mp4", "out.mp4.json", "out.preview.png"]
    sheet = np.asarray(PIL.Image.open(tmp_path / "out.preview.png")).astype(int)
    (shown,) = pictures(sheet, 1, 64, 64)
    # The file has lost a little in compression.
    assert np.abs(shown - read_video(path)[0].numpy()).mean() < 8


def test_watching_changes_nothing(tmp_path):
    for name, options in (
        ("watched", ["--preview", str(tmp_path / "sheet.jpg"), "--preview-every", "1"]),
        ("not", []),
    ):
        assert generate(tmp_path / f"{name}.mp4", "--two-stage", *options, *STAGED, *QUICK) == 0
    assert (tmp_path / "watched.mp4").read_bytes() == (tmp_path / "not.mp4").read_bytes()
    assert manifest(tmp_path / "watched.mp4")["options"] == manifest(tmp_path / "not.mp4")["options"]
    assert PIL.Image.open(tmp_path / "sheet.jpg").format == "JPEG"


@pytest.mark.parametrize(("steps", "every", "written"), [(4, 3, [3, 4]), (4, 2, [2, 4]), (3, 5, [3])])
def test_a_sheet_is_written_as_the_clip_is_made(tmp_path, steps, every, written):
    sheet, seen = ContactSheet(tmp_path / "sheet.png", every), []

    def watch(pipeline, step, timestep, tensors):
        before = sheet.path.read_bytes() if sheet.path.exists() else None
        sheet(pipeline, step, timestep, tensors)
        if sheet.path.exists() and sheet.path.read_bytes() != before:
            seen.append(step + 1)

    ours()(
        PROMPT,
        width=96,
        height=64,
        num_frames=33,
        num_inference_steps=steps,
        guidance_scale=1.0,
        generator=seeded(1),
        callback_on_step_end=watch,
        callback_on_step_end_tensor_inputs=ContactSheet.inputs,
        output_type="latent",
    )
    assert seen == written
    shown = np.asarray(PIL.Image.open(sheet.path))
    assert shown.shape == (2 * 68 + 20, 3 * 100 + 4, 3)
    frames = pictures(shown.astype(int), 5, 64, 96)
    assert min(np.abs(one - other).mean() for one, other in itertools.pairwise(frames)) > 1
