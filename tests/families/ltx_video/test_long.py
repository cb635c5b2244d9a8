"""Long videos: windows against the golden vectors, streamed decoding, and what is refused."""

import copy
import gc
import json
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from ltx2_diffusers.conditioning import Streams, TextContext
from ltx2_diffusers.families.ltx_video.conditions import LTXVideoCondition, ReferenceCondition, beside
from ltx2_diffusers.families.ltx_video.long import (
    DECODE_OVERLAP,
    DECODE_TILE,
    LongArguments,
    LTXVideoLongPipeline,
    Window,
    faded,
    planned,
    streamed_pixels,
    window_bounds,
    windows_of,
)
from ltx2_diffusers.families.ltx_video.presets import PassSettings
from ltx2_diffusers.media.reading import probe, read_video
from ltx2_diffusers.media.streaming import ClipWriter
from ltx2_diffusers.models.latent_filters import adain_filter_latent, tone_map_latents
from ltx2_diffusers.pipelines.arguments import Delivery, Start, texts_of
from ltx2_diffusers.pipelines.engine import generate, noised, prepare
from ltx2_diffusers.pipelines.plan import Size, plan_clip
from ltx2_diffusers.pipelines.recipes.extension.plan import ClipLatents, Timeline
from ltx2_diffusers.pipelines.recipes.extension.segments import Carried
from ltx2_diffusers.prompts.cache import EncodedBy, PromptCache, PromptKey
from ltx2_diffusers.sampling.steppers import euler_ancestral_step
from tests.families.ltx_video.runs import tiny_pipeline
from tests.families.ltx_video.tiny import networks
from tests.golden_data import load_json, load_metadata, load_tensors

GOLDEN, FACTS = load_tensors("ltx_video/long.safetensors"), load_metadata("ltx_video/long.safetensors")
SCALARS = load_json("ltx_video/long_scalars.json")
RUN = json.loads(FACTS["run"])
SETTINGS = {
    "i2v": {"cond_strength": 0.5, "adain_factor": 0.25},
    "t2v_no_adain": {"adain_factor": 0.0},
    "cfg": {"cond_strength": 1.0, "guidance_scale": 2.0, "adain_factor": 0.1, "negative_index_strength": 0.0},
}


@pytest.fixture(scope="module")
def pipeline():
    return tiny_pipeline(kind=LTXVideoLongPipeline)


TEXT = {"prompt_embeds": GOLDEN["text/a"], "prompt_attention_mask": GOLDEN["text_mask"]}
CALL = {
    **{name: RUN[name] for name in ("height", "width", "num_frames", "frame_rate")},
    **{name: RUN[name] for name in ("temporal_tile_size", "temporal_overlap", "temporal_overlap_cond_strength")},
    "timesteps": [1000 * sigma for sigma in RUN["sigmas"] if sigma],
    "output_type": "latent",
    # diffusers shows pictures as they are.
    **{"image_crf": 0, "image_blur": False},
}


@pytest.mark.parametrize("case", SCALARS["windows__[latent frames, tile, overlap, windows]"])
def test_windows_lie_where_the_originals_do(case):
    *sizes, expected = case
    assert [list(one) for one in window_bounds(*sizes)] == expected


@pytest.mark.parametrize(
    "case", SCALARS["comfy_keyframes__[indices, tile px, overlap px, frames, [tile, index in tile]...]"]
)
def test_a_picture_goes_to_the_window_of_the_original(case):
    frames, tile, overlap, num_frames, expected = case
    bounds = window_bounds((num_frames - 1) // 8 + 1, tile // 8, overlap // 8)
    inside = [frame for frame in frames if frame < num_frames]
    assert [list(next(windows_of(frame, 1, bounds, overlap // 8))) for frame in inside] == expected


@pytest.mark.parametrize(
    ("frames", "expected"),
    [
        # Windows of 73 frames that begin at 0, 56, 112; the last one ends at 160.
        ((0, 1), [(0, 0)]),
        ((72, 1), [(0, 72)]),
        # The original shows it to a window that ends before it, and to no other.
        ((73, 1), [(0, 73), (1, 17)]),
        ((80, 1), [(1, 24)]),
        ((160, 1), [(2, 48)]),
        ((64, 9), [(0, 64)]),
        ((64, 25), [(0, 64), (1, 8)]),
        ((0, 161), [(0, 0), (1, -56), (2, -112)]),
    ],
)
def test_frames_go_to_the_windows_that_make_them(frames, expected):
    assert list(windows_of(*frames, window_bounds(21, 10, 3), 3)) == expected


@pytest.mark.parametrize("overlap", [2, 3])
def test_windows_fade_into_each_other(overlap):
    made = faded(GOLDEN["fuse/prev"], GOLDEN["fuse/new"], overlap)
    torch.testing.assert_close(made, GOLDEN[f"fuse/overlap{overlap}"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("factor", [0.25, 1.0])
def test_windows_take_the_statistics_of_the_first(factor):
    made = adain_filter_latent(GOLDEN["fuse/new"], GOLDEN["fuse/prev"], factor)
    torch.testing.assert_close(made, GOLDEN[f"adain_blend/factor{factor}"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("key", [key for key in GOLDEN if key.startswith("coords/")])
def test_what_a_window_is_shown_has_the_times_of_the_original(key, pipeline):
    """Eight latent frames of 2 x 3 in all, those beside the window last."""
    overlap, negative = (
        int(part.removeprefix(name)) for part, name in zip(key.split("_")[1::2], ("overlap", "negative"))
    )
    own = 8 - overlap - negative
    plan = plan_clip(pipeline.sizes, 1, Size(64, 96, 8 * (own - 1) + 1, 25.0), [(1.0, 1.0)])
    latents = torch.zeros(1, 8, max(overlap, 1), 2, 3)
    window, shown = Window(None, None, Timeline(0, overlap, int)), [beside(latents[:, :, :1], -8, 1.0)] * negative
    carried = Carried(ClipLatents(latents, None), 0, latents) if overlap else None
    state = plan.tools.video.create_initial_state()
    for condition in [*window.taken_over(carried)[0], *shown]:
        for item in condition.items(plan).video:
            state = item.apply_to(state, plan.tools.video)
    torch.testing.assert_close(state.positions[..., 0], GOLDEN[key], rtol=0, atol=1e-6)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_steps_are_ancestral(eta):
    sigmas, sample = json.loads(FACTS["sigmas"]), GOLDEN["ancestral/sample"]
    for step, levels in enumerate(pairwise(sigmas)):
        denoised = sample - levels[0] * GOLDEN["ancestral/velocity"]
        made = euler_ancestral_step(sample, denoised, *levels, GOLDEN["ancestral/noise"], eta)
        torch.testing.assert_close(made, GOLDEN[f"ancestral/eta{eta}/step{step}"], rtol=0, atol=1e-5)


@pytest.fixture
def with_texts(pipeline, tmp_path):
    """The pipeline with the texts of the golden vectors as if a text encoder had read them."""
    cache, by = PromptCache(tmp_path), EncodedBy("golden", "none", "torch.float32")
    for text, name in (("a", "a"), ("b", "b"), ("c", "c"), ("blurry", "negative")):
        states = GOLDEN[f"text/{name}"]
        cache.store(by, PromptKey(text, 256), TextContext(states, states[..., :0], GOLDEN["text_mask"]))
    pipeline.enable_prompt_cache(tmp_path)
    yield pipeline
    pipeline.disable_prompt_cache()


@pytest.mark.parametrize("name", SETTINGS)
def test_a_run_has_the_windows_of_diffusers(name, with_texts):
    """diffusers appends a window that shares two latents without fading, which makes its clip two latents too long."""
    call = {**CALL, **SETTINGS[name], "generator": torch.Generator().manual_seed(RUN["seed"])}
    if name != "t2v_no_adain":
        call["cond_image"] = GOLDEN["image_u8"].numpy()
    if name == "cfg":
        call["negative_prompt"] = "blurry"
    made = with_texts(prompt=RUN["prompt"], **call).frames
    theirs = GOLDEN[f"run/{name}/latents"]
    seams = [theirs[:, :, first : first + 2].mean(dim=2, keepdim=True) for first in (4, 8)]
    expected = torch.cat([theirs[:, :, :4], seams[0], theirs[:, :, 6:8], seams[1], theirs[:, :, 10:]], dim=2)
    torch.testing.assert_close(made, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("tone_map", [0.0, 0.6])
def test_a_clip_is_decoded_while_it_is_made(pipeline, tone_map):
    """In the order of its frames, of which there are as many as in one piece, and the same before the first seam."""
    latents = torch.randn(1, 8, 40, 1, 2, generator=torch.Generator().manual_seed(0))
    delivery = Delivery("pt", decode_timestep=0.05, decode_noise_scale=0.0, tone_map=tone_map)
    with torch.no_grad():
        pieces = list(streamed_pixels(pipeline, latents.split(7, dim=2), delivery))
        denormalized = pipeline.codec.denormalize_latents(tone_map_latents(latents, tone_map))
        whole = pipeline.vae.decode(denormalized, torch.tensor([0.05]), return_dict=False)[0]
    joined = torch.cat(pieces, dim=2)
    assert joined.shape == whole.shape
    assert max(piece.shape[2] for piece in pieces) <= 8 * DECODE_TILE
    first = 1 + 8 * (DECODE_TILE - 3 * DECODE_OVERLAP)
    torch.testing.assert_close(joined[:, :, :first], whole[:, :, :first], rtol=0, atol=1e-3)
    assert (joined - whole).abs().mean() < 0.06 * whole.abs().mean()


def test_a_file_has_all_frames(pipeline, tmp_path):
    call = {**CALL, **TEXT, "output_type": "uint8"}
    made = pipeline(**call, save_path=tmp_path / "long.mp4", generator=torch.Generator().manual_seed(1))
    assert made.frames is None
    assert len(read_video(made.info["path"])) == 81
    assert made.info["windows"] == 3
    frames = pipeline(**call, generator=torch.Generator().manual_seed(1)).frames
    assert frames.shape == (1, 81, 64, 96, 3)


CLIP = torch.randint(0, 256, (81, 3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(6))
# Each window is left with what it is held to.
EXACT = {**CALL, **TEXT, "adain_factor": 0.0}


def encoded(pipeline, pixels):
    """Latents of pixels `[n, 3, H, W]`."""
    with torch.no_grad():
        return pipeline.encode_video((pixels / 127.5 - 1).movedim(0, 1)[None])


def test_a_clip_is_held_across_windows(pipeline):
    given = LTXVideoCondition(video=CLIP)
    made = pipeline(**EXACT, conditions=given).frames
    torch.testing.assert_close(made, encoded(pipeline, CLIP), rtol=0, atol=1e-5)


def test_a_clip_is_held_where_it_is(pipeline):
    """From its third latent frame on; the first two are shown beside the window, and counted from the end."""
    given = [LTXVideoCondition(CLIP[0]), LTXVideoCondition(video=CLIP[:33], frame_index=-33)]
    made, latents = pipeline(**EXACT, conditions=given).frames, encoded(pipeline, CLIP[:33])
    torch.testing.assert_close(made[:, :, 8:], latents[:, :, 2:], rtol=0, atol=1e-5)
    torch.testing.assert_close(made[:, :, :1], encoded(pipeline, CLIP[:1]), rtol=0, atol=1e-5)


def test_a_picture_is_shown_beside_its_window(pipeline):
    """At any frame, with its strength, and as it is."""
    call = LongArguments(
        **EXACT, conditions=[LTXVideoCondition(CLIP[0], frame_index=i, strength=0.7) for i in (33, 50, -1)]
    )
    with torch.no_grad():
        video = planned(pipeline, call)
        windows = video.windows(0)
    # Windows of 33 frames begin at 0, 24, 48.
    for window, frames in zip(windows, [[33], [9, 26], [32]]):
        items = [item for condition in window.request.conditions for item in condition.ready.video]
        assert [item.frame_index for item in items] == frames
        for item in items:
            torch.testing.assert_close(item.latent, encoded(pipeline, CLIP[:1]), rtol=0, atol=1e-6)
            assert item.strength == 0.7


def test_a_picture_changes_the_windows_that_follow_it(pipeline):
    """Those before it stay as they are."""
    call = {**EXACT, "generator": torch.Generator().manual_seed(2)}
    without, made = (
        pipeline(**call).frames,
        pipeline(**call, conditions=LTXVideoCondition(CLIP[0], frame_index=50)).frames,
    )
    assert torch.equal(made[:, :, :4], without[:, :, :4])
    assert not torch.allclose(made[:, :, 6:], without[:, :, 6:], atol=1e-3)


def test_what_holds_a_part_mixes_with_noise_once(pipeline):
    """A clip at strength 0.25 in a window: noise by three quarters, and the clip is what its tokens are held to."""
    call = LongArguments(**EXACT, conditions=LTXVideoCondition(video=CLIP[:9], strength=0.25))
    with torch.no_grad():
        video = planned(pipeline, call)
        (condition,) = video.windows(0)[0].request.conditions
    tools = video.runs[0].plan.tools.video
    state = condition.ready.video[0].apply_to(tools.create_initial_state(), tools)
    start = Start(torch.Generator().manual_seed(0), framed_noise=True)
    state = noised(start, Streams(state, None), Streams(tools, None), Streams(False, False), 1.0).video
    noise = torch.randn(tuple(tools.target_shape), generator=torch.Generator().manual_seed(0))[:, :, :2]
    count, latents = 2 * tools.tokens_per_frame, encoded(pipeline, CLIP[:9])
    given = tools.patchifier.patchify(latents)
    torch.testing.assert_close(state.clean_latent[:, :count], given, rtol=0, atol=1e-6)
    expected = tools.patchifier.patchify(0.75 * noise + 0.25 * latents)
    torch.testing.assert_close(state.latent[:, :count], expected, rtol=0, atol=1e-5)


def test_references_go_on_where_a_window_is_new(pipeline, tmp_path):
    """Later windows see theirs from the overlap on, at the times that these frames have there; of a file, the same frames."""
    rate = CALL["frame_rate"]
    with ClipWriter(tmp_path / "depth.mp4", rate) as writer:
        writer.write(CLIP.movedim(1, -1))
    file = str(tmp_path / "depth.mp4")
    call = {**EXACT, "reference_conditions": LTXVideoCondition(video=file, strength=0.5)}
    with torch.no_grad():
        video = planned(pipeline, LongArguments(**call))
        windows = video.windows(0)
    frames = read_video(file).movedim(-1, 1)
    plan = plan_clip(pipeline.sizes, 1, Size(64, 96, 33, rate), [(1.0, 1.0)])
    tools = plan.tools.video
    for start, window in zip((0, 24, 48), windows):
        (condition,) = window.request.conditions
        state = condition.ready.video[0].apply_to(tools.create_initial_state(), tools)
        shown, skipped = encoded(pipeline, frames[start : start + 33]), 2 if start else 0
        tokens = tools.patchifier.patchify(shown[:, :, skipped:])
        torch.testing.assert_close(state.clean_latent[:, tools.num_tokens :], tokens, rtol=0, atol=1e-5)
        times = [1 + 8 * (skipped - 1) + 8 * k for k in range(5 - skipped)] if skipped else [0, 1, 9, 17, 25]
        made = state.positions[0, 0, tools.num_tokens :: tools.tokens_per_frame, 0] * rate
        assert made.round().tolist() == times
        assert state.denoise_mask[:, tools.num_tokens :].unique().tolist() == [0.5]


def test_a_reference_in_memory_is_that_of_a_file(pipeline):
    plan = plan_clip(pipeline.sizes, 1, Size(64, 96, 81, 25.0), [(1.0, 1.0)])
    preparation = (
        planned(pipeline, LongArguments(**EXACT, conditions=LTXVideoCondition(CLIP[0]))).shown[0].condition.preparation
    )
    for clip in (CLIP, CLIP.movedim(1, -1).numpy(), list(CLIP)):
        part = ReferenceCondition(LTXVideoCondition(video=clip), preparation).part(plan, 3, 8)
        assert torch.equal(part, (CLIP[24:57] / 127.5 - 1).movedim(0, 1)[None])


MULTI = {
    **TEXT,
    **{
        "height": 128,
        "width": 160,
        "num_frames": 81,
        "frame_rate": 25.0,
        "output_type": "latent",
        "multi_scale": True,
    },
    **{
        "temporal_tile_size": 40,
        "temporal_overlap": 16,
        "stage_2_temporal_tile_size": 48,
        "stage_2_temporal_overlap": 8,
    },
    **{"image_crf": 0, "image_blur": False},
}


def test_the_second_scale_refines_the_enlarged_whole(pipeline):
    """To the bit what two calls by hand make: the windows of the first size, and over their enlarged whole those of the second."""
    call = {**MULTI, "temporal_overlap_cond_strength": 0.75}
    made = pipeline(**call, generator=torch.Generator().manual_seed(4)).frames
    # A first pass at 2/3 of 128 x 160, in steps that leave the last levels to the second.
    one = {
        "multi_scale": False,
        "height": 64,
        "width": 96,
        "timesteps": [1000 * t for t in pipeline.settings.first_pass.timesteps],
    }
    own = {name: value for name, value in call.items() if not name.startswith("stage_2")}
    whole = pipeline(**own | one, generator=torch.Generator().manual_seed(4)).frames
    with torch.no_grad():
        codec = pipeline.codec
        larger = codec.normalize_latents(pipeline.latent_upsampler(codec.denormalize_latents(whole)))
        larger = adain_filter_latent(larger, whole, 1.0)
        video, done = planned(pipeline, LongArguments(**call)), None
        stage, arguments = video.windows(1, larger)[0].request.stages[0], LongArguments(**call)
        texts = pipeline.prompt_reader.read(texts_of(arguments, None), False, None)
        assert stage.timesteps == [909.4, 725.0, 421.9]
        for start, end in ((0, 6), (5, 11)):
            generator = torch.Generator().manual_seed(4 + 11 + start)
            begin = Start(generator, larger[:, :, start:end], framed_noise=True)
            held = [] if done is None else [beside(done[:, :, -1:], 0, 0.75)]
            parts = {"size": Size(128, 192, 41, 25.0), "stages": [stage], "start": begin, "conditions": held}
            request = replace(video.request, **parts)
            new = generate(pipeline, request, prepare(pipeline, request, 1).runs, texts).latents.video
            done = new if done is None else torch.cat([done, new[:, :, 1:]], dim=2)
    assert torch.equal(made, done)


def test_latents_begin_as_far_in_noise_as_the_run_does(pipeline):
    plan = plan_clip(pipeline.sizes, 1, Size(64, 96, 9, 25.0), [(1.0, 1.0)])
    tools = Streams(plan.tools.video, None)
    latents = torch.randn(tuple(plan.video), generator=torch.Generator().manual_seed(1))
    states = Streams(tools.video.create_initial_state(initial_latent=latents), None)
    start = Start(torch.Generator().manual_seed(0), framed_noise=True)
    state = noised(start, states, tools, Streams(True, False), 0.25).video
    noise = torch.randn(tuple(plan.video), generator=torch.Generator().manual_seed(0))
    expected = tools.video.patchifier.patchify(0.25 * noise + 0.75 * latents)
    torch.testing.assert_close(state.latent, expected, rtol=0, atol=1e-6)


def test_two_scales_are_handed_over_in_the_asked_size(pipeline, tmp_path):
    """Pictures are encoded at both, and the file has every frame."""
    call = {
        **MULTI,
        "output_type": "uint8",
        "num_frames": 41,
        "cond_image": CLIP[0],
        "save_path": tmp_path / "long.mp4",
    }
    made = pipeline(**call, conditions=LTXVideoCondition(CLIP[1], frame_index=-1))
    info = probe(made.info["path"])
    assert (info.height, info.width, info.num_frames) == (128, 160, 41)
    assert made.info["windows"] == [2, 1]


@pytest.fixture
def with_lora(pipeline):
    """The pipeline with a LoRA that is out of action until a stage takes it in."""
    generator = torch.Generator().manual_seed(7)
    layer = pipeline.transformer.proj_in
    sides = {"A": (2, layer.in_features), "B": (layer.out_features, 2)}
    file = {
        f"diffusion_model.patchify_proj.lora_{k}.weight": torch.randn(s, generator=generator) for k, s in sides.items()
    }
    pipeline.load_lora_weights(file, adapter_name="detailer")
    pipeline.set_adapters("detailer", 0.0)
    yield pipeline
    pipeline.unload_lora_weights()


def test_a_detailer_is_shown_the_enlarged_latents(with_lora):
    """Beside every window of the second scale, the overlap left out in later ones, from 0.99 on."""
    call = {**MULTI, "detailer": True, "stage_2_adapters": {"detailer": 1.0}}
    video, latents = planned(with_lora, LongArguments(**call)), torch.randn(1, 8, 11, 4, 6)
    assert video.runs[1].stage.timesteps == [990.0, 909.4]
    assert video.runs[0].stage.timesteps == [1000 * t for t in with_lora.settings.first_pass.timesteps]
    first, second = video.windows(1, latents)
    items = [window.request.conditions[0].ready.video[0] for window in (first, second)]
    assert [item.skipped for item in items] == [0, 1]
    assert torch.equal(torch.cat([items[0].latent, items[1].latent[:, :, 1:]], dim=2), latents)
    plain = planned(with_lora, LongArguments(**MULTI))
    assert not any(window.request.conditions for window in plain.windows(1, latents))


def test_adapters_of_the_second_scale_leave_the_first_alone(with_lora):
    calls = [{}, {"stage_2_adapters": {"detailer": 1.0}}, {"stage_2_adapters": {"detailer": 1.0}, "detailer": True}]
    seen = []

    def note(*given):
        seen[-1].append(given[3]["latents"].clone())

    for one in calls:
        seen.append([])
        with_lora(**MULTI, **one, generator=torch.Generator().manual_seed(1), callback_on_step_end=note)
    # Three windows of seven steps, and then two of three, or two.
    assert [len(steps) for steps in seen] == [27, 27, 25]
    for steps in seen[1:]:
        assert all(torch.equal(one, other) for one, other in zip(steps[:21], seen[0][:21]))
    assert not torch.allclose(seen[0][21], seen[1][21], atol=1e-3)
    assert not torch.allclose(
        seen[1][21][:, : seen[1][21].shape[1]], seen[2][21][:, : seen[1][21].shape[1]], atol=1e-3
    )


def test_the_second_scale_runs_the_second_transformer():
    second, runs = copy.deepcopy(networks()["transformer"]), []
    pipe = tiny_pipeline(kind=LTXVideoLongPipeline, stage_2_transformer=second)
    second.register_forward_pre_hook(lambda *_: runs.append(len(runs)))
    pipe(**MULTI)
    # Two windows of three steps.
    assert len(runs) == 6


def test_the_second_scale_reads_the_texts_of_its_time(with_texts):
    """Windows of the first begin at latent frames 0, 3 and 6, those of the second at 0 and 5."""
    call = {name: value for name, value in MULTI.items() if name not in TEXT}
    video = planned(with_texts, LongArguments(**call, prompt=["a", "b", "c"]))
    windows = [
        window for k, given in enumerate((None, torch.zeros(1, 8, 11, 4, 6))) for window in video.windows(k, given)
    ]
    assert [window.prompts.prompt for window in windows] == ["a", "b", "c", "a", "b"]


def test_an_interrupt_in_the_first_scale_hands_over_its_windows(pipeline):
    steps = []

    def stop(pipe, *_):
        steps.append(pipe)
        # In the second of three windows of seven steps.
        pipe._interrupt = len(steps) == 9

    made = pipeline(**MULTI, callback_on_step_end=stop).frames
    assert made.shape == (1, 8, 5, 2, 3)
    assert len(steps) == 9


@pytest.mark.slow
@pytest.mark.parametrize("scales", [1, 2])
def test_a_minute_is_made_in_flat_memory(pipeline, tmp_path, scales):
    """60 seconds at 24 frames per second: what is held at the end is no more than after a quarter of it."""
    held = []

    def note(*_):
        held.append(sum(t.numel() for t in gc.get_objects() if isinstance(t, torch.Tensor)))

    call = {
        **CALL,
        **TEXT,
        "height": 32,
        "width": 64,
        "frame_rate": 24.0,
        "num_frames": 1441,
        "timesteps": [1000.0, 500.0],
    }
    sizes = {"temporal_tile_size": 120, "temporal_overlap": 32, "save_path": tmp_path / "long.mp4"}
    if scales == 2:
        # Latents of the whole are kept.
        sizes |= {"height": 64, "width": 96, "multi_scale": True, "second_pass": PassSettings(timesteps=(0.9, 0.5))}
        sizes |= {"stage_2_temporal_tile_size": 120, "stage_2_temporal_overlap": 32}
    made = pipeline(**call | sizes | {"output_type": "uint8"}, callback_on_step_end=note)
    assert made.info["windows"] == (17 if scales == 1 else [17, 17])
    assert len(held) == 34 * scales
    assert max(held[-10:]) <= 1.05 * max(held[-29:-19])
    assert probe(made.info["path"]).num_frames == 1441


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({"num_frames": 80}, "`num_frames`"),
        ({"temporal_overlap": 0}, "`temporal_overlap`.*use 8"),
        ({"temporal_overlap": 40}, "`temporal_overlap`"),
        ({"temporal_overlap_cond_strength": 0.0}, "use 0.5"),
        ({"adain_factor": 1.5}, "`adain_factor`"),
        ({"cond_strength": -1.0}, "`cond_strength`"),
        ({"timesteps": [1000.0], "num_inference_steps": 2}, "leave one out"),
        ({"save_path": "clip.mp4"}, "leave one of them out"),
        ({"save_path": "clip.gif", "output_type": "pt"}, ".mp4"),
        ({"height": 33}, "`height`"),
        ({"conditions": LTXVideoCondition(CLIP[0], frame_index=81)}, "from 0 to 80 but is 81; use 80"),
        ({"conditions": LTXVideoCondition(CLIP[0], frame_index=-82)}, "from 0 to 80 but is -82; use 0"),
        ({"conditions": LTXVideoCondition(video=CLIP[:9], frame_index=5)}, "no multiple of 8; use 8"),
        ({"conditions": LTXVideoCondition(CLIP[0], strength=2.0)}, "`strength`"),
        ({"reference_conditions": LTXVideoCondition(video=CLIP[:80])}, "80 frames, .*use num_frames=73"),
        ({"reference_conditions": LTXVideoCondition(CLIP[0])}, "as `video`"),
        ({"reference_conditions": LTXVideoCondition(video=CLIP, frame_index=8)}, "lie at frame 0"),
        ({"image_crf": 52}, "`image_crf`"),
        ({"detailer": True}, "multi_scale=False"),
        ({"second_pass": PassSettings(timesteps=(0.9,))}, "multi_scale=False"),
        ({"stage_2_adain_factor": 0.5}, "`stage_2_adain_factor`.*multi_scale=False"),
        ({"multi_scale": True, "detailer": True}, "no LoRA is active"),
        (
            {"multi_scale": True, "stage_2_temporal_overlap": 80},
            "`stage_2_temporal_overlap`.*`stage_2_temporal_tile_size` .80",
        ),
        ({"multi_scale": True, "height": 32}, "`height`.*at least 64, or multi_scale=False"),
        ({"multi_scale": True, "stage_2_adapters": {"detail": 1.0}}, "no LoRA adapter 'detail'"),
        ({"multi_scale": True, "conditions": LTXVideoCondition(CLIP[0], position=(0, 0))}, "multi_scale=False"),
        ({"cond_strength": 0.7}, "there is no `cond_image`"),
        ({"prompt_embeds": None, "prompt_attention_mask": None, "prompt": list("abcd")}, "4 texts for 3 windows"),
        ({"prompt_embeds": torch.zeros(2, 6, 12), "prompt_attention_mask": torch.ones(2, 6)}, "one at a time"),
    ],
)
def test_what_cannot_be_made_is_refused(pipeline, wish, message):
    def computed(*_):
        raise AssertionError("something was computed")

    handles = [
        pipeline.transformer.register_forward_pre_hook(computed),
        pipeline.vae.encoder.register_forward_pre_hook(computed),
    ]
    try:
        with pytest.raises(ValueError, match=message):
            pipeline(**{**CALL, **TEXT, **wish})
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize(
    ("components", "wish", "message"),
    [
        ({"latent_upsampler": None}, {"multi_scale": True}, "latent_upsampler"),
        ({"preset": "ltxv-13b-0.9.8-mix"}, {}, 'preset="ltxv-13b-0.9.8-dev"'),
        ({"preset": "ltxv-2b-0.9.6-distilled"}, {"multi_scale": True}, "no second pass"),
    ],
)
def test_what_a_checkpoint_cannot_make_is_refused(components, wish, message):
    with pytest.raises(ValueError, match=message):
        tiny_pipeline(kind=LTXVideoLongPipeline, **components)(**{**CALL, **TEXT, **wish})
