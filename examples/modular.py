"""Text to video from blocks, with another guider: writes modular.mp4."""

import torch
from diffusers import ClassifierFreeGuidance

from ltx2_diffusers import LTX2ModularPipeline, encode_video, packaged_checkpoint

# The packaged miniature, to try things out in seconds. For real weights: CHECKPOINT = "Lightricks/LTX-2"
CHECKPOINT = packaged_checkpoint("ltx2-mini")

# LTX25ModularPipeline decodes with the diffusion decoder of LTX-2.5.
pipe = LTX2ModularPipeline.from_pretrained(CHECKPOINT, workflow="text2video")
on_gpu = torch.cuda.is_available()
pipe.load_components(dtype=torch.bfloat16 if on_gpu else torch.float32)
pipe.to("cuda" if on_gpu else "cpu")
pipe.update_components(guider=ClassifierFreeGuidance(3.0), audio_guider=ClassifierFreeGuidance(7.0))

is_mini = str(CHECKPOINT).endswith("ltx2-mini")
size = {"height": 128, "width": 128, "num_frames": 25} if is_mini else {"num_frames": 121}
prompt = "a red circle bounces on a blue background"
result = pipe(prompt=prompt, **size, generator=torch.manual_seed(0), output=["videos", "audio"])
rate = pipe.vocoder.config.output_sampling_rate
encode_video(result["videos"][0], 24, "modular.mp4", result["audio"][0].float().cpu(), rate)
print("modular.mp4")
