"""A video with sound that begins with a picture: writes image_to_video.mp4."""

import torch
from PIL import Image, ImageDraw

from ltx2_diffusers import LTX2ImageToVideoPipeline, packaged_checkpoint

# The packaged miniature, to try things out in seconds. For real weights: CHECKPOINT = "Lightricks/LTX-2"
CHECKPOINT = packaged_checkpoint("ltx2-mini")

size = {"height": 128, "width": 128, "num_frames": 25} if str(CHECKPOINT).endswith("ltx2-mini") else {}
on_gpu = torch.cuda.is_available()
pipe = LTX2ImageToVideoPipeline.from_pretrained(CHECKPOINT, dtype=torch.bfloat16 if on_gpu else torch.float32)
pipe.to("cuda" if on_gpu else "cpu")

# Any image, or the name of its file; it is scaled to cover the frame and cropped to its centre.
picture = Image.new("RGB", (512, 512), "#1a33f2")
ImageDraw.Draw(picture).ellipse((16, 113, 302, 399), fill="#e61a1a")

prompt = "a red circle moves to the right on a blue background"
output = pipe(picture, prompt, **size, generator=torch.manual_seed(0))
print(*output.save("image_to_video.mp4"))
