"""A video whose frames are made by the diffusion decoder: writes diffusion_decode.mp4."""

import torch

from ltx2_diffusers import (
    LTX2Pipeline,
    LTX2VideoDiffusionDecodePipeline,
    LTX2VideoDiffusionDecoderModel,
    packaged_checkpoint,
)

# The packaged miniature, to try things out in seconds. For real weights: CHECKPOINT = "Lightricks/LTX-2.5"
CHECKPOINT = packaged_checkpoint("ltx2-mini")

is_miniature = str(CHECKPOINT).endswith("ltx2-mini")
size = {"height": 64, "width": 64, "num_frames": 25} if is_miniature else {}
on_gpu = torch.cuda.is_available()
device, dtype = ("cuda", torch.bfloat16) if on_gpu else ("cpu", torch.float32)
pipe = LTX2Pipeline.from_pretrained(CHECKPOINT, dtype=dtype)
if is_miniature:
    # It has no such decoder; one of random weights makes noise.
    decoder = LTX2VideoDiffusionDecoderModel(
        latent_channels=pipe.vae.config.latent_channels,
        decoder_head_dim=8,
        decoder_stage_channels=(16, 8, 8, 8, 8),
        decoder_stage_depths=(1, 1, 1, 1, 1),
        decoder_upsample_channel_reductions=(2, 1, 1, 1),
    )
    pipe.register_modules(diffusion_decoder=decoder.to(dtype).eval())
pipe.to(device)

prompt = "a yellow triangle moves to the left on a blue background"
output = pipe(prompt, **size, decoder="diffusion", generator=torch.manual_seed(0))
print(*output.save("diffusion_decode.mp4"))

# Latents that were kept can be decoded later, and again with other noise.
latents = pipe(prompt, **size, output_type="latent", generator=torch.manual_seed(0)).frames
decode = LTX2VideoDiffusionDecodePipeline(pipe.diffusion_decoder)
print(decode(latents, torch.manual_seed(1), "np", denormalize=False).frames.shape)
