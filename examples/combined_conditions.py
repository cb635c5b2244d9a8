"""First and last picture, own sound and a reference clip in one call with two stages: writes combined_conditions.mp4."""

import torch
from PIL import Image, ImageDraw

from ltx2_diffusers import LTX2ReferenceCondition, LTX2TwoStagePipeline, LTX2VideoCondition, packaged_checkpoint

# A miniature with random weights, to try things out in seconds. For real weights: CHECKPOINT = "Lightricks/LTX-2"
CHECKPOINT = packaged_checkpoint("ltx2-tiny")


def dancer(step: int, colour: str = "white") -> Image.Image:
    picture = Image.new("RGB", (768, 512), "black")
    ImageDraw.Draw(picture).ellipse((60 + 70 * step, 200, 160 + 70 * step, 400), fill=colour)
    return picture


is_tiny = "tiny" in str(CHECKPOINT)
size = {"height": 128, "width": 192, "num_frames": 9} if is_tiny else {"height": 512, "width": 768}
on_gpu = torch.cuda.is_available()
pipe = LTX2TwoStagePipeline.from_pretrained(CHECKPOINT, dtype=torch.bfloat16 if on_gpu else torch.float32)
pipe.to("cuda" if on_gpu else "cpu")
if not is_tiny:  # What refines. An IC-LoRA that fits the reference is loaded in the same way.
    pipe.load_lora_weights(
        CHECKPOINT, weight_name="ltx-2-19b-distilled-lora-384.safetensors", adapter_name="distilled"
    )

seconds = torch.arange(6 * 48_000) / 48_000
output = pipe(
    "A dancer crosses a dark stage.",
    conditions=[LTX2VideoCondition(dancer(0, "crimson")), LTX2VideoCondition(dancer(8, "crimson"), frame=-1)],
    reference_conditions=LTX2ReferenceCondition([dancer(step) for step in range(9)]),
    audio=torch.sin(2 * torch.pi * 220 * seconds).expand(2, -1),
    sampling_rate=48_000,
    stage_2_adapters={} if is_tiny else None,
    **size,
    generator=torch.manual_seed(0),
)
print(*output.save("combined_conditions.mp4"))
