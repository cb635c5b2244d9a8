"""A rewritten prompt, kept on disk for runs without text encoder: writes enhanced.mp4 and from_cache.mp4."""

import torch

from ltx2_diffusers import LTX2Pipeline, packaged_checkpoint

# The packaged miniature, to try things out in seconds. For real weights: CHECKPOINT = "Lightricks/LTX-2"
CHECKPOINT = packaged_checkpoint("ltx2-mini")

small = {"height": 128, "width": 128, "num_frames": 25} if str(CHECKPOINT).endswith("ltx2-mini") else {}
on_gpu = torch.cuda.is_available()
device, dtype = ("cuda", torch.bfloat16) if on_gpu else ("cpu", torch.float32)

pipe = LTX2Pipeline.from_pretrained(CHECKPOINT, dtype=dtype).to(device)
pipe.enable_prompt_cache("prompts", max_bytes="2GB")
# The text encoder rewrites the prompt before it encodes it; the miniature's was never taught to write.
tokens = 16 if small else 512
rewriting = {"enable_prompt_enhancement": True, "prompt_max_new_tokens": tokens}
first = pipe("a purple square grows on a white background", **rewriting, **small, generator=torch.manual_seed(0))
print(*first.save("enhanced.mp4"), first.info["enhanced_prompt"])

# A later run takes the prompt's encoding from the folder, without the largest model of the checkpoint.
del pipe
left_out = {"text_encoder": None, "tokenizer": None, "connectors": None}
pipe = LTX2Pipeline.from_pretrained(CHECKPOINT, dtype=dtype, **left_out).to(device)
pipe.enable_prompt_cache("prompts")
again = pipe(first.info["enhanced_prompt"], **small, generator=torch.manual_seed(0))
print(*again.save("from_cache.mp4"))
