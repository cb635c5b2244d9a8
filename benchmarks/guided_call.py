"""A guided call with given text embeddings, diffusers against ours, with the same weights in the same process.

Run `python -m benchmarks.guided_call [--quick]`. The call makes two guided steps from embeddings of 128 to 1024 positions:
connectors, the passes of the transformer and what the pipelines do around them. Widths are reduced so that a CPU can run
it; the parts that do not belong to a step come from the packaged miniature.
"""

import argparse
import sys
from typing import Any

import torch
from diffusers import LTX2Pipeline as DiffusersPipeline
from diffusers import LTX2VideoTransformer3DModel
from diffusers.pipelines.ltx2 import LTX2TextConnectors as DiffusersConnectors
from diffusers.utils import logging

from benchmarks.common import interleaved, print_table, ratio, write_results
from benchmarks.transformer_forward import CONFIG
from ltx2_diffusers import LTX2AVTransformer3DModel, LTX2Pipeline, LTX2TextConnectors, packaged_checkpoint

CONNECTORS = {
    "caption_channels": 256,
    "text_proj_in_factor": 3,
    "video_connector_num_attention_heads": 8,
    "video_connector_attention_head_dim": 32,
    "audio_connector_num_attention_heads": 8,
    "audio_connector_attention_head_dim": 32,
    "rope_type": "split",
}
LENGTHS = (128, 256, 512, 1024)
CALL = {
    "height": 256,
    "width": 384,
    "num_frames": 33,
    "frame_rate": 24.0,
    "num_inference_steps": 2,
    "guidance_scale": 3.0,
    "stg_scale": 0.0,
    "modality_scale": 1.0,
    "guidance_rescale": 0.0,
    "audio_guidance_scale": 3.0,
    "audio_stg_scale": 0.0,
    "audio_modality_scale": 1.0,
    "audio_guidance_rescale": 0.0,
    "use_cross_timestep": False,
    "output_type": "latent",
}


def pipelines() -> dict[str, Any]:
    """Both libraries' pipelines on the same weights."""
    torch.manual_seed(0)
    config = {**CONFIG, "num_layers": 2, "audio_in_channels": 32, "audio_out_channels": 32}
    transformer, connectors = LTX2AVTransformer3DModel(**config), LTX2TextConnectors(**CONNECTORS)
    theirs = LTX2VideoTransformer3DModel(**config), DiffusersConnectors(**CONNECTORS)
    for own, other in zip((transformer, connectors), theirs):
        other.load_state_dict(own.state_dict())
    checkpoint = packaged_checkpoint("ltx2-mini")
    built = {
        "diffusers": DiffusersPipeline.from_pretrained(checkpoint, transformer=theirs[0], connectors=theirs[1]),
        "ours": LTX2Pipeline.from_pretrained(checkpoint, transformer=transformer, connectors=connectors),
    }
    for pipeline in built.values():
        pipeline.set_progress_bar_config(disable=True)
    return built


def embeddings(length: int, tokens: int = 100) -> dict[str, torch.Tensor]:
    """States of two prompts of so many tokens, with padding in front up to a length."""
    generator = torch.Generator().manual_seed(1)
    width = CONNECTORS["caption_channels"] * CONNECTORS["text_proj_in_factor"]
    given = {}
    for prefix in ("", "negative_"):
        given[f"{prefix}prompt_embeds"] = torch.randn(1, length, width, generator=generator)
        given[f"{prefix}prompt_attention_mask"] = (torch.arange(length)[None] >= length - tokens).long()
    return given


def main() -> int:
    """Measure, print and write the results; exit status 1 if a call is slower than diffusers'."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few samples")
    repeats = 3 if parser.parse_args().quick else 15
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    both, cases = pipelines(), []
    for length in LENGTHS:
        call = {**CALL, **embeddings(length)}
        runs = {
            name: lambda pipeline=pipeline, call=call: pipeline(**call, generator=torch.Generator().manual_seed(2))
            for name, pipeline in both.items()
        }
        results = {name: function().frames for name, function in runs.items()}
        difference = (results["ours"] - results["diffusers"]).abs().max().item()
        times = interleaved(runs, repeats=repeats)
        cases.append({"text positions": length, "largest difference": difference, **ratio(times, "diffusers", "ours")})
    write_results("guided_call", {"call": CALL, "cases": cases})
    print_table(cases)
    return int(any(case["paired"] < 1.0 for case in cases))


if __name__ == "__main__":
    sys.exit(main())
