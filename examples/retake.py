"""A stretch of a clip made anew while the rest is kept: writes take.mp4 and retake.mp4."""

import torch
from PIL import Image, ImageDraw

from ltx2_diffusers import LTX2Pipeline, LTX2RetakePipeline, packaged_checkpoint

# The packaged miniature, to try things out in seconds. For real weights: CHECKPOINT = "Lightricks/LTX-2"
CHECKPOINT = packaged_checkpoint("ltx2-mini")

size = {"height": 128, "width": 128, "num_frames": 25} if str(CHECKPOINT).endswith("ltx2-mini") else {}
on_gpu = torch.cuda.is_available()
pipe = LTX2Pipeline.from_pretrained(CHECKPOINT, dtype=torch.bfloat16 if on_gpu else torch.float32)
pipe.to("cuda" if on_gpu else "cpu")

# Any clip will do; this one is made first.
prompt = "a red circle moves to the right on a blue background"
pipe(prompt, **size, generator=torch.manual_seed(0)).save("take.mp4")

# White is made anew: here the right half of the pictures. Without a region all of them are.
region = Image.new("L", (128, 128), "black")
ImageDraw.Draw(region).rectangle((64, 0, 128, 128), fill="white")
retake = LTX2RetakePipeline.from_pipe(pipe)
# From 0.4 to 0.8 seconds; the sound, which is left alone, is copied as it is.
prompt = "a white circle moves to the right on a blue background"
options = {"region": region, "regenerate_audio": False, "generator": torch.manual_seed(1)}
output = retake("take.mp4", 0.4, 0.8, prompt, **options)
print(*output.save("retake.mp4"))
