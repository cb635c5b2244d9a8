"""A video with sound from text: writes text_to_video.mp4."""

import torch

from ltx2_diffusers import LTX2Pipeline, packaged_checkpoint

# A miniature with random weights, to try things out in seconds. For real weights: CHECKPOINT = "Lightricks/LTX-2"
CHECKPOINT = packaged_checkpoint("ltx2-tiny")

size = {"height": 64, "width": 96, "num_frames": 17} if "tiny" in str(CHECKPOINT) else {}
on_gpu = torch.cuda.is_available()
pipe = LTX2Pipeline.from_pretrained(CHECKPOINT, dtype=torch.bfloat16 if on_gpu else torch.float32)
pipe.to("cuda" if on_gpu else "cpu")

prompt = "A lighthouse in a storm; waves break over the rocks and the wind howls."
# Steps and guidance that are not given follow the checkpoint; `output.info` tells which were used.
output = pipe(prompt, negative_prompt="blurry, still", **size, generator=torch.manual_seed(0))
print(*output.save("text_to_video.mp4"), output.info["preset"])
