"""A video with sound made at half the size, enlarged and refined: writes two_stage.mp4."""

import torch

from ltx2_diffusers import LTX2TwoStagePipeline, packaged_checkpoint

# A miniature with random weights, to try things out in seconds. For real weights: CHECKPOINT = "Lightricks/LTX-2"
CHECKPOINT = packaged_checkpoint("ltx2-tiny")

is_tiny = "tiny" in str(CHECKPOINT)
size = {"height": 128, "width": 192, "num_frames": 9} if is_tiny else {"height": 1024, "width": 1536}
on_gpu = torch.cuda.is_available()
pipe = LTX2TwoStagePipeline.from_pretrained(CHECKPOINT, dtype=torch.bfloat16 if on_gpu else torch.float32)
pipe.to("cuda" if on_gpu else "cpu")
if not is_tiny:
    # What turns the dev weights into those that refine; only the second stage uses it.
    lora = "ltx-2-19b-distilled-lora-384.safetensors"
    pipe.load_lora_weights(CHECKPOINT, weight_name=lora, adapter_name="distilled")

# The miniature has no such LoRA; its second stage refines with the same weights.
adapters = {} if is_tiny else None
prompt = "Sparks fly as a blacksmith hammers glowing iron."
output = pipe(prompt, **size, stage_2_adapters=adapters, generator=torch.manual_seed(0))
print(*output.save("two_stage.mp4"), output.info["forwards_per_step"])
