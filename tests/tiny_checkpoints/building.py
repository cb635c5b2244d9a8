"""Builds the checkpoints that tests run on: LTX-2.0 and LTX-2.3 in diffusers' layout.

bfloat16 weights from fixed seeds: a Gemma 3, its tokenizer and processor, connectors, transformer, both VAEs, vocoder, and
a spatial and a temporal upsampler beside them. They generate noise with structure, not pictures; every shape, rate and
switch is that of the real models.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn
from transformers import Gemma3ForConditionalGeneration, GemmaTokenizer

import ltx2_diffusers
from examples.mini_world.components import write_model, write_text_models
from ltx2_diffusers.checkpoints.class_names import COMPONENT_CLASSES
from ltx2_diffusers.checkpoints.folder import write_model_index, write_scheduler
from ltx2_diffusers.training.components import set_spectrum_filters

from . import weights
from .configs import AUDIO_LATENT_BINS, AUDIO_LATENT_CHANNELS, component_configs
from .text_model import build_text_encoder, build_tokenizer

# Folders that stand beside the pipeline without being a component of it.
UPSAMPLERS = ("latent_upsampler", "temporal_upsampler")


def build_component(component: str, version: str) -> nn.Module:
    """A component with drawn and scaled weights, in float32."""
    config = component_configs(version)[component]
    kind = "latent_upsampler" if component in UPSAMPLERS else component
    names = COMPONENT_CLASSES[kind]
    model = getattr(ltx2_diffusers, names[-1] if version == "2.3" else names[0])(**config).eval()
    weights.draw_weights(model, f"{version}/{component}")
    if hasattr(model, "latents_mean"):
        weights.draw_latent_statistics(model, f"{version}/{component}")
    if kind in _SCALE:
        _SCALE[kind](model)
    return model


def _noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def _scale_video_vae(vae: nn.Module) -> None:
    latents, video = _noise(4, 128, 3, 4, 4), _noise(1, 3, 9, 64, 64).clamp(-1, 1)
    weights.smooth_decoder(vae.decoder, vae.config.patch_size)
    decoder_end, encoder_end = vae.decoder.conv_out.conv, vae.encoder.conv_out.conv
    scale = weights.scale_output
    scale(
        decoder_end,
        lambda: vae.decode(latents, return_dict=False)[0],
        weights.PIXEL_STD,
        sub_pixels=vae.config.patch_size**2,
    )
    scale(encoder_end, lambda: vae.encode(video, return_dict=False)[0].mean, weights.LATENT_STD)


def _scale_audio_vae(vae: nn.Module) -> None:
    latents, mel = _noise(1, AUDIO_LATENT_CHANNELS, 16, AUDIO_LATENT_BINS), _noise(1, 2, 61, 64) * 2 - 5
    decoder_end, encoder_end = vae.decoder.conv_out.conv, vae.encoder.conv_out.conv
    scale, mean = weights.scale_output, weights.MEAN_LOG_MEL
    scale(decoder_end, lambda: vae.decode(latents, return_dict=False)[0], weights.LOG_MEL_STD, mean)
    scale(encoder_end, lambda: vae.encode(mel, return_dict=False)[0].mean, weights.LATENT_STD)


def _scale_vocoder(vocoder: nn.Module) -> None:
    mel = _noise(1, 2, 61, 64) * weights.LOG_MEL_STD + weights.MEAN_LOG_MEL
    first = getattr(vocoder, "vocoder", vocoder)
    weights.scale_output(first.conv_out, lambda: first(mel), weights.WAVE_STD)
    if first is not vocoder:
        set_spectrum_filters(vocoder)
        second = vocoder.bwe_generator
        weights.scale_output(second.conv_out, lambda: second(mel), weights.WAVE_STD / 2)


def _scale_upsampler(upsampler: nn.Module) -> None:
    latents = _noise(1, 128, 3, 4, 4)
    weights.scale_output(upsampler.final_conv, lambda: upsampler(latents), weights.LATENT_STD)


_SCALE = {
    "vae": _scale_video_vae,
    "audio_vae": _scale_audio_vae,
    "vocoder": _scale_vocoder,
    "latent_upsampler": _scale_upsampler,
}


def drawn_text_models() -> tuple[Gemma3ForConditionalGeneration, GemmaTokenizer]:
    """The language model with drawn weights, and its tokenizer."""
    tokenizer = build_tokenizer()
    text_encoder = build_text_encoder(len(tokenizer)).eval()
    weights.draw_weights(text_encoder, "text_encoder")
    return text_encoder, tokenizer


def build(folder: Path, version: str) -> None:
    """Write one complete pipeline folder, in place of an older one; equal to the bit each time."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with _one_thread(), torch.random.fork_rng(devices=[]), torch.inference_mode(False):
        pairs = write_text_models(folder, *drawn_text_models())
        for component in component_configs(version):
            kind = "latent_upsampler" if component in UPSAMPLERS else component
            pair = write_model(folder, component, build_component(component, version), kind)
            if component not in UPSAMPLERS:
                pairs[component] = pair
    write_scheduler(folder / "scheduler", distilled=False)
    write_model_index(folder, pairs)


@contextmanager
def _one_thread() -> Iterator[None]:
    """The outputs that last layers are scaled by depend on the order of sums, and that on the number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
