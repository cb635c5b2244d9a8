"""What an application does with a request: writes application.mp4."""

import torch
from PIL import Image

from ltx2_diffusers import (
    GenerationRequest,
    LTX2TwoStagePipeline,
    TimelineItem,
    generate,
    packaged_checkpoint,
    select_pipeline,
)

# A miniature with random weights, to try things out in seconds. For real weights: CHECKPOINT = "Lightricks/LTX-2"
CHECKPOINT = packaged_checkpoint("ltx2-tiny")

is_tiny = "tiny" in str(CHECKPOINT)
small = {"width": 192, "height": 128, "num_frames": 9, "num_inference_steps": 4} if is_tiny else {}
on_gpu = torch.cuda.is_available()
pipe = LTX2TwoStagePipeline.from_pretrained(CHECKPOINT, dtype=torch.bfloat16 if on_gpu else torch.float32)
pipe.to("cuda" if on_gpu else "cpu")
if not is_tiny:
    # What turns the dev weights into those that refine.
    lora = "ltx-2-19b-distilled-lora-384.safetensors"
    pipe.load_lora_weights(CHECKPOINT, weight_name=lora, adapter_name="distilled")

Image.new("RGB", (768, 512), "midnightblue").save("night.png")
Image.new("RGB", (768, 512), "lightsalmon").save("morning.png")
timeline = [TimelineItem("image", "night.png"), TimelineItem("image", "morning.png", frame_index=-1)]
request = GenerationRequest("Dawn breaks over hills.", timeline=timeline, seed=7, enhance_prompt=not is_tiny, **small)

# A picture at either end asks for interpolation; clips, long videos and single pictures have rules of their own.
print(select_pipeline(request).pipeline_name)
output = generate(request, pipe, stage_2_adapters={} if is_tiny else None)
print(*output.save("application.mp4"))
