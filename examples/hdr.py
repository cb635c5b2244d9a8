"""A video of high dynamic range, made of one of standard range by an IC-LoRA: writes hdr.mp4."""

import torch
from PIL import Image, ImageDraw

from ltx2_diffusers import HDRFile, LTX2HDRPipeline, LTX2HDRReferenceCondition, packaged_checkpoint

# The packaged miniature, to try things out in seconds. For real weights: CHECKPOINT = "diffusers/LTX-2.3-Distilled-Diffusers"
CHECKPOINT = packaged_checkpoint("ltx2-mini")
LORA = (
    "ic_lora.safetensors"  # Of that folder or repository; with real weights an HDR IC-LoRA that fits the checkpoint.
)


def frame(step: int) -> Image.Image:
    picture = Image.new("RGB", (512, 512), "navy")
    ImageDraw.Draw(picture).ellipse((17 + 8 * step, 114, 301 + 8 * step, 398), fill="white")
    return picture


size = {"height": 128, "width": 128, "num_frames": 25} if str(CHECKPOINT).endswith("ltx2-mini") else {}
on_gpu = torch.cuda.is_available()
pipe = LTX2HDRPipeline.from_pretrained(CHECKPOINT, dtype=torch.bfloat16 if on_gpu else torch.float32)
pipe.to("cuda" if on_gpu else "cpu")
pipe.load_lora_weights(CHECKPOINT, weight_name=LORA, adapter_name="hdr")
pipe.vae.to(torch.float32)

output = pipe(
    "a lamp moves to the right",
    reference_conditions=LTX2HDRReferenceCondition([frame(step) for step in range(25)]),
    **size,
    use_audio_stream=False,  # as the original code; by default the network hears noise, as in diffusers
    generator=torch.manual_seed(0),
)
# Linear light, in which 1.0 is white; EXR needs the extra `hdr`: output.save("hdr.exr")
print(f"light from {output.frames.min():.3f} to {output.frames.max():.3f}")
print(*output.save(HDRFile("hdr.mp4", signal="pq")))
