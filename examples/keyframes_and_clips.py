"""A video with sound that continues a clip and ends with a picture: writes keyframes_and_clips.mp4."""

import torch
from PIL import Image, ImageDraw

from ltx2_diffusers import LTX2ConditionPipeline, LTX2VideoCondition, packaged_checkpoint

# The packaged miniature, to try things out in seconds. For real weights: CHECKPOINT = "Lightricks/LTX-2"
CHECKPOINT = packaged_checkpoint("ltx2-mini")


def ball(frame: int) -> Image.Image:
    picture, x = Image.new("RGB", (512, 512), "#1ab226"), 16 + 8 * frame
    ImageDraw.Draw(picture).ellipse((x, 113, x + 286, 399), fill="#e61a1a")
    return picture


size = {"height": 128, "width": 128, "num_frames": 25} if str(CHECKPOINT).endswith("ltx2-mini") else {}
on_gpu = torch.cuda.is_available()
pipe = LTX2ConditionPipeline.from_pretrained(CHECKPOINT, dtype=torch.bfloat16 if on_gpu else torch.float32)
pipe.to("cuda" if on_gpu else "cpu")

conditions = [
    # A clip at the start (or the name of its file) takes the place of the video's first frames.
    LTX2VideoCondition([ball(frame) for frame in range(9)]),
    # A picture at any pixel frame, here after half a second, is shown beside the video; strength leaves it some freedom.
    LTX2VideoCondition(ball(12), frame=12, strength=0.7),
    # Negative places count from the end.
    LTX2VideoCondition(ball(24), frame=-1),
]
prompt = "a red circle moves to the right on a green background"
output = pipe(conditions, prompt, **size, generator=torch.manual_seed(0))
print(*output.save("keyframes_and_clips.mp4"))
