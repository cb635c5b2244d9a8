"""A video of LTX-Video that begins with a picture, and a longer one in windows: writes clip.mp4 and long.mp4."""

import PIL.Image
import torch

from ltx2_diffusers import LTXVideoCondition, LTXVideoLongPipeline, LTXVideoPipeline, packaged_checkpoint

# A packaged checkpoint with random weights, whose clips show nothing.
# For real weights: CHECKPOINT = "Lightricks/LTX-Video-0.9.8-13B-distilled"
CHECKPOINT = packaged_checkpoint("ltx-video-tiny")

is_tiny = str(CHECKPOINT).endswith("ltx-video-tiny")
size = {"height": 96, "width": 128} if is_tiny else {"height": 704, "width": 1216}
on_gpu = torch.cuda.is_available()
pipe = LTXVideoPipeline.from_pretrained(CHECKPOINT, dtype=torch.bfloat16 if on_gpu else torch.float32)
pipe.to("cuda" if on_gpu else "cpu")

picture = PIL.Image.new("RGB", (size["width"], size["height"]), "steelblue")
shown = [LTXVideoCondition(image=picture), LTXVideoCondition(image=picture, frame_index=24, strength=0.7)]
output = pipe(shown, prompt="waves on a lake", **size, num_frames=25, generator=torch.manual_seed(0))
print(*output.save("clip.mp4"), pipe.settings.name)

# The same components, at no memory.
longer = LTXVideoLongPipeline.from_pipe(pipe)
windows = {"temporal_tile_size": 24, "temporal_overlap": 8} if is_tiny else {}
output = longer(prompt="waves on a lake", **size, num_frames=49, **windows, save_path="long.mp4")
print(output.info["path"])
