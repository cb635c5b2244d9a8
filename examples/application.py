"""What an application does with a request: writes application.mp4."""

import torch
from PIL import Image, ImageDraw

from ltx2_diffusers import (
    GenerationRequest,
    LTX2TwoStagePipeline,
    TimelineItem,
    generate,
    packaged_checkpoint,
    select_pipeline,
)

# The packaged miniature, to try things out in seconds. For real weights: CHECKPOINT = "Lightricks/LTX-2"
CHECKPOINT = packaged_checkpoint("ltx2-mini")

is_mini = str(CHECKPOINT).endswith("ltx2-mini")
small = {"width": 128, "height": 128, "num_frames": 25} if is_mini else {}
on_gpu = torch.cuda.is_available()
pipe = LTX2TwoStagePipeline.from_pretrained(CHECKPOINT, dtype=torch.bfloat16 if on_gpu else torch.float32)
pipe.to("cuda" if on_gpu else "cpu")
# What turns the dev weights into those that refine.
lora = "distilled_lora.safetensors" if is_mini else "ltx-2-19b-distilled-lora-384.safetensors"
pipe.load_lora_weights(CHECKPOINT, weight_name=lora, adapter_name="distilled")

for name, left in (("first.png", 16), ("last.png", 210)):
    picture = Image.new("RGB", (512, 512), "#1a33f2")
    ImageDraw.Draw(picture).ellipse((left, 113, left + 286, 399), fill="#e61a1a")
    picture.save(name)
timeline = [TimelineItem("image", "first.png"), TimelineItem("image", "last.png", frame_index=-1)]
prompt = "a red circle moves to the right on a blue background"
# The miniature's language model was never taught to write.
request = GenerationRequest(prompt, timeline=timeline, seed=7, enhance_prompt=not is_mini, **small)

# A picture at either end asks for interpolation; clips, long videos and single pictures have rules of their own.
print(select_pipeline(request).pipeline_name)
output = generate(request, pipe)
print(*output.save("application.mp4"))
