"""Build the miniature checkpoints that come with the package. Run `python -m scripts.build_tiny_checkpoint`.

Two pipeline folders in diffusers' layout, LTX-2.0 and LTX-2.3, with bfloat16 weights from fixed seeds: a Gemma 3, its
tokenizer and processor, connectors, transformer, both VAEs, vocoder, and a spatial and a temporal upsampler beside
them. They generate noise with structure, not pictures; every shape, rate and switch is that of the real models.
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn

import ltx2_diffusers
from ltx2_diffusers.atomic import write_json
from ltx2_diffusers.checkpoints.class_names import COMPONENT_CLASSES
from ltx2_diffusers.checkpoints.folder import portable_pair, write_component, write_model_index, write_scheduler
from ltx2_diffusers.checkpoints.safetensors_io import Entry
from ltx2_diffusers.training.components import set_spectrum_filters

from . import tiny_weights
from .tiny_configs import AUDIO_LATENT_BINS, AUDIO_LATENT_CHANNELS, component_configs
from .tiny_text_model import build_processor, build_text_encoder, build_tokenizer

DTYPE = torch.bfloat16
FOLDERS = {"2.0": "ltx-2-tiny", "2.3": "ltx-2.3-tiny"}
RESOURCES = Path(ltx2_diffusers.__file__).parent / "resources" / "checkpoints"
# All checkpoints together; they are part of every installation.
MAX_BYTES = 10_000_000
# Folders that stand beside the pipeline without being a component of it.
UPSAMPLERS = ("latent_upsampler", "temporal_upsampler")


def build_component(component: str, version: str) -> nn.Module:
    """A component with drawn and scaled weights, in float32."""
    config = component_configs(version)[component]
    kind = "latent_upsampler" if component in UPSAMPLERS else component
    names = COMPONENT_CLASSES[kind]
    model = getattr(ltx2_diffusers, names[-1] if version == "2.3" else names[0])(**config).eval()
    tiny_weights.draw_weights(model, f"{version}/{component}")
    if hasattr(model, "latents_mean"):
        tiny_weights.draw_latent_statistics(model, f"{version}/{component}")
    if kind in _SCALE:
        _SCALE[kind](model)
    return model


def _noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def _scale_video_vae(vae: nn.Module) -> None:
    latents, video = _noise(4, 128, 3, 4, 4), _noise(1, 3, 9, 64, 64).clamp(-1, 1)
    tiny_weights.smooth_decoder(vae.decoder, vae.config.patch_size)
    decoder_end, encoder_end = vae.decoder.conv_out.conv, vae.encoder.conv_out.conv
    scale = tiny_weights.scale_output
    scale(
        decoder_end,
        lambda: vae.decode(latents, return_dict=False)[0],
        tiny_weights.PIXEL_STD,
        sub_pixels=vae.config.patch_size**2,
    )
    scale(encoder_end, lambda: vae.encode(video, return_dict=False)[0].mean, tiny_weights.LATENT_STD)


def _scale_audio_vae(vae: nn.Module) -> None:
    latents, mel = _noise(1, AUDIO_LATENT_CHANNELS, 16, AUDIO_LATENT_BINS), _noise(1, 2, 61, 64) * 2 - 5
    decoder_end, encoder_end = vae.decoder.conv_out.conv, vae.encoder.conv_out.conv
    scale, mean = tiny_weights.scale_output, tiny_weights.MEAN_LOG_MEL
    scale(decoder_end, lambda: vae.decode(latents, return_dict=False)[0], tiny_weights.LOG_MEL_STD, mean)
    scale(encoder_end, lambda: vae.encode(mel, return_dict=False)[0].mean, tiny_weights.LATENT_STD)


def _scale_vocoder(vocoder: nn.Module) -> None:
    mel = _noise(1, 2, 61, 64) * tiny_weights.LOG_MEL_STD + tiny_weights.MEAN_LOG_MEL
    first = getattr(vocoder, "vocoder", vocoder)
    tiny_weights.scale_output(first.conv_out, lambda: first(mel), tiny_weights.WAVE_STD)
    if first is not vocoder:
        set_spectrum_filters(vocoder)
        second = vocoder.bwe_generator
        tiny_weights.scale_output(second.conv_out, lambda: second(mel), tiny_weights.WAVE_STD / 2)


def _scale_upsampler(upsampler: nn.Module) -> None:
    latents = _noise(1, 128, 3, 4, 4)
    tiny_weights.scale_output(upsampler.final_conv, lambda: upsampler(latents), tiny_weights.LATENT_STD)


_SCALE = {
    "vae": _scale_video_vae,
    "audio_vae": _scale_audio_vae,
    "vocoder": _scale_vocoder,
    "latent_upsampler": _scale_upsampler,
}


def write_model(folder: Path, component: str, model: nn.Module) -> tuple[str, str]:
    """Write a component of ours under diffusers' class name; return its pair of `model_index.json`."""
    kind = "latent_upsampler" if component in UPSAMPLERS else component
    state = {name: tensor.to(DTYPE) for name, tensor in model.state_dict().items()}
    entries = {name: Entry(DTYPE, tuple(tensor.shape), lambda tensor=tensor: tensor) for name, tensor in state.items()}
    config: dict[str, Any] = {key: value for key, value in model.config.items() if not key.startswith("_")}
    write_component(folder / component, kind, entries, config, "5GB")
    return portable_pair(kind, config)


def write_text_models(folder: Path) -> dict[str, tuple[str, str]]:
    """Write text encoder, tokenizer and processor; return their pairs of `model_index.json`."""
    tokenizer = build_tokenizer()
    text_encoder = build_text_encoder(len(tokenizer)).eval()
    tiny_weights.draw_weights(text_encoder, "text_encoder")
    text_encoder.to(DTYPE).save_pretrained(folder / "text_encoder")
    # Transformers loads in the dtype of the config, diffusers in float32: without a dtype, all components must agree.
    config_path = folder / "text_encoder" / "config.json"
    write_json(config_path, json.loads(config_path.read_text()) | {"dtype": "float32"})
    tokenizer.save_pretrained(folder / "tokenizer")
    build_processor(tokenizer).save_pretrained(folder / "processor")
    return {
        "text_encoder": ("transformers", "Gemma3ForConditionalGeneration"),
        "tokenizer": ("transformers", "GemmaTokenizer"),
        "processor": ("transformers", "Gemma3Processor"),
    }


def build(folder: Path, version: str) -> None:
    """Write one complete pipeline folder, in place of an older one."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    pairs = write_text_models(folder)
    for component in component_configs(version):
        pair = write_model(folder, component, build_component(component, version))
        if component not in UPSAMPLERS:
            pairs[component] = pair
    write_scheduler(folder / "scheduler", is_distilled=False)
    write_model_index(folder, pairs, _weights="random")


def main() -> None:
    """Build both checkpoints and check their size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=RESOURCES, help="folder of the two checkpoints")
    output = parser.parse_args().output
    for version, name in FOLDERS.items():
        build(output / name, version)
        size = sum(path.stat().st_size for path in (output / name).rglob("*") if path.is_file())
        print(f"{output / name}: {size / 1e6:.2f} MB")
    total = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    if total > MAX_BYTES:
        raise SystemExit(f"the checkpoints have {total} bytes, more than {MAX_BYTES}; make the models smaller")


if __name__ == "__main__":
    main()
