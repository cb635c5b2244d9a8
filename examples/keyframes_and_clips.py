"""A video with sound that continues a clip and ends with a picture: writes keyframes_and_clips.mp4."""

import torch
from PIL import Image, ImageDraw

from ltx2_diffusers import LTX2ConditionPipeline, LTX2VideoCondition, packaged_checkpoint

# A miniature with random weights, to try things out in seconds. For real weights: CHECKPOINT = "Lightricks/LTX-2"
CHECKPOINT = packaged_checkpoint("ltx2-tiny")


def ball(x: int, y: int) -> Image.Image:
    picture = Image.new("RGB", (768, 512), "seagreen")
    ImageDraw.Draw(picture).ellipse((x, y, x + 120, y + 120), fill="tomato")
    return picture


size = {"height": 64, "width": 96, "num_frames": 25} if "tiny" in str(CHECKPOINT) else {}
on_gpu = torch.cuda.is_available()
pipe = LTX2ConditionPipeline.from_pretrained(CHECKPOINT, dtype=torch.bfloat16 if on_gpu else torch.float32)
pipe.to("cuda" if on_gpu else "cpu")

conditions = [
    # A clip at the start (or the name of its file) takes the place of the video's first frames.
    LTX2VideoCondition([ball(20 * i, 40) for i in range(9)]),
    # A picture at any pixel frame, here after half a second, is shown beside the video; strength leaves it some freedom.
    LTX2VideoCondition(ball(300, 300), frame=12, strength=0.7),
    # Negative places count from the end.
    LTX2VideoCondition(ball(620, 380), frame=-1),
]
prompt = "A red ball bounces across a green table."
output = pipe(conditions, prompt, **size, generator=torch.manual_seed(0))
print(*output.save("keyframes_and_clips.mp4"))
