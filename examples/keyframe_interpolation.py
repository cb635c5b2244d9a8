"""A video with sound that moves between three pictures: writes keyframe_interpolation.mp4."""

import torch
from PIL import Image, ImageDraw

from ltx2_diffusers import LTX2KeyframeInterpolationPipeline, packaged_checkpoint

# A miniature with random weights, to try things out in seconds. For real weights: CHECKPOINT = "Lightricks/LTX-2"
CHECKPOINT = packaged_checkpoint("ltx2-tiny")


def sun(height: int) -> Image.Image:
    picture = Image.new("RGB", (768, 512), "lightskyblue")
    ImageDraw.Draw(picture).ellipse((320, height, 440, height + 120), fill="orange")
    return picture


small = {"height": 64, "width": 96, "num_frames": 17, "two_stage": False} if "tiny" in str(CHECKPOINT) else {}
on_gpu = torch.cuda.is_available()
pipe = LTX2KeyframeInterpolationPipeline.from_pretrained(CHECKPOINT, dtype=torch.bfloat16 if on_gpu else torch.float32)
pipe.to("cuda" if on_gpu else "cpu")
if not small:
    # What turns the dev weights into those that refine; only the second stage uses it.
    lora = "ltx-2-19b-distilled-lora-384.safetensors"
    pipe.load_lora_weights(CHECKPOINT, weight_name=lora, adapter_name="distilled")

# Spread evenly over the video, unless `frame_indices` says where; the one in the middle has some freedom.
pictures, strengths = [sun(380), sun(60), sun(380)], [1.0, 0.6, 1.0]
prompt = "The sun rises and sets again while birds sing."
output = pipe(pictures, prompt, strengths=strengths, **small, generator=torch.manual_seed(0))
print(*output.save("keyframe_interpolation.mp4"))
