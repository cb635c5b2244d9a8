"""Every public name of diffusers' LTX-2 files is here under the same name, or is left out for a reason."""

import importlib
import inspect
import pkgutil

import diffusers
import diffusers.modular_pipelines.ltx2
import diffusers.pipelines.ltx2
import numpy as np
import PIL.Image
import pytest
import torch

import ltx2_diffusers
from ltx2_diffusers.media.reading import read_video
from ltx2_diffusers.modular import blocks as compositions
from ltx2_diffusers.modular import decoding, denoising, encoding, preparing, text

NETWORKS = {
    "diffusers.models.transformers.transformer_ltx2": {"LTX2VideoTransformer3DModel", "AudioVisualModelOutput"},
    "diffusers.models.autoencoders.autoencoder_kl_ltx2": {"AutoencoderKLLTX2Video"},
    "diffusers.models.autoencoders.autoencoder_kl_ltx2_audio": {"AutoencoderKLLTX2Audio"},
    "diffusers.models.autoencoders.ltx2_diffusion_decoder": {"LTX2VideoDiffusionDecoderModel"},
    "diffusers.pipelines.ltx2.connectors": {"LTX2TextConnectors"},
    "diffusers.pipelines.ltx2.duration_head": {"LTX2DurationHead"},
    "diffusers.pipelines.ltx2.latent_upsampler": {"LTX2LatentUpsamplerModel"},
    "diffusers.pipelines.ltx2.vocoder": {"LTX2Vocoder", "LTX2VocoderWithBWE"},
}
"""Files of networks, and what of them is public; the rest are layers, whose weights have the same names here."""
FOLDERS = (diffusers.pipelines.ltx2, diffusers.modular_pipelines.ltx2)
BLOCKS = (text, encoding, preparing, denoising, decoding, compositions)
CONSTANTS = [
    name
    for name in ltx2_diffusers.__all__
    if name.isupper() and hasattr(importlib.import_module("diffusers.pipelines.ltx2.utils"), name)
]
ABSENT = {
    "a helper of diffusers' own calls, of which each file has a copy": {
        "calculate_shift",
        "retrieve_timesteps",
        "retrieve_latents",
        "rescale_noise_cfg",
        "convert_velocity_to_x0",
        "convert_x0_to_velocity",
        "conditioning_frame_rate",
        "resolve_default_image_crf",
        "apply_image_conditioning_crf",
        "clean_response",
    },
    "not about LTX-2": {"EXAMPLE_DOC_STRING", "XLA_AVAILABLE", "TYPE_CHECKING"},
    "settings of the language model are arguments of `enhance_prompt`": {
        "PromptEnhancementConfig",
        "GEMMA3_PROMPT_ENHANCEMENT_CONFIG",
        "GEMMA4_PROMPT_ENHANCEMENT_CONFIG",
    },
    "attributes of `LTX2ModularPipeline`: `latents_mean` and the others": {
        "LTX2_LATENTS_MEAN",
        "LTX2_LATENTS_STD",
        "LTX2_AUDIO_LATENTS_MEAN",
        "LTX2_AUDIO_LATENTS_STD",
    },
    "constants and functions inside of the DFR pipelines": {
        "ANCHOR_KEYFRAME_STRENGTH",
        "EPILOGUE_KEYFRAME_STRENGTH",
        "TEMPORAL_ANCESTRAL_ETA",
        "MAX_CONDITIONING_FPS",
        "SNAP_CONDITIONING_FPS_ABOVE",
        "SEGMENT_LATENT_CANDIDATES",
        "EPILOGUE_SPATIAL_OVERLAP",
        "DimensionInterval",
        "choose_segment_length",
        "resolve_canvas",
        "pixel_to_latent_index",
        "split_canvas_at_seams",
        "temporal_tile_plan",
        "split_by_count",
        "trapezoidal_mask_1d",
        "rectangular_mask_1d",
        "video_tile_plan",
    },
}


def own_names(module):
    """What a file defines: its classes and functions, and names that it gives to other values."""
    return {
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and not inspect.ismodule(value)
        and (getattr(value, "__module__", module.__name__) == module.__name__)
        and (name.isupper() or inspect.isclass(value) or inspect.isfunction(value))
    }


def their_names():
    """Public names of diffusers' LTX-2 files."""
    files = [f"{folder.__name__}.{one.name}" for folder in FOLDERS for one in pkgutil.iter_modules(folder.__path__)]
    names = {name for name in dir(diffusers) if name.startswith("LTX2")}
    for file in {*files, *NETWORKS, "diffusers.guiders.ltx2_guidance"}:
        names |= NETWORKS.get(file) or own_names(importlib.import_module(file))
    return names | {"encode_video"}


def test_every_public_name_is_here_or_left_out_for_a_reason():
    names, blocks = their_names(), {name for room in BLOCKS for name in vars(room)}
    assert {"LTX2Pipeline", "LTX2SetTimestepsStep", "DISTILLED_SIGMA_VALUES", "LTX2Guidance"} <= names
    reasons = [name for group in ABSENT.values() for name in group]
    assert len(reasons) == len(set(reasons))
    assert names - set(ltx2_diffusers.__all__) - blocks == set(reasons)
    assert not set(reasons) & set(ltx2_diffusers.__all__)


@pytest.mark.parametrize("name", CONSTANTS)
def test_constants_have_the_same_values(name):
    expected = getattr(importlib.import_module("diffusers.pipelines.ltx2.utils"), name)
    assert (type(getattr(ltx2_diffusers, name)), getattr(ltx2_diffusers, name)) == (type(expected), expected)


def test_there_are_constants_to_compare():
    assert len(CONSTANTS) >= 10


def parameters(function):
    return [(one.name, one.default) for one in inspect.signature(function).parameters.values()]


def test_encode_video_is_called_alike():
    assert parameters(ltx2_diffusers.encode_video) == parameters(diffusers.utils.encode_video)


FRAMES = np.random.default_rng(0).random((5, 32, 48, 3), dtype=np.float32)


@pytest.mark.parametrize("form", ["np", "pil", "uint8", "pieces"])
def test_encode_video_takes_what_pipelines_return(form, tmp_path):
    as_bytes = torch.from_numpy((FRAMES * 255).round().astype(np.uint8))
    video = {
        "np": lambda: FRAMES,
        "pil": lambda: [PIL.Image.fromarray(frame.numpy()) for frame in as_bytes],
        "uint8": lambda: as_bytes,
        "pieces": lambda: iter(as_bytes.split(2)),
    }[form]()
    sound = torch.zeros(2, 3333)
    ltx2_diffusers.encode_video(video, 24, tmp_path / "clip.mp4", sound, 16000, video_chunks_number=2)
    clip = read_video(tmp_path / "clip.mp4")
    assert clip.shape == (5, 32, 48, 3)
    # H.264 at a good quality, of noise in half the resolution of colours.
    luma = torch.tensor([0.299, 0.587, 0.114])
    assert ((clip.float() - as_bytes.float()) @ luma).abs().mean() < 12


def test_encode_video_refuses(tmp_path):
    with pytest.raises(ValueError, match="audio_sample_rate"):
        ltx2_diffusers.encode_video(FRAMES, 24, tmp_path / "clip.mp4", torch.zeros(2, 100))
    with pytest.raises(ValueError, match="video_chunks_number"):
        ltx2_diffusers.encode_video(FRAMES, 24, tmp_path / "clip.mp4", video_chunks_number=0)
    assert list(tmp_path.iterdir()) == []
