"""What is wrong with a call in stages is said before any model runs."""

import PIL.Image
import pytest
import torch

from ltx2_diffusers.pipelines.arguments import Stage
from ltx2_diffusers.pipelines.conditions.pictures import LTX2ReferenceCondition, LTX2VideoCondition
from ltx2_diffusers.pipelines.recipes.two_stage import LTX2TwoStagePipeline
from tests.media.clips import tone
from tests.pipelines.recipes import (
    CALL,
    CLIP,
    OTHER,
    PICTURE,
    RATE,
    SOUND,
    TWO_STAGES,
    assert_tokens,
    encoded,
    no_computation,
    staged,
    watched,
)
from tests.pipelines.tiny import NO_GUIDANCE, seeded

QUICK = {**CALL, **TWO_STAGES, **NO_GUIDANCE}
SHORT = tone(0.2, RATE)
WIDE = PIL.Image.new("RGB", (100, 20), "red")
UP = "latent_upsampler"
REFERENCE = LTX2ReferenceCondition(torch.from_numpy(CLIP[:9]).movedim(-1, 1))


@pytest.fixture(scope="module")
def pipe() -> LTX2TwoStagePipeline:
    return staged()


def generate(pipe, **kwargs):
    return pipe(**{**QUICK, "generator": seeded(1), **kwargs})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"height": 96}, "`height` has to be divisible by 64 but is 96; use 64 or 128"),
        ({"image": PICTURE, "conditions": LTX2VideoCondition(OTHER)}, "two conditions claim video frame 0"),
        (
            {"conditions": [LTX2VideoCondition(PICTURE, 1), LTX2VideoCondition(OTHER, frame=1)]},
            "two conditions claim video frame 1",
        ),
        ({"conditions": LTX2VideoCondition(PICTURE, frame=9)}, "`frame` 9 lies outside the clip; use -9 to 8"),
        ({"conditions": LTX2VideoCondition(PICTURE, 2)}, "`index` 2 lies outside the clip; use -2 to 1"),
        ({"audio": SHORT, "sampling_rate": RATE}, r"lasts 0.20 s and the video 0.38 s; .*audio_fit=\"pad\""),
        ({"audio": SOUND}, "needs its `sampling_rate`"),
        ({"audio": SOUND, "sampling_rate": 0}, "`sampling_rate` has to be greater than 0"),
        ({"audio": SOUND, "sampling_rate": RATE, "audio_start_s": 1.0}, "leaves nothing after `audio_start_s` 1.0"),
        ({"audio": SOUND, "sampling_rate": RATE, "audio_start_s": -0.1}, "`audio_start_s` has to be at least 0"),
        ({"audio": SOUND, "sampling_rate": RATE, "audio_fit": "loop"}, "`audio_fit` has to be one of"),
        ({"audio": SOUND, "sampling_rate": RATE, "audio_cond_noise_scale": 2.0}, "`audio_cond_noise_scale`"),
        ({"audio": SOUND[0], "sampling_rate": RATE}, r"\[C, N\] or \[B, C, N\]"),
        ({"audio": (SOUND * 30000).to(torch.int16), "sampling_rate": RATE}, "`audio` has to be a floating-point"),
        ({"audio": SOUND.expand(3, -1, -1), "sampling_rate": RATE}, "3 sounds for a batch of 1"),
        ({"audio": SOUND, "sampling_rate": RATE, "generate_audio": False}, "`generate_audio` is False"),
        ({"reference_conditions": LTX2ReferenceCondition(WIDE, downscale_factor=3)}, "multiples of 96"),
        ({"reference_conditions": LTX2ReferenceCondition("nowhere.mp4")}, r"nowhere\.mp4"),
        ({"stage_2_adapters": None}, 'needs its distilled LoRA: .*adapter_name="distilled"'),
        ({"stage_2_adapters": {"sharp": 1.0}}, "no LoRA adapter 'sharp' is loaded"),
        ({"stage_1_adapters": {"sharp": 1.0}}, "no LoRA adapter 'sharp' is loaded"),
        ({"stage_2_sigmas": [0.4, 0.9]}, "sigmas"),
        ({"audio_stage": 2}, "`audio_stage` is 2, but there are 2 stages; use -2 to 1"),
        ({"stages": []}, "at least one Stage"),
        ({"stages": [0.5, 1.0]}, "`stages` has to be a list of Stage"),
        ({"stages": [Stage(spatial_scale=0.5)]}, "the last of `stages` has the scales"),
        ({"stages": [Stage(spatial_scale=0.0), Stage()]}, r"`spatial_scale` of a stage has to lie in \(0, 1\]"),
        ({"stages": [Stage(temporal_scale=2.0), Stage()]}, r"`temporal_scale` of a stage has to lie in \(0, 1\]"),
        ({"stages": [Stage(spatial_scale=0.5), Stage()]}, "without an upsampler"),
        ({"stages": [Stage(upsampler=UP)]}, "the first stage has nothing to enlarge"),
        ({"stages": [Stage(), Stage(upsampler=UP)]}, "enlarges .* the stages need"),
        ({"stages": [Stage(spatial_scale=0.5), Stage(upsampler="sharpener")]}, r"components \['sharpener'\]"),
        ({"stages": [Stage(transformer="other")]}, r"components \['other'\]"),
        (
            {"stages": [Stage(temporal_scale=0.5), Stage(upsampler="temporal_upsampler")]},
            r"16 \* k \+ 1 .* use 1 or 17",
        ),
        (
            {"stages": [Stage(scales=(3.0, 7.0))]},
            r"`scales` of a stage .* MultiModalGuiderParams but is \(3\.0, 7\.0\)",
        ),
        ({"stages": [Stage(scales=3.0)]}, "`scales` of a stage .* but is 3.0"),
        ({"stages": [Stage(references=False)], "reference_conditions": REFERENCE}, "no stage takes references"),
        ({"stages": [Stage(noise_scale=1.5)]}, "`noise_scale`"),
        ({"stages": [Stage(sampler="heun")]}, "heun"),
    ],
)
def test_wrong_calls_are_named_before_any_computation(pipe, arguments, message):
    said = {"stage_2_sigmas": None, "stage_2_adapters": None} if "stages" in arguments else {}
    with no_computation(pipe), pytest.raises((ValueError, FileNotFoundError), match=message):
        generate(pipe, **said, **arguments)


@pytest.mark.parametrize("content", [b"", b"not a media file"], ids=["empty", "corrupt"])
@pytest.mark.parametrize(
    ("argument", "name"),
    [("image", "first.png"), ("image", "first.mp4"), ("audio", "sound.wav"), ("reference_conditions", "clip.mp4")],
)
def test_damaged_files_are_named_before_any_computation(pipe, tmp_path, argument, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    value = LTX2ReferenceCondition(path) if argument == "reference_conditions" else path
    with no_computation(pipe), pytest.raises(ValueError, match=name.replace(".", r"\.")):
        generate(pipe, **{argument: value})


def test_a_missing_upsampler_is_named(pipe):
    bare = LTX2TwoStagePipeline.from_pipe(pipe, latent_upsampler=None)
    with no_computation(bare), pytest.raises(ValueError, match=r"components \['latent_upsampler'\]"):
        generate(bare)


def test_a_reference_of_another_aspect_covers_the_frame(pipe):
    """The rule for pictures: scaled until the frame is covered, and cropped in the middle."""
    seen = watched(pipe, **QUICK, reference_conditions=LTX2ReferenceCondition(WIDE))
    assert_tokens(seen.steps[0]["latents"], 2, [encoded(pipe, WIDE, 32, 32)])
