"""Sound alone from text: writes text_to_audio.wav."""

import torch

from ltx2_diffusers import LTX2TextToAudioPipeline, packaged_checkpoint

# The packaged miniature, to try things out in seconds. For real weights: CHECKPOINT = "Lightricks/LTX-2"
CHECKPOINT = packaged_checkpoint("ltx2-mini")

on_gpu = torch.cuda.is_available()
pipe = LTX2TextToAudioPipeline.from_pretrained(CHECKPOINT, dtype=torch.bfloat16 if on_gpu else torch.float32)
pipe.to("cuda" if on_gpu else "cpu")

duration_s = 1.0 if str(CHECKPOINT).endswith("ltx2-mini") else 8.0
prompt = "a red circle bounces on a blue background"
output = pipe(prompt, duration_s=duration_s, generator=torch.manual_seed(0))
print(*output.save("text_to_audio.wav"), output.sampling_rate, "Hz")
