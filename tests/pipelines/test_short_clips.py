"""Clips shorter than half an audio latent (20 ms) have sound: that of one latent, cut to their length."""

from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

from ltx2_diffusers import (
    LTX2AudioReferenceCondition,
    LTX2AudioToVideoPipeline,
    LTX2ConditionPipeline,
    LTX2DistilledPipeline,
    LTX2ExtendPipeline,
    LTX2ImageToVideoPipeline,
    LTX2InContextPipeline,
    LTX2KeyframeInterpolationPipeline,
    LTX2Pipeline,
    LTX2RetakePipeline,
    LTX2TextToAudioPipeline,
    LTX2TwoStagePipeline,
    LTX2VideoCondition,
    LTX2VideoToAudioPipeline,
)
from tests.pipelines import recipes
from tests.pipelines.tiny import PROMPT, ours, theirs

# One frame of the smallest two-stage size leaves the miniature upsampler a single value to normalise.
SIDE = 128
RATE, SOUND = recipes.RATE, recipes.SOUND
CLIP = np.random.default_rng(0).integers(0, 256, (9, SIDE, SIDE, 3), dtype=np.uint8)
PICTURE = PIL.Image.fromarray(CLIP[0])
CALL = {**recipes.CALL, "height": SIDE, "width": SIDE, "output_type": "np"}
del CALL["num_frames"]
FEW = {name: value for name, value in CALL.items() if name != "num_inference_steps"}
TWO = {**CALL, **recipes.TWO_STAGES}
LENGTHS = [(1, 50.0), (1, 60), (1, 120), (9, 480.0), (1, 1000)]

RECIPES = {
    "text": (LTX2Pipeline, CALL),
    "image": (LTX2ImageToVideoPipeline, {**CALL, "image": PICTURE}),
    "condition": (LTX2ConditionPipeline, {**CALL, "conditions": LTX2VideoCondition(PICTURE)}),
    "sound reference": (
        LTX2InContextPipeline,
        {**CALL, "reference_conditions": LTX2AudioReferenceCondition(SOUND, RATE)},
    ),
    "two stages": (LTX2TwoStagePipeline, TWO),
    "two stages with a given sound": (LTX2TwoStagePipeline, {**TWO, "audio": SOUND, "sampling_rate": RATE}),
    "distilled": (LTX2DistilledPipeline, {**FEW, "two_stage": False}),
    "keyframes": (LTX2KeyframeInterpolationPipeline, {**TWO, "images": [PICTURE]}),
    "sound": (LTX2AudioToVideoPipeline, {**TWO, "audio": SOUND, "sampling_rate": RATE}),
    "a hint of sound": (
        LTX2AudioToVideoPipeline,
        {**TWO, "audio": SOUND, "sampling_rate": RATE, "audio_cond_noise_scale": 0.5},
    ),
}


def check(output: Any, num_frames: int, frame_rate: float) -> None:
    """The frames that were asked for, and sound that is no longer than they are."""
    assert output.frames.shape[1] == num_frames
    rate = output.sampling_rate
    assert 1 <= output.audio.shape[-1] <= max(round(num_frames / frame_rate * rate), 1)
    assert np.isfinite(output.frames).all() and output.audio.isfinite().all()


@pytest.mark.parametrize(("num_frames", "frame_rate"), LENGTHS)
@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.quick_cases(17)
def test_every_recipe_makes_the_shortest_clips(name, num_frames, frame_rate):
    pipeline_class, call = RECIPES[name]
    output = recipes.recipe(pipeline_class)(**call, num_frames=num_frames, frame_rate=frame_rate)
    check(output, num_frames, frame_rate)


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize(("num_frames", "frame_rate"), LENGTHS)
def test_given_clips_may_be_as_short(num_frames, frame_rate):
    clip, call = CLIP[:num_frames], {**CALL, "frame_rate": frame_rate}
    check(recipes.recipe(LTX2VideoToAudioPipeline)(clip, **call), num_frames, frame_rate)
    sound = SOUND[..., : max(1, round(RATE * num_frames / frame_rate))]
    stretch = (0.0, num_frames / frame_rate)
    output = recipes.recipe(LTX2RetakePipeline)(clip, *stretch, **call, audio=sound, sampling_rate=RATE)
    check(output, num_frames, frame_rate)


@pytest.mark.parametrize(("num_frames", "frame_rate"), [(1, 24.0), (1, 25.0), (9, 240.0)])
def test_lengths_that_leave_a_latent_stay_as_in_diffusers(num_frames, frame_rate):
    size = {"num_frames": num_frames, "frame_rate": frame_rate}
    call = {name: CALL[name] for name in ("prompt", "num_inference_steps", "max_sequence_length", "height", "width")}
    assert (
        ours()(**call, **size).audio.shape == theirs()(**call, **size, spatio_temporal_guidance_blocks=[1]).audio.shape
    )


def test_latents_and_saved_files(tmp_path):
    latent = ours()(**CALL | {"output_type": "latent"}, num_frames=1, frame_rate=60.0)
    assert latent.audio.shape[2] == 1
    again = ours()(**CALL, num_frames=1, frame_rate=60.0, latents=latent.frames, audio_latents=latent.audio)
    (path,) = again.save(tmp_path / "clip.mp4")
    assert (tmp_path / "clip.mp4").stat().st_size and path.endswith("clip.mp4")


def test_the_shortest_sound_alone():
    output = recipes.recipe(LTX2TextToAudioPipeline)(PROMPT, duration_s=0.04, **{"num_inference_steps": 2})
    assert output.audio.shape == (1, 2, 240)


def test_an_extension_of_the_shortest_clips_says_what_it_needs():
    call = {**CALL, "num_segments": 2, "overlap_frames": 9, "num_frames": 17, "frame_rate": 480.0}
    with pytest.raises(ValueError, match=r"leave a segment of 1 audio latents .*generate_audio=False"):
        recipes.recipe(LTX2ExtendPipeline)(**call)


def test_a_sound_shorter_than_a_window_of_the_spectrogram_is_encoded():
    short, long = (torch.rand(1, 2, samples, generator=torch.Generator().manual_seed(0)) for samples in (100, 4000))
    assert ours().encode_audio(short, RATE).isfinite().all()
    samples = 16000 * 513 // 16000
    exact = ours().audio_vae.encode_waveform(long[..., :samples], 16000)
    assert torch.equal(ours().encode_audio(long[..., :samples], 16000), ours().audio_vae.normalize_latents(exact))
