"""A clip continued by two segments with a prompt each: writes opening.mp4 and extend.mp4."""

import torch

from ltx2_diffusers import LTX2ExtendPipeline, LTX2Pipeline, packaged_checkpoint

# The packaged miniature, to try things out in seconds. For real weights: CHECKPOINT = "Lightricks/LTX-2"
CHECKPOINT = packaged_checkpoint("ltx2-mini")

is_mini = str(CHECKPOINT).endswith("ltx2-mini")
size = {"num_frames": 25} if is_mini else {}
frame = {"height": 128, "width": 128} if is_mini else {}
on_gpu = torch.cuda.is_available()
pipe = LTX2Pipeline.from_pretrained(CHECKPOINT, dtype=torch.bfloat16 if on_gpu else torch.float32)
pipe.to("cuda" if on_gpu else "cpu")

# Any clip will do; this one is made first.
prompt = "a green triangle moves up on a black background"
pipe(prompt, **frame, **size, generator=torch.manual_seed(0)).save("opening.mp4")

# Written segment by segment, so that memory does not grow with the length.
output = LTX2ExtendPipeline.from_pipe(pipe)(
    ["a green triangle turns on a black background", "a green triangle shrinks on a black background"],
    video="opening.mp4",
    overlap_frames=9 if is_mini else 25,  # Frames that a segment takes over from the one before.
    drift_control=0.3,
    save_path="extend.mp4",
    **size,
    generator=torch.manual_seed(1),
)
print(output.info["path"])
