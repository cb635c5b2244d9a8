"""A clip with twice the rows, columns and frames, refined from keyframes beside it (DFR): writes fidelity_rendering.mp4."""

import torch

import ltx2_diffusers as ltx
from ltx2_diffusers import LTX2DFRPipeline, LTX2DFRTemporalRefinePipeline, packaged_checkpoint

# The packaged miniature, to try things out in seconds. For real weights: CHECKPOINT = "Lightricks/LTX-2.5-Diffusers"
CHECKPOINT = packaged_checkpoint("ltx2-mini")

is_mini, on_gpu = str(CHECKPOINT).endswith("ltx2-mini"), torch.cuda.is_available()
device, dtype = ("cuda", torch.bfloat16) if on_gpu else ("cpu", torch.float32)
frames, rows, columns = (17, 128, 128) if is_mini else (121, 1088, 1920)
pipe = LTX2DFRPipeline.from_pretrained(CHECKPOINT, dtype=dtype)
if is_mini:
    # The miniature knows no keyframes and cannot double the frame rate; weights that mean nothing fill the gaps.
    known = {**pipe.transformer.config, "use_keyframes_abs_pos_embedding": True}
    transformer = ltx.LTX2AVTransformer3DModel.from_config(known).to(dtype)
    transformer.load_state_dict(pipe.transformer.state_dict(), strict=False)
    pipe.register_modules(transformer=transformer)
    pipe.load_lora_weights(CHECKPOINT, weight_name="distilled_lora.safetensors")
    temporal = ltx.LTX2LatentUpsamplerModel(mid_channels=32, spatial_upsample=False, temporal_upsample=True).to(dtype)
else:
    temporal = ltx.LTX2LatentUpsamplerModel.from_pretrained(CHECKPOINT, subfolder="temporal_latent_upsampler")
upsample = ltx.LTX2LatentUpsamplePipeline.from_pretrained(CHECKPOINT, vae=pipe.vae, dtype=dtype).to(device)
refine = LTX2DFRTemporalRefinePipeline.from_pipe(pipe.to(device), temporal_latent_upsampler=temporal.to(device, dtype))

prompt, half = "a yellow triangle moves to the left on a blue background", {"height": rows // 2, "width": columns // 2}
said = {"prompt": prompt, "generator": torch.Generator().manual_seed(0)}
small = pipe(**said, **half, num_frames=frames, output_type="latent")
parts = (small.frames, *small.keyframes.split(1, dim=2))
video, *keys = (upsample(latents=part, output_type="latent").frames for part in parts)
said |= {"keyframe_positions": small.keyframe_positions, "audio_latents": small.audio}
said |= {"height": rows, "width": columns}
levels = {"sigmas": [0.909375, 0.725, 0.421875], "output_type": "latent"}
large = pipe(**said, **levels, num_frames=frames, latents=video, keyframes_latents=torch.cat(keys, dim=2))
canvas = {"num_frames": large.keyframe_positions[-1] + 1, "condition_num_frames": frames}
smooth = refine(**said, **canvas, latents=large.frames, keyframes_latents=large.keyframes)
print(*smooth.save("fidelity_rendering.mp4"))
