"""Random calls of all pipelines: a finite result of the right shape, or an error that names an argument before anything ran."""

import inspect
import tempfile
from contextlib import contextmanager, suppress
from decimal import Decimal
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import ltx2_diffusers as package
from ltx2_diffusers.media.writing import write_video
from tests.pipelines.recipes import staged
from tests.pipelines.tiny import seeded

CALLS = 500
NAN, INFINITY = float("nan"), float("inf")
RATE = 24000
PIXELS = np.random.default_rng(0).integers(0, 256, (17, 64, 64, 3), dtype=np.uint8)
PICTURE = PIL.Image.fromarray(PIXELS[0])
SOUND = torch.sin(torch.arange(RATE) / 20)[None].repeat(2, 1) / 4
SMALL = {"height": 64, "width": 64, "num_frames": 9}
QUICK = {"num_inference_steps": 1, "max_sequence_length": 16, "output_type": "latent"}
PLAIN = {"prompt": "a fox", "guidance_scale": 1.0, **SMALL, **QUICK}
DISTILLED = {"output_type": "latent", "two_stage": False, "sigmas": [1.0]}
# The miniature knows no keyframes that a pass could make.
DFR = {"generate_slots": False, "sigmas": [1.0], "max_sequence_length": 16, "output_type": "latent"}
STAGED = {**PLAIN, "stage_2_adapters": {}, "stage_2_sigmas": [0.4]}

# What is nothing that any argument means.
NEVER = [NAN, INFINITY, -INFINITY, object(), 1j, [NAN], {"a": NAN}, torch.tensor([1.0, NAN]), np.array(NAN), b"1"]
# What some arguments take and others do not.
ODD = [
    None,
    True,
    -1,
    0,
    1,
    7,
    0.5,
    -0.5,
    1e30,
    10**400,
    2**63,
    "",
    "x",
    "3",
    "\ud800",
    [],
    {},
    (),
    [None],
    [1],
    [0.5],
]
ODD += [
    [1.5, 0.5],
    [0.5, 1],
    ["x"],
    {"x": 1.0},
    {1: 2},
    torch.tensor(1),
    torch.zeros(2, 2),
    torch.zeros(0),
    np.int64(9),
    np.float32(0.5),
]
ODD += [Fraction(1, 2), Decimal("0.5"), np.zeros((3, 3)), torch.zeros(1, 128, 2, 2, 2, device="meta"), print, PICTURE]


@cache
def clip() -> str:
    """A clip with sound."""
    folder = Path(tempfile.mkdtemp())
    return str(write_video(folder / "clip.mp4", PIXELS, 24.0, SOUND[:, : RATE * 17 // 24], RATE))


@cache
def embeds() -> dict[str, Any]:
    """Text states in place of a prompt."""
    states, mask, *_ = staged().encode_prompt("a fox", max_sequence_length=16)
    return {"prompt": None, "prompt_embeds": states, "prompt_attention_mask": mask}


@cache
def calls() -> dict[str, dict[str, Any]]:
    """A small call of every pipeline."""
    plain = {name: value for name, value in PLAIN.items() if name not in SMALL}
    clips = {"latents": torch.randn(1, 128, 2, 2, 2, generator=seeded(0))}
    return {
        "LTX2Pipeline": PLAIN,
        "LTX2ImageToVideoPipeline": {**PLAIN, "image": PICTURE},
        "LTX2ConditionPipeline": {**PLAIN, "conditions": package.LTX2VideoCondition(PICTURE)},
        "LTX2InContextPipeline": {**PLAIN, "reference_conditions": package.LTX2ReferenceCondition(PIXELS[:9])},
        "LTX2DFRPipeline": {"prompt": "a fox", **SMALL, **DFR},
        "LTX2HDRPipeline": {**PLAIN, "reference_conditions": package.LTX2HDRReferenceCondition(PIXELS[:9])},
        "LTX2LatentUpsamplePipeline": {**clips, "output_type": "latent"},
        "LTX2TwoStagePipeline": STAGED,
        "LTX2DistilledPipeline": {"prompt": "a fox", **SMALL, "max_sequence_length": 16, **DISTILLED},
        "LTX2KeyframeInterpolationPipeline": {**STAGED, "images": [PICTURE, PICTURE]},
        "LTX2AudioToVideoPipeline": {**STAGED, "audio": SOUND, "sampling_rate": RATE},
        "LTX2TextToAudioPipeline": {**plain, "duration_s": 0.4},
        "LTX2VideoToAudioPipeline": {**plain, "video": clip()},
        "LTX2RetakePipeline": {**plain, "video": clip(), "start_s": 0.2, "end_s": 0.5},
        "LTX2ExtendPipeline": {**PLAIN, "num_frames": 17, "overlap_frames": 9},
    }


# Values that an argument takes where nothing contradicts them; a mapping stands for several arguments.
VALID: dict[str, list[Any]] = {
    "prompt": ["a fox", ["a fox"], ""],
    "negative_prompt": [None, "blurry", ["blurry"]],
    "height": [64, np.int64(64), torch.tensor(64), 96, 128],
    "width": [64, np.int32(96), 128],
    "num_frames": [9, np.int64(9), 17],
    "frame_rate": [24, 24.0, np.float64(25), Fraction(24000, 1001), Decimal("12.5"), torch.tensor(24.0)],
    "motion_speed": [1, 0.5, np.float32(2)],
    "num_inference_steps": [1, np.int64(2)],
    "sigmas": [[1.0, 0.5], np.array([0.9]), torch.tensor([1.0, 0.25]), (1, Fraction(1, 2))],
    "timesteps": [[1000, 500], np.array([900])],
    "guidance_scale": [1.0, 3, np.float32(2.5), Fraction(3, 2)],
    "stg_scale": [0.0, 1, -1.0],
    "modality_scale": [1.0, np.float64(3)],
    "guidance_rescale": [0.0, 0.7],
    "spatio_temporal_guidance_blocks": [[0], [np.int64(1)], np.array([0])],
    "noise_scale": [0.0, 0.5, np.float32(1)],
    "num_videos_per_prompt": [1, np.int64(2)],
    "generator": [None, torch.Generator(), [torch.Generator()]],
    "latents": [torch.zeros(1, 128, 2, 2, 2), torch.zeros(1, 8, 128), torch.zeros(1, 128, 2, 2, 2).half()],
    "audio_latents": [torch.zeros(1, 2, 9, 16), torch.zeros(1, 9, 32)],
    "decoder": ["vae"],
    "decode_timestep": [0.0, [0.05], np.float32(0.5)],
    "decode_noise_scale": [None, 0.025, [0.5]],
    "use_cross_timestep": [None, True, np.bool_(False)],
    "output_type": ["latent", "np", "pt", "uint8", "pil"],
    "return_dict": [True, False],
    "attention_kwargs": [None, {}, {"scale": 0.5}],
    "callback_on_step_end": [lambda *_: {}, lambda *_: None, lambda _p, _i, _t, tensors: tensors],
    "callback_on_step_end_tensor_inputs": [["latents"], ("audio_latents", "denoised"), []],
    "max_sequence_length": [16, np.int64(32)],
    "sampler": [None, "euler", "euler_ancestral", "res_2s", "gradient_estimating"],
    "guidance_options": [package.GuidanceOptions(), package.GuidanceOptions(skip_step=np.int64(1))],
    "two_stage": [True, False],
    "stage_2_sigmas": [[0.9, 0.4], np.array([0.5])],
    "stage_1_adapters": [None, {}],
    "stage_2_adapters": [None, {}],
    "stages": [None, [package.Stage(num_inference_steps=np.int64(1))]],
    "audio_stage": [-1, np.int64(0)],
    "image": [PICTURE, PIXELS[0], torch.zeros(3, 64, 64, dtype=torch.uint8)],
    "images": [[PICTURE], PIXELS[:2]],
    "conditions": [None, [], package.LTX2VideoCondition(PICTURE, index=np.int64(1), strength=np.float32(0.5))],
    "reference_conditions": [None, [package.LTX2ReferenceCondition(PIXELS[:9], downscale_factor=np.int64(1))]],
    "reference_downscale_factor": [None, np.int64(1)],
    "conditioning_attention_strength": [1.0, 0, np.float32(0.5)],
    "conditioning_attention_mask": [None, torch.ones(1, 1, 9, 8, 8)],
    "audio": [SOUND, SOUND[None]],
    "sampling_rate": [RATE, np.int64(RATE)],
    "audio_start_s": [0, np.float32(0.25)],
    "audio_cond_noise_scale": [0, np.float64(0.5)],
    "audio_fit": ["crop", "pad", "stretch"],
    "generate_audio": [True, False, np.bool_(True)],
    "frame_indices": [[0, -1], np.array([0, 8])],
    "strengths": [1, [0.5, np.float32(1)]],
    "image_crf": [None, 0, np.int64(33)],
    "duration_s": [0.4, 1, Fraction(1, 2)],
    "start_s": [0, np.float32(0.1)],
    "end_s": [0.5, Fraction(2, 5)],
    "region": [None, np.ones((64, 64)), PICTURE],
    "regenerate_video": [True, False],
    "regenerate_audio": [None, True, np.bool_(False)],
    "num_segments": [None, np.int64(1), 2],
    "overlap_frames": [9, np.int64(9)],
    "direction": ["forward", "backward"],
    "drift_control": [0, np.float32(0.5)],
    "adain_factor": [0, np.float32(1.0)],
    "tone_map_compression_ratio": [0, 0.5],
    "keyframe_positions": [None, [8], np.array([24])],
    "keyframes_latents": [None, torch.zeros(1, 128, 1, 2, 2)],
    "guidance_keyframe_latents": [None, torch.zeros(1, 128, 1, 2, 2)],
    "guidance_keyframe_positions": [None, [np.int64(24)]],
    "guidance_keyframe_strength": [1, np.float32(0.5)],
    "reference_latents": [None, torch.zeros(1, 128, 2, 1, 1)],
    "generate_slots": [False, True],
    "freeze_audio": [False, np.bool_(True)],
    "video_tiles": [None, package.epilogue_tiles((4, 2, 2), 1, [])],
    "latents_normalized": [True, np.bool_(False)],
    "spatial_patch_size": [1, np.int64(1)],
    "temporal_patch_size": [1],
    # Nothing but the default or a file in the world means something here, or only together with others.
    **{name: [] for name in ("min_seconds", "max_seconds", "save_path", "system_prompt", "prompt_max_new_tokens")},
    **{name: [] for name in ("prompt_enhancement_kwargs", "enable_prompt_enhancement", "video")},
    **{name: [] for name in ("negative_prompt_embeds", "prompt_attention_mask", "negative_prompt_attention_mask")},
    **{name: [] for name in ("connector_video_embeds", "connector_audio_embeds")},
    "use_audio_stream": [True, False, np.bool_(True)],
    "prompt_embeds": [embeds],
    "prompt_enhancement_seed": [np.int64(10)],
}
VALID |= {f"audio_{name}": ["preset", None, *VALID[name]] for name in VALID if name.endswith(("_scale", "_rescale"))}
# Odd values of these have effects beyond the call (a file), or take minutes (a language model that writes).
ONLY_NEVER = ("save_path", "enable_prompt_enhancement")


@cache
def pipeline(name: str) -> Any:
    """A pipeline on the shared miniature, which counts what runs."""
    built = getattr(package, name).from_pipe(staged())
    built.set_progress_bar_config(disable=True)
    return built


@contextmanager
def counting():
    """The names of models that run."""
    ran: list[str] = []
    hooks = [
        module.register_forward_pre_hook(lambda *_, name=name: ran.append(name))
        for name, part in staged().components.items()
        if isinstance(part, torch.nn.Module)
        for module in part.modules()
    ]
    yield ran
    for hook in hooks:
        hook.remove()


@st.composite
def random_calls(draw: Any) -> tuple[str, dict[str, Any], bool]:
    """A pipeline, arguments in place of those of its small call, and whether one of them means nothing."""
    name = draw(st.sampled_from(sorted(calls())))
    taken = list(inspect.signature(pipeline(name).__call__).parameters)
    drawn, is_nonsense = {}, False
    for argument in draw(st.lists(st.sampled_from(taken), min_size=1, max_size=3, unique=True)):
        pools = [VALID.get(argument) or [], [] if argument in ONLY_NEVER else ODD, NEVER]
        pool = draw(st.sampled_from([pool for pool in (pools[0], *pools) if pool]))
        value = draw(st.sampled_from(range(len(pool))))
        is_nonsense |= pool is NEVER
        drawn[argument] = pool[value]
    return name, drawn, is_nonsense


def check(name: str, drawn: dict[str, Any], is_nonsense: bool) -> None:
    """Make a call and judge what comes of it."""
    if drawn.get("prompt_embeds") is embeds:
        drawn = {**embeds(), **{key: value for key, value in drawn.items() if key != "prompt_embeds"}}
    arguments = {**calls()[name], **drawn}
    with counting() as ran:
        try:
            result = pipeline(name)(**arguments)
        except FileNotFoundError as error:
            # A text where a clip may stand is the name of a file.
            assert any(isinstance(value, str) and repr(value) in str(error) for value in drawn.values()), drawn
            assert not ran, (str(error), drawn)
            return
        except (ValueError, TypeError) as error:
            assert any(argument in str(error) for argument in drawn), (str(error), drawn)
            assert not ran, (str(error), drawn)
            return
    assert not is_nonsense, drawn
    parts = result if isinstance(result, tuple) else (result.frames, result.audio)
    assert any(part is not None for part in parts)
    for part in parts:
        assert part is None or np.isfinite(np.asarray(as_array(part), dtype=np.float32)).all()
    assert_shape(arguments, parts[0])


def as_array(part: Any) -> Any:
    """Tensors and images as an array."""
    if isinstance(part, torch.Tensor):
        return part.float().numpy()
    return np.stack([np.asarray(image) for image in part[0]]) if isinstance(part, list) else part


def assert_shape(arguments: dict[str, Any], frames: Any) -> None:
    """Pixels or latents of the size that was asked for, where the call says it."""
    asked = [arguments.get(side) for side in ("num_frames", "height", "width")]
    if frames is None or None in asked or "overlap_frames" in arguments or arguments.get("latents") is not None:
        return
    num_frames, height, width = map(int, asked)
    if arguments["output_type"] == "latent" and "generate_slots" not in arguments:
        assert tuple(frames.shape[1:]) == (128, (num_frames - 1) // 8 + 1, height // 32, width // 32)
    elif arguments["output_type"] in ("np", "uint8"):
        assert tuple(frames.shape[1:]) == (num_frames, height, width, 3)


def test_every_argument_can_be_drawn():
    taken = {name for call in calls() for name in inspect.signature(pipeline(call).__call__).parameters}
    assert taken - VALID.keys() == set()


@pytest.mark.slow
@settings(max_examples=CALLS, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(random_calls())
def test_random_calls_end_in_a_result_or_name_an_argument(call):
    with suppress(MemoryError):
        check(*call)
