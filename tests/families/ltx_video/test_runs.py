"""Whole runs against the golden vectors."""

import pytest
import torch

from tests.families.ltx_video.runs import Run, recorded_noise, tiny_pipeline

WITHIN = {"rtol": 0, "atol": 1e-4}


def watched(call):
    """The call with what is seen of its latents after every step."""
    seen = []

    def note(*given):
        seen.append(given[-1]["latents"])

    return {**call, "callback_on_step_end": note}, seen


@pytest.mark.parametrize(
    "name", ["extend_and_keyframe", "v2v_stochastic", "multiscale_dev_t2v", "multiscale_distilled_i2v"]
)
def test_a_run_is_the_originals(name, monkeypatch):
    run = Run(name)
    call, seen = watched(run.call)
    if "media_items_u8" in run.tensors:
        call |= {"media_items": run.pixels("media_items_u8")}
    with recorded_noise(monkeypatch, run.noises) as left:
        frames = tiny_pipeline()(**call, output_type="pt").frames
    assert not left
    final, last = run.tensors["final_tokens"], seen[-1]
    # The original has the tokens beside the video in front.
    extra = last.shape[1] - run.target_tokens
    torch.testing.assert_close(last.roll(extra, 1), final, **WITHIN)
    if "first_pass" in run.tensors:
        first = [latents for latents in seen if latents.shape != last.shape][-1]
        torch.testing.assert_close(first, run.tensors["first_pass"].flatten(2).mT, **WITHIN)
    torch.testing.assert_close(frames[0].movedim(0, 1)[None][..., 3::8, 3::8], run.tensors["frames_thin"], **WITHIN)
    torch.testing.assert_close(frames.mean(dim=(2, 3, 4)), run.tensors["frames_mean"], **WITHIN)
