"""A video with sound that begins with a picture: writes image_to_video.mp4."""

import torch
from PIL import Image, ImageDraw

from ltx2_diffusers import LTX2ImageToVideoPipeline, packaged_checkpoint

# A miniature with random weights, to try things out in seconds. For real weights: CHECKPOINT = "Lightricks/LTX-2"
CHECKPOINT = packaged_checkpoint("ltx2-tiny")

size = {"height": 64, "width": 96, "num_frames": 17} if "tiny" in str(CHECKPOINT) else {}
on_gpu = torch.cuda.is_available()
pipe = LTX2ImageToVideoPipeline.from_pretrained(CHECKPOINT, dtype=torch.bfloat16 if on_gpu else torch.float32)
pipe.to("cuda" if on_gpu else "cpu")

# Any image, or the name of its file; it is scaled to cover the frame and cropped to its centre.
picture = Image.new("RGB", (960, 640), "midnightblue")
ImageDraw.Draw(picture).ellipse((380, 220, 580, 420), fill="gold")

output = pipe(picture, "The moon sinks into the sea while waves roll ashore.", **size, generator=torch.manual_seed(0))
print(*output.save("image_to_video.mp4"))
