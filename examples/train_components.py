"""Every network trained a few steps, and a clip through the autoencoders: writes train_components.mp4."""

import torch

from ltx2_diffusers import LTX2LatentUpsamplerModel, LTX2Pipeline, packaged_checkpoint
from ltx2_diffusers.media.writing import write_video
from ltx2_diffusers.training import components as parts

# The packaged miniature, with whose structure training begins. For real weights: CHECKPOINT = "Lightricks/LTX-2"
CHECKPOINT = packaged_checkpoint("ltx2-mini")
pipe = LTX2Pipeline.from_pretrained(CHECKPOINT)
upsampler = LTX2LatentUpsamplerModel.from_pretrained(CHECKPOINT, subfolder="latent_upsampler")
vae, audio_vae, vocoder, rate = pipe.vae, pipe.audio_vae, pipe.vocoder, pipe.vocoder.config.output_sampling_rate
place, frame = torch.arange(64), torch.arange(9)[:, None, None]  # A circle that moves to the right, and its tone.
pixels = ((place - 3 * frame - 20) ** 2 + (place[:, None] - 32) ** 2 < 18**2).expand(1, 3, 9, 64, 64) * 2.0 - 1
tone = (0.3 * torch.sin(torch.arange(rate * 9 // 24) * 1256.6 / rate)).expand(1, 2, -1)
mel, texts = parts.spectrogram(audio_vae, tone, rate), ["a white circle moves to the right on a black background"]


def train(step: parts.TrainingStep, batch: dict) -> None:
    weights, options = parts.trained_parameters(*step.networks.values()), parts.FitOptions(progress=False)
    losses = [record["loss"] for record in parts.fit(step, weights, [batch], 15, 3e-3, options)]
    print(f"{', '.join(step.networks)}: loss {losses[0]:.2f} -> {losses[-1]:.2f}")


parts.spread_latents(vae, pixels)
train(parts.VideoVaeStep(vae), {"pixels": pixels})
train(parts.AudioVaeStep(audio_vae), {"mel": mel})
train(parts.VocoderStep(vocoder), {"mel": mel, "waveform": tone})
train(parts.TextEncoderStep(pipe.text_encoder), parts.tokenized(pipe.tokenizer, texts))
parts.calibrate_video_latents(vae, [pixels])
train(parts.UpsamplerStep(upsampler, vae), parts.latent_pair(vae, upsampler, pixels))
with torch.no_grad():
    frames, sound = vae(pixels).sample[0].transpose(0, 1) / 2 + 0.5, vocoder(audio_vae(mel).sample)[0]
    video, audio = ({"latents": latents} for latents in (pipe.encode_video(pixels), pipe.encode_audio(tone, rate)))
flow = parts.TransformerStep(pipe.transformer, pipe.sizes)
reading = parts.ConnectorsStep(pipe.connectors, flow, 64, pipe.text_encoder, pipe.tokenizer)
train(reading, {"latents": video, "audio_latents": audio, "prompts": texts})
print(write_video("train_components.mp4", frames, 24, sound, rate))
