"""Pictures for a sound, which is kept as it is: writes audio_to_video.mp4."""

import torch

from ltx2_diffusers import LTX2AudioToVideoPipeline, packaged_checkpoint

# A miniature with random weights, to try things out in seconds. For real weights: CHECKPOINT = "Lightricks/LTX-2"
CHECKPOINT = packaged_checkpoint("ltx2-tiny")

small = {"height": 64, "width": 96, "num_frames": 17, "two_stage": False} if "tiny" in str(CHECKPOINT) else {}
on_gpu = torch.cuda.is_available()
pipe = LTX2AudioToVideoPipeline.from_pretrained(CHECKPOINT, dtype=torch.bfloat16 if on_gpu else torch.float32)
pipe.to("cuda" if on_gpu else "cpu")
if not small:
    # What turns the dev weights into those that refine; only the second stage uses it.
    lora = "ltx-2-19b-distilled-lora-384.safetensors"
    pipe.load_lora_weights(CHECKPOINT, weight_name=lora, adapter_name="distilled")

# Any waveform [channels, samples], or the name of a media file; what is longer than the video is cut.
seconds = torch.arange(6 * 48_000) / 48_000
bell = torch.sin(2 * torch.pi * 880 * seconds) * torch.exp(-3 * (seconds % 1))
prompt = "A brass bell swings in a church tower."
output = pipe(bell.expand(2, -1), prompt, sampling_rate=48_000, **small, generator=torch.manual_seed(0))
print(*output.save("audio_to_video.mp4"))
