"""Sound for a silent video, whose packets are kept: writes silent.mp4 and video_to_audio.mp4."""

import torch
from PIL import Image, ImageDraw

from ltx2_diffusers import LTX2VideoToAudioPipeline, packaged_checkpoint
from ltx2_diffusers.media.writing import write_video

# The packaged miniature, to try things out in seconds. For real weights: CHECKPOINT = "Lightricks/LTX-2"
CHECKPOINT = packaged_checkpoint("ltx2-mini")


def ball(frame: int) -> Image.Image:
    phase = (frame / 24 - 0.3) / 0.7 % 1  # Of a bounce every 0.7 seconds.
    picture, y = Image.new("RGB", (128, 128), "black"), 88 - 196 * phase * (1 - phase)
    ImageDraw.Draw(picture).ellipse((28, y - 36, 100, y + 36), fill="#1ab226")
    return picture


on_gpu = torch.cuda.is_available()
pipe = LTX2VideoToAudioPipeline.from_pretrained(CHECKPOINT, dtype=torch.bfloat16 if on_gpu else torch.float32)
pipe.to("cuda" if on_gpu else "cpu")

# Any video file will do; frames, of which there may be any number, are taken as well.
write_video("silent.mp4", [ball(frame) for frame in range(25)], frame_rate=24.0)
output = pipe("silent.mp4", "a green circle bounces on a black background", generator=torch.manual_seed(0))
print(*output.save("video_to_audio.mp4"))
