"""A video with sound that an IC-LoRA derives from a reference video: writes in_context.mp4."""

import torch
from PIL import Image, ImageDraw

from ltx2_diffusers import LTX2InContextPipeline, LTX2ReferenceCondition, packaged_checkpoint

# The packaged miniature, to try things out in seconds. For real weights: CHECKPOINT = "Lightricks/LTX-2"
CHECKPOINT = packaged_checkpoint("ltx2-mini")
LORA = "ic_lora.safetensors"  # Of that folder or repository: an IC-LoRA that fits the checkpoint.


def outline(step: int) -> Image.Image:
    picture = Image.new("RGB", (512, 512), "black")
    ImageDraw.Draw(picture).rectangle((17 + 8 * step, 114, 301 + 8 * step, 398), outline="white", width=31)
    return picture


size = {"height": 128, "width": 128, "num_frames": 25} if str(CHECKPOINT).endswith("ltx2-mini") else {}
on_gpu = torch.cuda.is_available()
pipe = LTX2InContextPipeline.from_pretrained(CHECKPOINT, dtype=torch.bfloat16 if on_gpu else torch.float32)
pipe.to("cuda" if on_gpu else "cpu")
# The scale of its references is read from its metadata.
pipe.load_lora_weights(CHECKPOINT, weight_name=LORA, adapter_name="outline")

reference = LTX2ReferenceCondition([outline(step) for step in range(25)])
prompt = "a red square moves to the right on a white background"
output = pipe(prompt, reference_conditions=reference, **size, generator=torch.manual_seed(0))
print(*output.save("in_context.mp4"))
