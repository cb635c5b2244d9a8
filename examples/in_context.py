"""A video with sound that an IC-LoRA derives from a reference video: writes in_context.mp4."""

import torch
from PIL import Image, ImageDraw

from ltx2_diffusers import LTX2InContextPipeline, LTX2ReferenceCondition, packaged_checkpoint

# A miniature with random weights, to try things out in seconds. For real weights: CHECKPOINT = "Lightricks/LTX-2"
CHECKPOINT = packaged_checkpoint("ltx2-tiny")
LORA = None  # File or Hub id of an IC-LoRA that fits the checkpoint; without one references mean little.


def outline(step: int) -> Image.Image:
    picture = Image.new("RGB", (768, 512), "black")
    ImageDraw.Draw(picture).rectangle((40 * step, 160, 40 * step + 160, 320), outline="white", width=6)
    return picture


size = {"height": 64, "width": 64, "num_frames": 9} if "tiny" in str(CHECKPOINT) else {}
on_gpu = torch.cuda.is_available()
pipe = LTX2InContextPipeline.from_pretrained(CHECKPOINT, dtype=torch.bfloat16 if on_gpu else torch.float32)
pipe.to("cuda" if on_gpu else "cpu")
if LORA is not None:
    pipe.load_lora_weights(LORA, adapter_name="ic")  # The scale of its references is read from its metadata.

reference = LTX2ReferenceCondition([outline(step) for step in range(9)])
prompt = "A wooden crate slides across a workshop floor with a scraping sound."
output = pipe(prompt, reference_conditions=reference, **size, generator=torch.manual_seed(0))
print(*output.save("in_context.mp4"))
