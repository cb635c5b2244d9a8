"""Plans for cards of 8 to 80 GB, and the packaged checkpoint loaded and run as such plans say.

`python -m examples.low_vram` shows how the published models fit each card: nothing is loaded for it, no file is needed, and no
card. Then the packaged miniature runs within less and less memory, and gives the same clip.
"""

import argparse

import torch

from ltx2_diffusers import LTX2TwoStagePipeline, packaged_checkpoint, plan_memory

MODELS = ("ltx-2-19b", "ltx-2.3-22b")
# Cards by their memory in GB, as their makers name them; what is counted with is their speed.
CARDS = {8: "rtx4060", 12: "rtx4070", 16: "rtx4080", 24: "rtx4090", 32: "rtx5090", 48: "l40s", 80: "h100"}
RAM_GB = 64
# The default clip of two stages.
CLIP = {"two_stage": True, "height": 1024, "width": 1536, "num_frames": 121}
SMALL_CLIP = {"two_stage": True, "height": 128, "width": 128, "num_frames": 25}
# Of the miniature, whose weights are 22 MB: all of them fit the first.
MEGABYTES = (100, 34, 30, 26)


def show(models: tuple[str, ...] = MODELS, cards: tuple[int, ...] = tuple(CARDS), **clip: object) -> None:
    """Print a plan for every model and card, or why there is none."""
    for model in models:
        for gb in cards:
            try:
                print(plan_memory(model, gb, RAM_GB, gpu=CARDS[gb], **{**CLIP, **clip}), end="\n\n")
            except ValueError as error:
                print(error, end="\n\n")


def run(megabytes: tuple[int, ...] = MEGABYTES, steps: int = 8) -> None:
    """Run the miniature within so many megabytes each; the clips are equal."""
    checkpoint, clips = packaged_checkpoint("ltx2-mini"), []
    for size in megabytes:
        # On a CPU the plan limits what a card would hold.
        plan = plan_memory(
            checkpoint, size / 1024, 1, device="cpu", prompt_tokens=64, num_inference_steps=steps, **SMALL_CLIP
        )
        pipe = LTX2TwoStagePipeline.from_plan(plan, device="cpu")
        pipe.set_progress_bar_config(disable=True)
        output = pipe(
            "a red circle bounces on a blue background",
            num_inference_steps=steps,
            stage_2_adapters={},  # the miniature refines with the same weights
            generator=torch.Generator().manual_seed(7),
            output_type="pt",
            **SMALL_CLIP,
        )
        clips.append(output.frames)
        waiting = [f"{name} {part.placement.shown}" for name, part in plan.parts.items() if part.on_host]
        largest = max((clip - clips[0]).abs().max().item() for clip in clips)
        print(
            f"{size} MB: {'; '.join(waiting) or 'everything resident'}; decoded {plan.decoding}; differs by {largest:.1g}"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one card and few steps")
    if parser.parse_args().quick:
        show(MODELS[:1], (24,))
        run(MEGABYTES[:2], steps=2)
    else:
        show()
        run()
