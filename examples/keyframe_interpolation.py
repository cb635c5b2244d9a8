"""A video with sound that moves between three pictures: writes keyframe_interpolation.mp4."""

import torch
from PIL import Image, ImageDraw

from ltx2_diffusers import LTX2KeyframeInterpolationPipeline, packaged_checkpoint

# The packaged miniature, to try things out in seconds. For real weights: CHECKPOINT = "Lightricks/LTX-2"
CHECKPOINT = packaged_checkpoint("ltx2-mini")


def sun(height: int) -> Image.Image:
    picture = Image.new("RGB", (512, 512), "#1a33f2")
    ImageDraw.Draw(picture).ellipse((113, height, 399, height + 286), fill="#fae61a")
    return picture


small = (
    {"height": 128, "width": 128, "num_frames": 25, "two_stage": False}
    if str(CHECKPOINT).endswith("ltx2-mini")
    else {}
)
on_gpu = torch.cuda.is_available()
pipe = LTX2KeyframeInterpolationPipeline.from_pretrained(CHECKPOINT, dtype=torch.bfloat16 if on_gpu else torch.float32)
pipe.to("cuda" if on_gpu else "cpu")
if not small:
    # What turns the dev weights into those that refine; only the second stage uses it.
    lora = "ltx-2-19b-distilled-lora-384.safetensors"
    pipe.load_lora_weights(CHECKPOINT, weight_name=lora, adapter_name="distilled")

# Spread evenly over the video, unless `frame_indices` says where; the one in the middle has some freedom.
pictures, strengths = [sun(16), sun(113), sun(210)], [1.0, 0.6, 1.0]
prompt = "a yellow circle moves down on a blue background"
output = pipe(pictures, prompt, strengths=strengths, **small, generator=torch.manual_seed(0))
print(*output.save("keyframe_interpolation.mp4"))
