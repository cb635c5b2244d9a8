"""Write what `ltx2 doctor` compares with. Run `python -m scripts.build_doctor_vectors` whenever `ltx2-mini` changes.

Small inputs, and what the classes of diffusers compute from them with the weights of the miniature, in float32. Nothing
is written where this package's own results differ by more than the table of tolerances allows.
"""

import argparse
import shutil
import tempfile
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers.pipelines.ltx2.latent_upsampler import LTX2LatentUpsamplerModel
from diffusers.pipelines.ltx2.pipeline_ltx2 import calculate_shift
from safetensors.torch import save_file

from ltx2_diffusers.checkpoints.packaged import packaged_checkpoint
from ltx2_diffusers.checkpoints.self_check import VECTORS, run_checks

PROMPT = "a red circle bounces on a blue background"
# All files together; they are part of every installation.
MAX_BYTES = 1_500_000
LATENT_GRID, AUDIO_LATENTS = (2, 2, 2), 9
# In the middle of the way from noise to the clip.
TIMESTEP = 500.0
STEPS, FIXED_TOKENS = 40, 4096


def _noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def prompt_case(pipe: Any) -> dict[str, torch.Tensor]:
    """What the text encoder says of a prompt, and what the connectors make of it."""
    registers = pipe.connectors.config.video_connector_num_learnable_registers or 16
    states, mask, *_ = pipe.encode_prompt(PROMPT, do_classifier_free_guidance=False, max_sequence_length=registers)
    video, audio, _ = pipe.connectors(states, mask, padding_side="left")
    return {
        "text_encoder_hidden_states": states,
        "attention_mask": mask,
        "expected_video": video,
        "expected_audio": audio,
    }


def velocity_case(pipe: Any, prompt: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A noisy clip, and the velocities that the transformer predicts of it."""
    model = pipe.transformer
    tokens = torch.Size(LATENT_GRID).numel()
    inputs = {
        "hidden_states": _noise(1, tokens, model.config.in_channels),
        "audio_hidden_states": _noise(1, AUDIO_LATENTS, model.config.audio_in_channels),
        "encoder_hidden_states": prompt["expected_video"],
        "audio_encoder_hidden_states": prompt["expected_audio"],
        "timestep": torch.tensor([TIMESTEP]),
        "audio_timestep": torch.tensor([TIMESTEP]),
        "video_coords": model.rope.prepare_video_coords(1, *LATENT_GRID, "cpu", fps=24.0),
        "audio_coords": model.audio_rope.prepare_audio_coords(1, AUDIO_LATENTS, "cpu"),
    }
    video, audio = model(**inputs, return_dict=False)
    return {**inputs, "expected_video": video, "expected_audio": audio}


def _denormalized(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """Latents of the size that the video VAE's have."""
    mean, std = (values.view(1, -1, 1, 1, 1) for values in (vae.latents_mean, vae.latents_std))
    return latents * std / vae.config.scaling_factor + mean


def clip_case(pipe: Any) -> dict[str, torch.Tensor]:
    """Latents, the clip that they decode to, and what that is encoded as."""
    latents = _denormalized(pipe.vae, _noise(1, pipe.vae.config.latent_channels, *LATENT_GRID))
    video = pipe.vae.decode(latents, return_dict=False)[0]
    return {"latents": latents, "video": video, "moments": pipe.vae.encode(video, return_dict=False)[0].parameters}


def sound_case(pipe: Any) -> dict[str, torch.Tensor]:
    """Latents, the spectrogram that they decode to, what that is encoded as, and the wave that it stands for."""
    vae = pipe.audio_vae
    tokens = _noise(1, AUDIO_LATENTS, len(vae.latents_mean)) * vae.latents_std + vae.latents_mean
    latents = tokens.unflatten(2, (vae.config.latent_channels, -1)).transpose(1, 2).contiguous()
    mel = vae.decode(latents, return_dict=False)[0]
    return {
        "latents": latents,
        "mel": mel,
        "moments": vae.encode(mel, return_dict=False)[0].parameters,
        "waveform": pipe.vocoder(mel),
    }


def upsampling_case(pipe: Any, folder: Path) -> dict[str, torch.Tensor]:
    """Latents, and those of the larger clip."""
    model = LTX2LatentUpsamplerModel.from_pretrained(folder, subfolder="latent_upsampler", dtype=torch.float32)
    latents = _denormalized(pipe.vae, _noise(1, pipe.vae.config.latent_channels, *LATENT_GRID))
    return {"latents": latents, "upsampled": model.eval()(latents)}


def schedule_case(pipe: Any) -> dict[str, torch.Tensor]:
    """Noise levels, shifted as for a fixed number of tokens."""
    config = pipe.scheduler.config
    sizes = (config.base_image_seq_len, config.max_image_seq_len, config.base_shift, config.max_shift)
    mu = calculate_shift(FIXED_TOKENS, *sizes)
    pipe.scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / STEPS, STEPS), mu=mu)
    return {"sigmas": pipe.scheduler.sigmas}


@torch.no_grad()
def build(checkpoint: Path, output: Path) -> None:
    """Write the vectors of a checkpoint.

    Args:
        checkpoint: Folder in diffusers' layout with a `latent_upsampler` beside the pipeline's components.
        output: Folder of the vectors; an older one is replaced.

    Raises:
        ValueError: If this package computes other numbers than diffusers, or the vectors are large.
    """
    pipe = diffusers.LTX2Pipeline.from_pretrained(checkpoint, dtype=torch.float32)
    prompt = prompt_case(pipe)
    cases = {
        "prompt": prompt,
        "velocity": velocity_case(pipe, prompt),
        "clip": clip_case(pipe),
        "sound": sound_case(pipe),
        "upsampling": upsampling_case(pipe, checkpoint),
        "schedule": schedule_case(pipe),
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for case, tensors in cases.items():
            save_file({key: value.contiguous() for key, value in tensors.items()}, folder / f"{case}.safetensors")
        if failed := [result for result in run_checks(checkpoint=checkpoint, vectors=folder) if not result.passed]:
            raise ValueError(f"this package computes other numbers than diffusers, so nothing is written: {failed}")
        size = sum(path.stat().st_size for path in folder.iterdir())
        if size > MAX_BYTES:
            raise ValueError(f"the vectors have {size} bytes, more than {MAX_BYTES}; make the inputs smaller")
        shutil.rmtree(output, ignore_errors=True)
        # The temporary folder is nobody else's to read; the new one has the usual permissions.
        output.mkdir(parents=True)
        for path in folder.iterdir():
            shutil.copyfile(path, output / path.name)


def main() -> None:
    """Build the vectors of the packaged miniature and say how large they are."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--checkpoint", type=Path, default=None, help="folder in diffusers' layout; default: ltx2-mini"
    )
    parser.add_argument("--output", type=Path, default=VECTORS, help="folder of the vectors, replaced")
    options = parser.parse_args()
    build(options.checkpoint or packaged_checkpoint("ltx2-mini"), options.output)
    for path in sorted(options.output.iterdir()):
        print(f"{path}: {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
