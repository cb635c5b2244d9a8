"""Sound alone from text: writes text_to_audio.wav."""

import torch

from ltx2_diffusers import LTX2TextToAudioPipeline, packaged_checkpoint

# A miniature with random weights, to try things out in seconds. For real weights: CHECKPOINT = "Lightricks/LTX-2"
CHECKPOINT = packaged_checkpoint("ltx2-tiny")

on_gpu = torch.cuda.is_available()
pipe = LTX2TextToAudioPipeline.from_pretrained(CHECKPOINT, dtype=torch.bfloat16 if on_gpu else torch.float32)
pipe.to("cuda" if on_gpu else "cpu")

duration_s = 1.0 if "tiny" in str(CHECKPOINT) else 8.0
prompt = "A steam train passes, its whistle blows twice."
output = pipe(prompt, duration_s=duration_s, generator=torch.manual_seed(0))
print(*output.save("text_to_audio.wav"), output.sampling_rate, "Hz")
