"""Sound for a silent video, whose packets are kept: writes silent.mp4 and video_to_audio.mp4."""

import torch
from PIL import Image, ImageDraw

from ltx2_diffusers import LTX2VideoToAudioPipeline, packaged_checkpoint
from ltx2_diffusers.media.writing import write_video

# A miniature with random weights, to try things out in seconds. For real weights: CHECKPOINT = "Lightricks/LTX-2"
CHECKPOINT = packaged_checkpoint("ltx2-tiny")


def drop(step: int) -> Image.Image:
    picture = Image.new("RGB", (96, 64), "slategray")
    ImageDraw.Draw(picture).ellipse((44, 3 * step, 52, 3 * step + 10), fill="azure")
    return picture


on_gpu = torch.cuda.is_available()
pipe = LTX2VideoToAudioPipeline.from_pretrained(CHECKPOINT, dtype=torch.bfloat16 if on_gpu else torch.float32)
pipe.to("cuda" if on_gpu else "cpu")

# Any video file will do; frames, of which there may be any number, are taken as well.
write_video("silent.mp4", [drop(step) for step in range(17)], frame_rate=24.0)
output = pipe("silent.mp4", "Water drips in a cave.", generator=torch.manual_seed(0))
print(*output.save("video_to_audio.mp4"))
