"""A video with sound from text: writes text_to_video.mp4."""

import torch

from ltx2_diffusers import LTX2Pipeline, packaged_checkpoint

# The packaged miniature, to try things out in seconds. For real weights: CHECKPOINT = "Lightricks/LTX-2"
CHECKPOINT = packaged_checkpoint("ltx2-mini")

size = {"height": 128, "width": 128, "num_frames": 25} if str(CHECKPOINT).endswith("ltx2-mini") else {}
on_gpu = torch.cuda.is_available()
pipe = LTX2Pipeline.from_pretrained(CHECKPOINT, dtype=torch.bfloat16 if on_gpu else torch.float32)
pipe.to("cuda" if on_gpu else "cpu")

prompt = "a red circle bounces on a blue background"
# Steps and guidance that are not given follow the checkpoint; `output.info` tells which were used.
unwanted = "a square"
output = pipe(prompt, negative_prompt=unwanted, **size, generator=torch.manual_seed(0))
print(*output.save("text_to_video.mp4"), output.info["preset"])
