"""Long videos: windows against the golden vectors, streamed decoding, and what is refused."""

import gc
import json
from itertools import pairwise

import pytest
import torch

from ltx2_diffusers.conditioning import TextContext
from ltx2_diffusers.families.ltx_video.conditions import beside
from ltx2_diffusers.families.ltx_video.long import (
    DECODE_OVERLAP,
    DECODE_TILE,
    LTXVideoLongPipeline,
    Window,
    faded,
    streamed_pixels,
    window_bounds,
)
from ltx2_diffusers.media.reading import probe, read_video
from ltx2_diffusers.models.latent_filters import adain_filter_latent
from ltx2_diffusers.pipelines.arguments import Delivery
from ltx2_diffusers.pipelines.plan import Size, plan_clip
from ltx2_diffusers.pipelines.recipes.extension.plan import ClipLatents, Timeline
from ltx2_diffusers.pipelines.recipes.extension.segments import Carried
from ltx2_diffusers.prompts.cache import EncodedBy, PromptCache, PromptKey
from ltx2_diffusers.sampling.steppers import euler_ancestral_step
from tests.families.ltx_video.runs import tiny_pipeline
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


def test_a_clip_is_decoded_while_it_is_made(pipeline):
    """In the order of its frames, of which there are as many as in one piece, and the same before the first seam."""
    latents = torch.randn(1, 8, 40, 1, 2, generator=torch.Generator().manual_seed(0))
    delivery = Delivery("pt", decode_timestep=0.05, decode_noise_scale=0.0)
    with torch.no_grad():
        pieces = list(streamed_pixels(pipeline, latents.split(7, dim=2), delivery))
        denormalized = pipeline.codec.denormalize_latents(latents)
        whole = pipeline.vae.decode(denormalized, torch.tensor([0.05]), return_dict=False)[0]
    joined = torch.cat(pieces, dim=2)
    assert joined.shape == whole.shape
    assert max(piece.shape[2] for piece in pieces) <= 8 * DECODE_TILE
    first = 1 + 8 * (DECODE_TILE - 3 * DECODE_OVERLAP)
    torch.testing.assert_close(joined[:, :, :first], whole[:, :, :first], rtol=0, atol=1e-3)
    assert (joined - whole).abs().mean() < 0.05 * whole.abs().mean()


def test_a_file_has_all_frames(pipeline, tmp_path):
    call = {**CALL, **TEXT, "output_type": "uint8"}
    made = pipeline(**call, save_path=tmp_path / "long.mp4", generator=torch.Generator().manual_seed(1))
    assert made.frames is None
    assert len(read_video(made.info["path"])) == 81
    assert made.info["windows"] == 3
    frames = pipeline(**call, generator=torch.Generator().manual_seed(1)).frames
    assert frames.shape == (1, 81, 64, 96, 3)


@pytest.mark.slow
def test_a_minute_is_made_in_flat_memory(pipeline, tmp_path):
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
    made = pipeline(**call | sizes | {"output_type": "uint8"}, callback_on_step_end=note)
    assert made.info["windows"] == 17
    assert len(held) == 34
    assert max(held[-10:]) <= 1.05 * max(held[5:15])
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
        ({"cond_strength": 0.7}, "there is no `cond_image`"),
        ({"prompt_embeds": None, "prompt_attention_mask": None, "prompt": list("abcd")}, "4 texts for 3 windows"),
        ({"prompt_embeds": torch.zeros(2, 6, 12), "prompt_attention_mask": torch.ones(2, 6)}, "one at a time"),
    ],
)
def test_what_cannot_be_made_is_refused(pipeline, wish, message):
    def computed(*_):
        raise AssertionError("something was computed")

    handle = pipeline.transformer.register_forward_pre_hook(computed)
    try:
        with pytest.raises(ValueError, match=message):
            pipeline(**{**CALL, **TEXT, **wish})
    finally:
        handle.remove()
