"""A video whose latents are enlarged before they are decoded: writes upsample_latents.mp4."""

import torch

from ltx2_diffusers import LTX2LatentUpsamplePipeline, LTX2Pipeline, packaged_checkpoint

# The packaged miniature, to try things out in seconds. For real weights: CHECKPOINT = "Lightricks/LTX-2"
CHECKPOINT = packaged_checkpoint("ltx2-mini")

size = {"height": 64, "width": 64, "num_frames": 25} if str(CHECKPOINT).endswith("ltx2-mini") else {}
on_gpu = torch.cuda.is_available()
device, dtype = ("cuda", torch.bfloat16) if on_gpu else ("cpu", torch.float32)
pipe = LTX2Pipeline.from_pretrained(CHECKPOINT, dtype=dtype).to(device)

prompt = "a yellow triangle moves to the left on a blue background"
small = pipe(prompt, **size, output_type="latent", generator=torch.manual_seed(0))

# The upsampler lies in the checkpoint's folder `latent_upsampler`, which is fetched from the Hub although the index of
# the repository does not list it; the autoencoder is shared.
upsample = LTX2LatentUpsamplePipeline.from_pretrained(CHECKPOINT, vae=pipe.vae, dtype=dtype).to(device)
# `adain_factor` gives the enlarged latents the colours and contrast that they had before.
large = upsample(latents=small.frames, adain_factor=0.5, frame_rate=small.frame_rate)
print(*large.save("upsample_latents.mp4"))
