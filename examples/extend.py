"""A clip continued by two segments with a prompt each: writes opening.mp4 and extend.mp4."""

import torch

from ltx2_diffusers import LTX2ExtendPipeline, LTX2Pipeline, packaged_checkpoint

# A miniature with random weights, to try things out in seconds. For real weights: CHECKPOINT = "Lightricks/LTX-2"
CHECKPOINT = packaged_checkpoint("ltx2-tiny")

is_tiny = "tiny" in str(CHECKPOINT)
size = {"num_frames": 17, "num_inference_steps": 8} if is_tiny else {}
frame = {"height": 64, "width": 96} if is_tiny else {}
on_gpu = torch.cuda.is_available()
pipe = LTX2Pipeline.from_pretrained(CHECKPOINT, dtype=torch.bfloat16 if on_gpu else torch.float32)
pipe.to("cuda" if on_gpu else "cpu")

# Any clip will do; this one is made first.
pipe("A man walks along a beach.", **frame, **size, generator=torch.manual_seed(0)).save("opening.mp4")

# Written segment by segment, so that memory does not grow with the length.
output = LTX2ExtendPipeline.from_pipe(pipe)(
    ["He picks up a shell.", "He holds it to his ear and hears the sea."],
    video="opening.mp4",
    overlap_frames=9 if is_tiny else 25,  # Frames that a segment takes over from the one before.
    drift_control=0.3,
    save_path="extend.mp4",
    **size,
    generator=torch.manual_seed(1),
)
print(output.info["path"])
