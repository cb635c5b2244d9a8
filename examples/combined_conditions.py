"""First and last picture, own sound and a reference clip in one call with two stages: writes combined_conditions.mp4."""

import torch
from PIL import Image, ImageDraw

from ltx2_diffusers import LTX2ReferenceCondition, LTX2TwoStagePipeline, LTX2VideoCondition, packaged_checkpoint

# The packaged miniature, to try things out in seconds. For real weights: CHECKPOINT = "Lightricks/LTX-2"
CHECKPOINT = packaged_checkpoint("ltx2-mini")


def square(step: int, half: int, background: str, **drawing) -> Image.Image:
    picture, x = Image.new("RGB", (512, 512), background), 159 + 8 * step
    ImageDraw.Draw(picture).rectangle((x - half, 256 - half, x + half, 256 + half), **drawing)
    return picture


is_mini = str(CHECKPOINT).endswith("ltx2-mini")
size = {"height": 128, "width": 128, "num_frames": 25} if is_mini else {"height": 512, "width": 768}
on_gpu = torch.cuda.is_available()
pipe = LTX2TwoStagePipeline.from_pretrained(CHECKPOINT, dtype=torch.bfloat16 if on_gpu else torch.float32)
pipe.to("cuda" if on_gpu else "cpu")
lora = "distilled_lora.safetensors" if is_mini else "ltx-2-19b-distilled-lora-384.safetensors"
pipe.load_lora_weights(CHECKPOINT, weight_name=lora, adapter_name="distilled")  # What refines.
if is_mini:  # What reads the reference; for real weights an IC-LoRA that fits it is loaded in the same way.
    pipe.load_lora_weights(CHECKPOINT, weight_name="ic_lora.safetensors", adapter_name="outline")

first, last = (square(step, 127, "#1a33f2", fill="white") for step in (0, 24))
outline = [square(step, 142, "black", outline="white", width=31) for step in range(25)]
output = pipe(
    "a white square moves to the right on a blue background",
    conditions=[LTX2VideoCondition(first), LTX2VideoCondition(last, frame=-1)],
    reference_conditions=LTX2ReferenceCondition(outline),
    audio=(0.4 * torch.sin(2 * torch.pi * 400 / 48_000 * torch.arange(6 * 48_000))).expand(2, -1),
    sampling_rate=48_000,
    **size,
    generator=torch.manual_seed(0),
)
print(*output.save("combined_conditions.mp4"))
