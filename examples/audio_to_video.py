"""Pictures for a sound, which is kept as it is: writes audio_to_video.mp4."""

import torch

from ltx2_diffusers import LTX2AudioToVideoPipeline, packaged_checkpoint

# The packaged miniature, to try things out in seconds. For real weights: CHECKPOINT = "Lightricks/LTX-2"
CHECKPOINT = packaged_checkpoint("ltx2-mini")

small = (
    {"height": 128, "width": 128, "num_frames": 25, "two_stage": False}
    if str(CHECKPOINT).endswith("ltx2-mini")
    else {}
)
on_gpu = torch.cuda.is_available()
pipe = LTX2AudioToVideoPipeline.from_pretrained(CHECKPOINT, dtype=torch.bfloat16 if on_gpu else torch.float32)
pipe.to("cuda" if on_gpu else "cpu")
if not small:
    # What turns the dev weights into those that refine; only the second stage uses it.
    lora = "ltx-2-19b-distilled-lora-384.safetensors"
    pipe.load_lora_weights(CHECKPOINT, weight_name=lora, adapter_name="distilled")

# Any waveform [channels, samples], or the name of a media file; what is longer than the video is cut.
seconds = torch.arange(6 * 48_000) / 48_000
# In the miniature's world squares sound like this, and where a sound comes from is where the shape is.
tone = 0.45 * sum(part * torch.sin(2 * torch.pi * 400 * k * seconds) for k, part in enumerate((0.7, 0.2, 0.1), 1))
angle = (0.3 + 0.4 * seconds).clamp(max=0.7) * torch.pi / 2
sound = tone * torch.stack([angle.cos(), angle.sin()])
prompt = "a yellow square moves to the right on a purple background"
output = pipe(sound, prompt, sampling_rate=48_000, **small, generator=torch.manual_seed(0))
print(*output.save("audio_to_video.mp4"))
