"""DFR passes beside diffusers' on equal components, and what is different on purpose."""

import copy
from functools import cache
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, LTXEulerAncestralRFScheduler

from ltx2_diffusers import LTX2Scheduler, LTX2VideoCondition, LTX2VideoDiffusionDecoderModel, epilogue_tiles
from ltx2_diffusers.adapters.mixin import ReferenceFactors
from ltx2_diffusers.media.reading import read_video
from tests.contract import both
from tests.models.video_vae_tools import TINY, pair

FIRST, REFINE = "LTX2DFRPipeline", "LTX2DFRTemporalRefinePipeline"
RNG = np.random.default_rng(0)
PICTURE, OTHER = (PIL.Image.fromarray(RNG.integers(0, 256, (48, 80, 3), dtype=np.uint8)) for _ in range(2))
SIZE = {"height": 64, "width": 64, "num_frames": 17, "frame_rate": 24.0}
CALL = {**SIZE, "prompt": both.PROMPT, "max_sequence_length": 16, "sigmas": [1.0, 0.725, 0.421875]}
UPSAMPLER = {"spatial_upsample": False, "temporal_upsample": True}
# The canvas of 17 frames has 25, with a keyframe at its end.
CARRIED = {
    "latents": torch.randn(1, 4, 4, 2, 2, generator=both.seeded(1)),
    "keyframes_latents": torch.randn(1, 4, 1, 2, 2, generator=both.seeded(2)),
    "keyframe_positions": [24],
    "audio_latents": torch.randn(1, 2, 26, 2, generator=both.seeded(3)),
}
ROUND = {**CALL, **CARRIED, "num_frames": 25, "condition_num_frames": 17, "sigmas": [0.975, 0.421875]}


@cache
def components(library: str, conditioned: bool = False) -> dict[str, Any]:
    def make(library: str, part: str) -> Any:
        if part == "vae":
            return pair(TINY | {"timestep_conditioning": conditioned})[library == "diffusers"]
        # The vocoder makes four samples of each of the 100 mel frames of a second.
        changes = {"transformer": {"use_keyframes_abs_pos_embedding": True}, "vocoder": {"output_sampling_rate": 400}}
        return both.new_model(library, part, **changes.get(part, {}))

    given = both.components(library, FIRST, make)
    return given | {"temporal_latent_upsampler": both.new_model(library, "latent_upsampler", **UPSAMPLER)}


@cache
def pipeline(library: str, name: str, conditioned: bool = False) -> Any:
    given = dict(components(library, conditioned))
    if name == FIRST:
        del given["temporal_latent_upsampler"]
    else:
        given |= {"scheduler": LTXEulerAncestralRFScheduler(eta=0.5)}
        given = {key: value for key, value in given.items() if key not in both.optional(FIRST)}
    return both.quiet(both.named(library, name)(**given))


def conditions(library: str, *places: tuple) -> list[Any]:
    return [
        both.named(library, "LTX2VideoCondition")(frames, index, strength, 0) for frames, index, strength in places
    ]


def run(library: str, name: str = FIRST, places: tuple = (), **changes: Any) -> Any:
    given = {"conditions": conditions(library, *places), "generator": both.seeded(), "output_type": "latent"}
    return pipeline(library, name)(**(CALL if name == FIRST else ROUND) | given | changes)


def assert_equal(name: str, frames: int | None = None, **call: Any) -> None:
    theirs, ours = (run(library, name, **call) for library in both.LIBRARIES)
    parts = ("frames", "audio", "keyframes")
    for one, other in ((getattr(theirs, part), getattr(ours, part)) for part in parts):
        assert (one is None) == (other is None)
        if one is not None:
            one = one[:, :frames] if one is theirs.frames else one[..., : other.shape[-1]]
            assert one.shape == other.shape and (one - other).abs().max() < 1e-4
    assert ours.keyframe_positions == theirs.keyframe_positions


def test_a_pass_is_diffusers():
    places = ((PICTURE, 0, 0.4), (OTHER, 2, 1.0), ([PICTURE] * 9, 1, 0.7))
    assert_equal(FIRST, places=places)


def test_a_decoded_pass_is_diffusers():
    assert_equal(FIRST, places=((PICTURE, 0, 1.0),), output_type="pt", frame_rate=48.0, num_videos_per_prompt=2)


def test_a_pass_that_keeps_its_sound_leaves_the_generator_as_diffusers_does():
    """The noise of a decoder that is told a noise level comes after that of both streams."""
    audio = CARRIED["audio_latents"]
    call = {**CALL, "audio_latents": audio, "freeze_audio": True, "decode_timestep": 0.05, "decode_noise_scale": 0.5}
    theirs, ours = (
        pipeline(library, FIRST, True)(**call, generator=both.seeded(), output_type="pt") for library in both.LIBRARIES
    )
    assert (theirs.frames - ours.frames).abs().max() < 1e-4


def test_a_pass_as_a_tuple_and_as_a_file(tmp_path):
    frames, audio, keyframes, positions = run("ours", return_dict=False)
    output = run("ours")
    pairs = zip((frames, audio, keyframes), (output.frames, output.audio, output.keyframes))
    assert all(torch.equal(one, other) for one, other in pairs) and positions == output.keyframe_positions == [24]
    written = run("ours", output_type="pil", save_path=tmp_path / "clip.mp4")
    assert written.frames is None and len(read_video(written.info["path"])) == 17


def test_a_pass_and_a_round_by_the_diffusion_decoder():
    """Also without the padding: the latents of the request, decoded with the noise that follows."""
    torch.manual_seed(0)
    kernels = {"decoder_stage_kernels": ((3, 3, 3),) * 4, "decoder_stage5_kernel": (3, 5, 5)}
    sizes = {"decoder_stage_channels": (16, 8, 8, 8, 8), "decoder_stage_depths": (1,) * 5, "decoder_head_dim": 8}
    reductions = {"decoder_upsample_channel_reductions": (2, 1, 1, 1), "decoder_t_emb_dim": 8}
    model = LTX2VideoDiffusionDecoderModel(latent_channels=4, **kernels, **sizes, **reductions).eval()
    for name, count in ((FIRST, 17), (REFINE, 33)):
        pipe = both.quiet(both.named("ours", name)(**pipeline("ours", name).components | {"diffusion_decoder": model}))
        call = {**(CALL if name == FIRST else ROUND), "generator": both.seeded()}
        frames = pipe(**call, output_type="pt", decoder="diffusion").frames
        assert frames.shape == (1, count, 3, 64, 64) and frames.isfinite().all()


def test_a_pass_in_tiles_is_diffusers():
    latents = torch.randn(1, 4, 4, 4, 4, generator=both.seeded(1))
    given = {
        "latents": latents,
        "audio_latents": CARRIED["audio_latents"],
        "height": 128,
        "width": 128,
        "generate_slots": False,
        "guidance_keyframe_latents": latents[:, :, 3:],
        "guidance_keyframe_positions": [24],
        "guidance_keyframe_strength": 0.9,
        "reference_latents": CARRIED["latents"],
        "video_tiles": epilogue_tiles((4, 4, 4), 1, []),
        "sigmas": [0.9, 0.4],
    }
    assert_equal(FIRST, **given)


def test_a_temporal_round_is_diffusers():
    assert_equal(REFINE, places=((PICTURE, 0, 0.4), (OTHER, -1, 0.8)))


def test_a_second_round_is_diffusers():
    """Stretches that overlap, with pictures that each sees at another place, of a batch of two."""
    carried = {
        "latents": torch.randn(2, 4, 13, 2, 2, generator=both.seeded(1)),
        "keyframes_latents": torch.randn(2, 4, 4, 2, 2, generator=both.seeded(2)),
        "keyframe_positions": [24, 48, 72, 96],
        "audio_latents": torch.randn(2, 2, 26, 2, generator=both.seeded(3)),
        "num_frames": 97,
        "frame_rate": 48.0,
        "condition_num_frames": 41,
        "source_seconds": 49 / 24,
        "round_index": 2,
    }
    assert_equal(REFINE, places=((PICTURE, 3, 0.9), ([OTHER] * 9, 1, 0.8)), prompt=[both.PROMPT, "a cat"], **carried)
    assert run("ours", REFINE, **carried, prompt=[both.PROMPT, "a cat"], output_type="pt").frames.shape[1] == 161


def test_a_decoded_round_is_diffusers_as_far_as_the_request():
    """(17 - 1) * 2 + 1 frames of a canvas of 49, and their sound."""
    ours = run("ours", REFINE, output_type="pt")
    assert not ours.frames.requires_grad
    assert ours.frames.shape[1] == 33 and ours.frame_rate == 48 and ours.keyframes is ours.keyframe_positions is None
    assert ours.audio.shape[-1] == round(33 / 48 * ours.sampling_rate)
    # Some frames before the end of a clip see what comes after it in a decoder that is not causal.
    theirs = run("diffusers", REFINE)
    pipe = pipeline("diffusers", REFINE)
    with torch.no_grad():
        decoded = pipe.vae.decode(theirs.frames[:, :, :5], return_dict=False)[0]
    assert (pipe.video_processor.postprocess_video(decoded, "pt") - ours.frames).abs().max() < 1e-4


@pytest.mark.parametrize("conditioned", [False, True])
def test_rebuilt_keyframes_are_diffusers(conditioned):
    latents = torch.randn(2, 4, 2, 2, 3, generator=both.seeded(1))
    arguments = (latents, 0.05, 0.025, 3, "cpu", torch.float32)
    one, other = (
        pipeline(library, FIRST, conditioned).rebuild_epilogue_keyframes(*arguments) for library in both.LIBRARIES
    )
    assert other.shape == (2, 4, 2, 4, 6) and (one - other).abs().max() < 1e-4


def test_noise_levels_of_rebuilt_keyframes_are_those_of_calls():
    with pytest.raises(ValueError, match=r"`decode_noise_scale` has to be between 0 and 1 but is 2\.0"):
        pipeline("ours", FIRST).rebuild_epilogue_keyframes(
            torch.zeros(1, 4, 1, 2, 2), 0.5, 2.0, 3, "cpu", torch.float32
        )


def test_a_picture_that_stands_beside_the_video_does_so_in_a_round():
    given = [LTX2VideoCondition(PICTURE, crf=0, mode=mode) for mode in ("auto", "replace", "append")]
    written, replaced, appended = (run("ours", REFINE, conditions=one).frames for one in given)
    assert torch.equal(written, replaced) and not torch.equal(written, appended)


def test_the_canvas_of_a_pass_after_a_round_is_that_of_its_latents():
    """33 frames alone have a canvas of 33; those of 17 that a round has doubled have one of 49."""
    latents = torch.randn(1, 4, 7, 2, 2, generator=both.seeded(1))
    call = {"num_frames": 33, "frame_rate": 48.0, "latents": latents, "sigmas": [0.4]}
    whole = run("ours", **call)
    assert whole.frames.shape[2] == 7 and whole.keyframe_positions == [24, 48]
    assert run("ours", **call, output_type="pt").frames.shape[1] == 33


def test_negative_places_are_those_of_the_request():
    """17 frames have 3 latent ones; those of the canvas are 4."""
    last, third = (run("ours", places=((PICTURE, index, 1.0),)).frames for index in (-1, 2))
    assert torch.equal(last, third)


def test_a_length_is_predicted_as_by_diffusers():
    """The head's 0.6 to 0.9 seconds are 15 to 21 frames, which are floored to 8 k + 1 and padded to 25."""
    outputs = []
    for library in both.LIBRARIES:
        head = both.new_model(library, "duration_head")
        given = pipeline(library, FIRST).components | {"duration_head": head}
        pipe = both.quiet(both.named(library, FIRST)(**given))
        call = {**CALL, "num_frames": None, "min_seconds": 0.6, "max_seconds": 0.9, "generator": both.seeded()}
        last = conditions(library, (PICTURE, 1, 1.0))
        outputs.append(pipe(**call, conditions=last, output_type="pt"))
    theirs, ours = outputs
    assert ours.frames.shape[1] == ours.info["num_frames"] == 17
    assert (theirs.frames - ours.frames).abs().max() < 1e-4


def test_noise_levels_are_taken_as_they_are():
    shifting = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    pipe = both.quiet(both.named("ours", FIRST)(**pipeline("ours", FIRST).components | {"scheduler": shifting}))
    assert isinstance(pipe.scheduler, LTX2Scheduler)
    output = pipe(**CALL, generator=both.seeded(), output_type="latent")
    assert torch.equal(output.frames, run("ours").frames) and output.info["sigmas"][:-1] == pytest.approx(
        CALL["sigmas"]
    )


def test_a_row_of_a_batch_is_its_single_run():
    together = run("ours", num_videos_per_prompt=2, generator=[both.seeded(4), both.seeded(5)])
    alone = run("ours", generator=both.seeded(5))
    assert (together.frames[1:] - alone.frames).abs().max() < 1e-5


def test_a_row_of_a_round_is_its_single_run():
    rows = {name: torch.cat([given, given]) for name, given in CARRIED.items() if isinstance(given, torch.Tensor)}
    prompts = [CALL["prompt"]] * 2
    together = run("ours", REFINE, **rows, prompt=prompts, generator=[both.seeded(4), both.seeded(5)])
    alone = run("ours", REFINE, generator=both.seeded(5))
    assert (together.frames[1:] - alone.frames).abs().max() < 1e-5


def test_steps_are_counted_over_all_stretches():
    seen: list[int] = []
    carried = {
        "latents": torch.randn(1, 4, 7, 2, 2, generator=both.seeded(1)),
        "keyframes_latents": torch.randn(1, 4, 2, 2, 2, generator=both.seeded(1)),
        "keyframe_positions": [24, 48],
        "num_frames": 49,
    }

    def note(pipe: Any, step: int, _: Any, tensors: dict) -> dict:
        seen.append(step)
        pipe._interrupt = len(seen) == interrupted
        return tensors

    interrupted = 0
    whole = run("ours", REFINE, callback_on_step_end=note, **carried)
    assert seen == [0, 1, 2, 3] and whole.keyframe_positions == [24, 48, 72, 96]
    seen.clear()
    interrupted = 2
    partly = run("ours", REFINE, callback_on_step_end=note, **carried)
    assert seen == [0, 1] and partly.keyframe_positions == [24, 48, 96]
    assert torch.equal(partly.frames[:, :, :7], whole.frames[:, :, :7]) and partly.frames.shape == whole.frames.shape


def test_a_round_keeps_the_sound_and_the_keyframes_that_it_was_given():
    output = run("ours", REFINE)
    assert (output.audio - CARRIED["audio_latents"]).abs().max() < 1e-5
    assert output.keyframe_positions == [24, 48]
    assert (output.keyframes[:, :, 1:] - CARRIED["keyframes_latents"]).abs().max() < 1e-5


def test_a_round_finds_its_scheduler(tmp_path):
    first = pipeline("ours", FIRST)
    upsampler = components("ours")["temporal_latent_upsampler"]
    kind = both.named("ours", REFINE)
    made = kind.from_pipe(first, temporal_latent_upsampler=upsampler)
    assert made.scheduler.config["eta"] == 0.5
    given = LTXEulerAncestralRFScheduler(eta=0.25)
    assert kind.from_pipe(first, temporal_latent_upsampler=upsampler, scheduler=given).scheduler is given
    first.save_pretrained(tmp_path / "first")
    loaded = kind.from_pretrained(tmp_path / "first", temporal_latent_upsampler=upsampler)
    assert loaded.scheduler.config["eta"] == 0.5 and loaded.prompt_enhancer is None
    loaded.register_modules(scheduler=given)
    loaded.save_pretrained(tmp_path / "round")
    again = kind.from_pretrained(tmp_path / "round")
    assert again.scheduler.config["eta"] == 0.25
    assert both.named("diffusers", REFINE).from_pretrained(tmp_path / "round").scheduler.config["eta"] == 0.25


REFUSED = {
    FIRST: [
        ({"num_frames": 18}, "`num_frames` has to be 8 \\* k \\+ 1 but is 18; use 17 or 25"),
        ({"num_frames": None}, "`num_frames` is not given"),
        ({"height": 60}, "use 32 or 64"),
        ({"keyframe_positions": [24, 25]}, "holds 25, but the canvas has the pixel frames 0 to 24; use 24"),
        ({"keyframes_latents": torch.zeros(1, 4, 2, 2)}, "`keyframes_latents` has shape"),
        ({"keyframes_latents": torch.zeros(1, 4, 2, 2, 2)}, "needs \\(1, 4, 1, 2, 2\\)"),
        ({"generate_slots": False, "keyframe_positions": [24]}, "makes no keyframes"),
        ({"guidance_keyframe_latents": torch.zeros(1, 4, 1, 2, 2)}, "need their `guidance_keyframe_positions`"),
        ({"guidance_keyframe_positions": [24]}, "there are no `guidance_keyframe_latents`"),
        ({"reference_downscale_factor": 3}, "there are no `reference_latents`"),
        (
            {"reference_latents": CARRIED["latents"]},
            "`reference_latents` has shape \\(1, 4, 4, 2, 2\\), but this call needs",
        ),
        ({"frame_rate": 0.0}, "`frame_rate` has to be greater than 0 but is 0.0"),
        ({"freeze_audio": True}, "no `audio_latents` to keep"),
        ({"latents": torch.zeros(1, 4, 3, 2, 2)}, "this call needs \\(1, 4, 4, 2, 2\\)"),
        ({"video_tiles": epilogue_tiles((4, 4, 4), 1, [])}, "reaches out of the latent grid \\(4, 2, 2\\)"),
        ({"video_tiles": [(1, 2, 3, 4)]}, "`video_tiles` has to be a list of LTX2DFREpilogueTile"),
        ({"sigmas": [0.4, 0.9]}, "sigmas"),
    ],
    REFINE: [
        ({"audio_latents": None}, "`audio_latents` has to be a tensor but is None"),
        ({"round_index": 9}, "`round_index` has to be at most 8"),
        ({"round_index": 0}, "`round_index` has to be a whole number of at least 1"),
        ({"latents": torch.zeros(1, 4, 3, 2, 2)}, "`latents` has shape"),
        (
            {"keyframe_positions": [16]},
            "has to rise from above 0 to the last frame of the canvas, 24, but is \\[16\\]",
        ),
        ({"keyframe_positions": []}, "needs \\(1, 4, 0, 2, 2\\)"),
        ({"keyframe_positions": [], "keyframes_latents": torch.zeros(1, 4, 0, 2, 2)}, "is empty"),
        ({"condition_num_frames": 18}, "`condition_num_frames` has to be 8 \\* k \\+ 1 but is 18; use 17 or 25"),
        ({"frame_rate": 600.0}, "`frame_rate` has to be at most 500 but is 600.0; use 500"),
        ({"condition_num_frames": 33}, "more than the canvas of the pass before, 25"),
        ({"audio_latents": torch.zeros(1, 26, 4)}, "needs \\(1, 2, any, 2\\)"),
        ({"source_seconds": 0.0}, "`source_seconds` has to be greater than 0"),
        ({"places": ((PICTURE, 3, 1.0),)}, "use -3 to 2"),
        ({"prompt": ["one", "two"]}, "`latents` has shape"),
    ],
}


@pytest.mark.parametrize(
    ("name", "changes", "message"), [(name, *row) for name, rows in REFUSED.items() for row in rows]
)
def test_what_is_refused_before_any_computation(name, changes, message, monkeypatch):
    monkeypatch.setattr(pipeline("ours", name).text_encoder, "forward", lambda *_, **__: pytest.fail("computed"))
    with pytest.raises(ValueError, match=message):
        run("ours", name, **changes)


def test_a_round_needs_fresh_noise():
    pipe = both.named("ours", REFINE)(**pipeline("ours", REFINE).components | {"scheduler": LTX2Scheduler()})
    for scheduler in (pipe.scheduler, LTXEulerAncestralRFScheduler(eta=0.0)):
        pipe.scheduler = scheduler
        with pytest.raises(ValueError, match=r"LTXEulerAncestralRFScheduler\(eta=0.5\)"):
            pipe(**ROUND)


def test_a_pass_takes_no_fresh_noise():
    given = pipeline("ours", FIRST).components | {"scheduler": LTXEulerAncestralRFScheduler()}
    with pytest.raises(ValueError, match="LTXEulerAncestralRFScheduler would"):
        both.named("ours", FIRST)(**given)(**CALL)


def test_the_scale_of_a_reference_is_that_of_the_active_lora(monkeypatch):
    pipe = pipeline("ours", FIRST)
    monkeypatch.setattr(pipe, "reference_factors", lambda: ReferenceFactors(4, 1))
    with pytest.raises(ValueError, match="`reference_downscale_factor` is 2, but the active LoRA was trained with 4"):
        run("ours", reference_latents=CARRIED["latents"])


def test_keyframes_need_a_transformer_that_knows_them():
    pipe = both.named("ours", FIRST)(
        **pipeline("ours", FIRST).components | {"transformer": both.model("ours", "transformer")}
    )
    with pytest.raises(ValueError, match="use_keyframes_abs_pos_embedding"):
        pipe(**CALL)


@pytest.mark.gpu
@pytest.mark.parametrize("name", [FIRST, REFINE])
def test_a_pass_on_a_gpu_is_diffusers(name):
    """Also in the noise of a round, which is drawn on the device."""
    outputs = []
    for library in both.LIBRARIES:
        given = {part: copy.deepcopy(one) for part, one in pipeline(library, name).components.items()}
        pipe = both.quiet(both.named(library, name)(**given)).to("cuda")
        call = {**(CALL if name == FIRST else ROUND), "generator": both.seeded(), "output_type": "latent"}
        outputs.append(pipe(**call, conditions=conditions(library, (PICTURE, 0, 0.4))))
    theirs, ours = outputs
    assert (theirs.frames - ours.frames).abs().max() < 1e-3
    assert (theirs.keyframes - ours.keyframes).abs().max() < 1e-3
