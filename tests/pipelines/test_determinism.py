"""What results may depend on: seeds and arguments, and not batches, offloading, tiling or rounded frame rates."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from accelerate import cpu_offload

from ltx2_diffusers import LTX2Pipeline, LTX2PipelineOutput
from ltx2_diffusers.media.reading import probe, read_audio
from ltx2_diffusers.media.writing import write_video
from ltx2_diffusers.pipelines.arguments import Delivery
from ltx2_diffusers.pipelines.conditions.pictures import LTX2VideoCondition
from ltx2_diffusers.pipelines.engine import decode_video
from ltx2_diffusers.pipelines.recipes.condition import LTX2ConditionPipeline
from ltx2_diffusers.pipelines.recipes.extension.pipeline import LTX2ExtendPipeline
from ltx2_diffusers.pipelines.recipes.image_to_video import LTX2ImageToVideoPipeline
from ltx2_diffusers.pipelines.recipes.retake import LTX2RetakePipeline
from ltx2_diffusers.pipelines.recipes.two_stage import LTX2TwoStagePipeline
from ltx2_diffusers.pipelines.recipes.video_to_audio import LTX2VideoToAudioPipeline
from ltx2_diffusers.sampling.samplers import SAMPLERS
from tests.golden_data import EQUAL_PIPELINES
from tests.media.clips import gradient_clip, tone
from tests.pipelines.tiny import CFG, EXPLICIT, NO_GUIDANCE, PROMPT, load, max_difference, ours, seeded, sibling
from tests.pipelines.watching import average_rate

CALL = {**EXPLICIT, **CFG, "prompt": PROMPT}
UNGUIDED = {**EXPLICIT, **NO_GUIDANCE, "prompt": PROMPT}
# Samples of a batch go through the same arithmetic in another order of additions.
IMAGE = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
CLIP = (gradient_clip(9, 64, 96) * 255).round().to(torch.uint8)
CONDITIONS = [LTX2VideoCondition(IMAGE), LTX2VideoCondition(IMAGE, frame=8, strength=0.7)]
TWO_STAGES = {"two_stage": True, "stage_2_adapters": {}}
REFINED = {
    **{name: value for name, value in CALL.items() if name != "use_cross_timestep"},
    "height": 128,
    "width": 128,
    "stage_2_adapters": {},
}


@pytest.fixture(scope="module")
def staged() -> LTX2TwoStagePipeline:
    """A pipeline with an upsampler; the other recipes share its components."""
    return load("2.0", LTX2TwoStagePipeline)


def staged_as(staged, pipeline_class):
    pipe = pipeline_class(**staged.components)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def first_inputs(pipe, **call):
    """The noisy tokens of both streams that the transformer sees first."""
    seen = []

    def note(_module, _args, inputs):
        seen.append((inputs["hidden_states"].clone(), inputs["audio_hidden_states"].clone()))

    hook = pipe.transformer.register_forward_pre_hook(note, with_kwargs=True)
    try:
        pipe(**call)
    finally:
        hook.remove()
    return seen[0]


def row_of(output: LTX2PipelineOutput, row: int) -> LTX2PipelineOutput:
    return LTX2PipelineOutput(output.frames[[row]], output.audio[[row]])


# --- batches and generators ---


@pytest.mark.parametrize(
    ("pipeline_class", "given"),
    [
        (LTX2Pipeline, {}),
        (LTX2ConditionPipeline, {"conditions": CONDITIONS}),
        (LTX2ImageToVideoPipeline, {"image": IMAGE}),
    ],
)
def test_noise_does_not_depend_on_the_place_in_the_batch(pipeline_class, given):
    pipe = sibling("2.0", pipeline_class)
    call = {**UNGUIDED, **given}
    batch = first_inputs(pipe, **{**call, "prompt": [PROMPT] * 3}, generator=seeded(3, 4, 5))
    for row, seed in enumerate((3, 4, 5)):
        single = first_inputs(pipe, **call, generator=seeded(seed))
        for stream, expected in zip(batch, single):
            assert torch.equal(stream[[row]], expected)


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
def test_a_row_of_a_batch_equals_its_single_run_with_every_sampler(sampler):
    call = {**CALL, "sampler": sampler}
    batch = ours()(**call | {"prompt": [PROMPT, "Waves."]}, generator=seeded(3, 4))
    single = ours()(**call | {"prompt": "Waves."}, generator=seeded(4))
    assert max_difference(row_of(batch, 1), single) <= EQUAL_PIPELINES
    assert max_difference(row_of(batch, 0), single) > EQUAL_PIPELINES


def test_a_row_of_a_refined_batch_equals_its_single_run(staged):
    call = REFINED | {"image": IMAGE, "audio": tone(9 / 24), "sampling_rate": 24000, "audio_cond_noise_scale": 0.5}
    batch = staged(**call | {"prompt": [PROMPT, "Waves."]}, generator=seeded(3, 4))
    single = staged(**call | {"prompt": "Waves."}, generator=seeded(4))
    assert max_difference(row_of(batch, 1), single) <= EQUAL_PIPELINES


def test_a_row_of_a_batch_of_retakes_equals_its_single_run():
    pipe = sibling("2.0", LTX2RetakePipeline)
    call = {"audio": tone(9 / 24), "sampling_rate": 24000, "num_inference_steps": 2, **CFG, "output_type": "latent"}
    batch = pipe(CLIP, 0.1, 0.3, [PROMPT, "Waves."], **call, generator=seeded(3, 4))
    single = pipe(CLIP, 0.1, 0.3, "Waves.", **call, generator=seeded(4))
    assert max_difference(row_of(batch, 1), single) <= EQUAL_PIPELINES


def test_rows_follow_their_generators():
    one = ours()(**CALL | {"prompt": [PROMPT] * 2}, generator=seeded(3, 4))
    other = ours()(**CALL | {"prompt": [PROMPT] * 2}, generator=seeded(4, 3))
    assert max_difference(row_of(one, 0), row_of(other, 1)) <= EQUAL_PIPELINES
    assert max_difference(row_of(one, 1), row_of(other, 0)) <= EQUAL_PIPELINES


@pytest.mark.parametrize("pipeline_class", [LTX2Pipeline, LTX2ConditionPipeline])
def test_a_list_of_one_generator_is_that_generator(pipeline_class):
    pipe = sibling("2.0", pipeline_class)
    call = CALL | {"sampler": "euler_ancestral"}
    single, listed = (pipe(**call, generator=generator) for generator in (seeded(3), [seeded(3)]))
    assert max_difference(single, listed) == 0


# --- repetition ---


def test_equal_seeds_give_equal_bits_whatever_ran_between(staged):
    call = {**REFINED, "output_type": "uint8", "sampler": "euler_ancestral"}
    first = staged(**call, generator=seeded(9))
    staged(
        **call | {"height": 64, "width": 64, "num_frames": 17, "prompt": ["Waves.", "Fire."]}, generator=seeded(1, 2)
    )
    again = staged(**call, generator=seeded(9))
    assert torch.equal(first.frames, again.frames)
    assert torch.equal(first.audio, again.audio)


def test_what_is_asked_for_does_not_change_what_is_made():
    latents = ours()(**CALL, generator=seeded(9))
    seen = []

    def watch(_pipe, _step, _timestep, tensors):
        seen.append(tensors["latents"])

    watched = ours()(**CALL | {"output_type": "uint8"}, generator=seeded(9), callback_on_step_end=watch)
    decoded = decode_video(ours(), ours().vae.normalize_latents(latents.frames), Delivery("uint8"))
    assert len(seen) == EXPLICIT["num_inference_steps"]
    assert torch.equal(decoded, watched.frames)


# --- offloading and tiling ---


def group_offload(level: str):
    cpu = torch.device("cpu")
    # diffusers moves weights between two devices; with the CPU for both, its hooks run but nothing moves.
    return lambda pipe: pipe.enable_group_offload(cpu, cpu, offload_type=level, num_blocks_per_group=1)


def sequential_offload(pipe) -> None:
    # The pipeline's own method asks for an accelerator; these are the hooks that it sets.
    for name in ("text_encoder", "connectors", "transformer", "vae", "audio_vae", "vocoder"):
        cpu_offload(getattr(pipe, name), torch.device("cpu"))


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize(
    "offload",
    [
        group_offload("leaf_level"),
        group_offload("block_level"),
        sequential_offload,
        lambda pipe: pipe.enable_model_cpu_offload(device="cpu"),
    ],
    ids=["group by leaf", "group by block", "sequential", "model"],
)
def test_offloading_changes_no_bit(offload):
    call = CALL | {"output_type": "uint8"}
    expected = ours()(**call, generator=seeded(1))
    pipe = load()
    offload(pipe)
    output = pipe(**call, generator=seeded(1))
    assert torch.equal(output.frames, expected.frames)
    assert torch.equal(output.audio, expected.audio)


def small_tiles(pipe) -> None:
    pipe.vae.enable_tiling(
        tile_sample_min_height=64, tile_sample_min_width=64, tile_sample_stride_height=32, tile_sample_stride_width=32
    )


def test_tiling_leaves_latents_as_they_are():
    expected = ours()(**CALL, generator=seeded(1))
    pipe = load()
    small_tiles(pipe)
    assert max_difference(pipe(**CALL, generator=seeded(1)), expected) == 0


def test_tiling_leaves_the_noise_as_it_is():
    call = {**UNGUIDED, "conditions": CONDITIONS, "generator": seeded(1)}
    whole = first_inputs(sibling("2.0", LTX2ConditionPipeline), **call)
    pipe = load("2.0", LTX2ConditionPipeline)
    small_tiles(pipe)
    tiled = first_inputs(pipe, **call | {"generator": seeded(1)})
    # 2 latent frames of 2 x 3 tokens: the first is the picture, encoded in tiles; the second is noise.
    assert not torch.equal(tiled[0][:, :6], whole[0][:, :6])
    assert torch.equal(tiled[0][:, 6:12], whole[0][:, 6:12])
    assert torch.equal(tiled[1], whole[1])


# A CPU cannot show what another device draws and computes.
@pytest.mark.gpu
def test_noise_does_not_depend_on_the_device():
    call = {**UNGUIDED, "conditions": CONDITIONS}
    expected = first_inputs(sibling("2.0", LTX2ConditionPipeline), **call, generator=seeded(1))
    seen = first_inputs(load("2.0", LTX2ConditionPipeline).to("cuda"), **call, generator=seeded(1))
    assert torch.equal(seen[0][:, 6:12].cpu(), expected[0][:, 6:12])
    assert torch.equal(seen[1].cpu(), expected[1])


@pytest.mark.gpu
def test_results_on_a_device_repeat_and_ignore_offloading():
    on_device, offloaded = load().to("cuda"), load()
    offloaded.enable_model_cpu_offload()
    first, again, other = (pipe(**CALL, generator=seeded(1)) for pipe in (on_device, on_device, offloaded))
    assert torch.equal(first.frames, again.frames)
    assert torch.equal(first.frames, other.frames)
    assert torch.equal(first.audio, other.audio)


# --- frame rates ---


RATES = {23.976: Fraction(24000, 1001), 24000 / 1001: Fraction(24000, 1001), 29.97: Fraction(30000, 1001)}
RATES |= {30000 / 1001: Fraction(30000, 1001)}


def check_file(path, rate: Fraction, num_frames: int) -> None:
    """Exact rate and number of frames, and sound as long as the pictures to one AAC frame."""
    assert average_rate(path) == rate
    assert probe(path).num_frames == num_frames
    sound, sampling_rate = read_audio(path)
    assert abs(sound.shape[-1] / sampling_rate - num_frames / rate) <= 1024 / sampling_rate


def source_file(folder, rate: Fraction, side: int = 64):
    path = folder / "source.mp4"
    write_video(path, gradient_clip(17, side, side), rate, tone(17 / float(rate)), 24000)
    return path


def check_result(output: LTX2PipelineOutput, path, rate: Fraction) -> None:
    num_frames = len(output.frames[0])
    assert abs(output.audio.shape[-1] / output.sampling_rate - num_frames / rate) <= 0.05
    output.save(path)
    check_file(path, rate, num_frames)


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("frame_rate", list(RATES))
def test_fractional_rates_survive_generation(staged, tmp_path, frame_rate):
    call = {"num_inference_steps": 2, "num_frames": 25, "frame_rate": frame_rate, "output_type": "uint8"}
    rate, path = RATES[frame_rate], tmp_path / "clip.mp4"
    check_result(ours()(PROMPT, height=64, width=64, **call, **NO_GUIDANCE), path, rate)
    output = staged(PROMPT, height=128, width=128, stage_2_adapters={}, **call, **NO_GUIDANCE)
    check_result(output, path, rate)


@pytest.mark.parametrize(
    ("rate", "stages"),
    [(Fraction(24000, 1001), {}), (Fraction(30000, 1001), TWO_STAGES)],
    ids=["23.976 in one stage", "29.97 in two stages"],
)
class TestFilesOfFractionalRates:
    def test_retakes(self, staged, tmp_path, rate, stages):
        pipe = staged_as(staged, LTX2RetakePipeline)
        source = source_file(tmp_path, rate, 128 if stages else 64)
        call = {"num_inference_steps": 2, "output_type": "uint8", **NO_GUIDANCE, **stages}
        for kept in ({}, {"regenerate_audio": False}, {"regenerate_video": False}):
            output = pipe(source, 0.1, 0.3, PROMPT, **call, **kept)
            assert len(output.frames[0]) == 17
            check_result(output, tmp_path / "clip.mp4", rate)

    def test_extension(self, staged, tmp_path, rate, stages):
        pipe, path = staged_as(staged, LTX2ExtendPipeline), tmp_path / "clip.mp4"
        call = {"num_inference_steps": 2, "output_type": "uint8", **NO_GUIDANCE, **stages}
        call |= {"num_frames": 17, "overlap_frames": 9, "video": source_file(tmp_path, rate, 128 if stages else 64)}
        check_result(pipe(PROMPT, **call), path, rate)
        pipe([PROMPT, PROMPT], **call, save_path=path)
        check_file(path, rate, 33)


def test_fractional_rates_of_files_survive_new_sound(staged, tmp_path):
    rate = Fraction(30000, 1001)
    pipe = staged_as(staged, LTX2VideoToAudioPipeline)
    output = pipe(source_file(tmp_path, rate), PROMPT, num_inference_steps=2, output_type="uint8")
    check_result(output, tmp_path / "clip.mp4", rate)


@pytest.mark.parametrize("frame_rate", [23.976, 30000 / 1001])
def test_long_extensions_at_fractional_rates_stay_in_step(frame_rate):
    pipe = sibling("2.0", LTX2ExtendPipeline)
    output = pipe(
        PROMPT,
        height=64,
        width=64,
        num_frames=17,
        overlap_frames=9,
        num_segments=12,
        frame_rate=frame_rate,
        num_inference_steps=1,
        output_type="latent",
        **NO_GUIDANCE,
    )
    num_frames = (output.frames.shape[2] - 1) * 8 + 1
    assert num_frames == 17 + 11 * 8
    assert abs(output.audio.shape[2] * 0.04 - num_frames / RATES[frame_rate]) <= 0.04
