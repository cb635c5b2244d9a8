"""Shows how the published models fit cards of 8 to 80 GB, and runs a checkpoint within less and less; writes low_vram.mp4."""

import torch

from ltx2_diffusers import LTX2TwoStagePipeline, plan_memory

CHECKPOINT = "ltx2-mini"  # the packaged miniature. For real weights: CHECKPOINT = "the folder of a checkpoint"
CARDS = {8: "rtx4060", 12: "rtx4070", 16: "rtx4080", 24: "rtx4090", 32: "rtx5090", 48: "l40s", 80: "h100"}
VRAM_GB = (0.1, 0.032, 0.025, 0.022)  # for real weights 80, 24, 16, 12
CLIP = {"two_stage": True, "height": 128, "width": 128, "num_frames": 25}
STEPS = {"num_inference_steps": 8}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

# Nothing is loaded for a plan, and no card is needed.
for model in ("ltx-2-19b", "ltx-2.3-22b"):
    for gb, gpu in CARDS.items():
        try:
            print(plan_memory(model, gb, 64, gpu=gpu, two_stage=True, height=1024, width=1536), end="\n\n")
        except ValueError as error:
            print(error, end="\n\n")

first = None
for gb in VRAM_GB:
    plan = plan_memory(
        CHECKPOINT, gb, 1, device="cpu", prompt_tokens=64, **STEPS, **CLIP
    )  # for a card without `device`
    pipe = LTX2TwoStagePipeline.from_plan(plan, DEVICE)
    generator = torch.Generator().manual_seed(7)
    prompt = "a red circle bounces on a blue background"
    output = pipe(prompt, generator=generator, output_type="uint8", stage_2_adapters={}, **STEPS, **CLIP)
    first = output.frames if first is None else first
    moved = [f"{name} {part.placement.shown}" for name, part in plan.parts.items() if part.on_host]
    print(
        f"{gb} GB: {', '.join(moved) or 'all resident'}; decoded {plan.decoding}; same clip: {torch.equal(output.frames, first)}"
    )
print(output.save("low_vram.mp4"))
