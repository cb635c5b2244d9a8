"""A stretch of a clip made anew while the rest is kept: writes take.mp4 and retake.mp4."""

import torch
from PIL import Image, ImageDraw

from ltx2_diffusers import LTX2Pipeline, LTX2RetakePipeline, packaged_checkpoint

# A miniature with random weights, to try things out in seconds. For real weights: CHECKPOINT = "Lightricks/LTX-2"
CHECKPOINT = packaged_checkpoint("ltx2-tiny")

size = {"height": 64, "width": 96, "num_frames": 25, "num_inference_steps": 8} if "tiny" in str(CHECKPOINT) else {}
on_gpu = torch.cuda.is_available()
pipe = LTX2Pipeline.from_pretrained(CHECKPOINT, dtype=torch.bfloat16 if on_gpu else torch.float32)
pipe.to("cuda" if on_gpu else "cpu")

# Any clip will do; this one is made first.
pipe("A woman reads a letter by the window.", **size, generator=torch.manual_seed(0)).save("take.mp4")

# White is made anew: here the right half of the pictures. Without a region all of them are.
region = Image.new("L", (96, 64), "black")
ImageDraw.Draw(region).rectangle((48, 0, 96, 64), fill="white")
retake = LTX2RetakePipeline.from_pipe(pipe)
# From 0.4 to 0.8 seconds; the sound, which is left alone, is copied as it is.
options = {"region": region, "regenerate_audio": False, "num_inference_steps": size.get("num_inference_steps")}
output = retake("take.mp4", 0.4, 0.8, "She looks up and laughs.", **options, generator=torch.manual_seed(1))
print(*output.save("retake.mp4"))
