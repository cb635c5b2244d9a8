"""A video with sound made at half the size, enlarged and refined: writes two_stage.mp4."""

import torch

from ltx2_diffusers import LTX2TwoStagePipeline, packaged_checkpoint

# The packaged miniature, to try things out in seconds. For real weights: CHECKPOINT = "Lightricks/LTX-2"
CHECKPOINT = packaged_checkpoint("ltx2-mini")

is_mini = str(CHECKPOINT).endswith("ltx2-mini")
size = {"height": 128, "width": 128, "num_frames": 25} if is_mini else {"height": 1024, "width": 1536}
on_gpu = torch.cuda.is_available()
pipe = LTX2TwoStagePipeline.from_pretrained(CHECKPOINT, dtype=torch.bfloat16 if on_gpu else torch.float32)
pipe.to("cuda" if on_gpu else "cpu")
# What turns the dev weights into those that refine; only the second stage uses it.
lora = "distilled_lora.safetensors" if is_mini else "ltx-2-19b-distilled-lora-384.safetensors"
pipe.load_lora_weights(CHECKPOINT, weight_name=lora, adapter_name="distilled")

prompt = "a purple cross turns on a white background"
output = pipe(prompt, **size, generator=torch.manual_seed(0))
print(*output.save("two_stage.mp4"), output.info["forwards_per_step"])
