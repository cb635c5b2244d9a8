"""The tiny networks as a pipeline, and the runs of the golden vectors as calls of it."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from ltx2_diffusers.conditioning import noiser
from ltx2_diffusers.families.ltx_video import pipeline as family
from ltx2_diffusers.families.ltx_video.presets import PassSettings
from ltx2_diffusers.pipelines import engine
from ltx2_diffusers.sampling import samplers
from tests.families.ltx_video.tiny import networks, settings
from tests.golden_data import load_metadata, load_tensors


def tiny_pipeline(kind: Any = family.LTXVideoPipeline, **components: Any) -> Any:
    """A pipeline of the tiny networks, without a text encoder; by default with the settings of a distilled checkpoint."""
    parts = {"scheduler": FlowMatchEulerDiscreteScheduler(), "text_encoder": None, "tokenizer": None, **networks()}
    parts["preset"] = "ltxv-13b-0.9.8-distilled"
    made = kind(**{**parts, **components})
    made.set_progress_bar_config(disable=True)
    return made


@contextmanager
def recorded_noise(monkeypatch: Any, noises: list[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """Let all noise be what was recorded, in its order; what is left is yielded."""
    left = list(noises)

    def draw(shape, generator=None, device=None, dtype=None, **_):  # noqa: ARG001
        return left.pop(0).reshape(shape).to(dtype)

    with monkeypatch.context() as patched:
        for module in (noiser, engine, samplers):
            patched.setattr(module, "randn_tensor", draw)
        yield left


class Run:
    """A golden run: its tensors, and the call that it is."""

    def __init__(self, name: str) -> None:
        path = f"ltx_video/runs/{name}.safetensors"
        self.tensors, self.facts = load_tensors(path), load_metadata(path)

    @property
    def noises(self) -> list[torch.Tensor]:
        """What was drawn, in its order."""
        names = [key for key in self.tensors if key.startswith("noise/")]
        return [self.tensors[key] for key in sorted(names, key=lambda key: int(key.split("/")[1]))]

    @property
    def call(self) -> dict[str, Any]:
        """The arguments."""
        facts = self.facts
        text = {key: self.tensors[key] for key in self.tensors if "prompt" in key}
        numbers = {name: int(facts[name]) for name in ("height", "width", "num_frames")}
        shares = {n: float(facts[n]) for n in ("decode_timestep", "decode_noise_scale", "image_cond_noise_scale")}
        conditions = [
            family.LTXVideoCondition(video=self.pixels(f"condition/{index}_u8"), frame_index=start, strength=strength)
            for index, (start, strength) in enumerate(json.loads(facts["conditions"]))
        ]
        second = facts["second"]
        return {
            **text,
            **numbers,
            **shares,
            "frame_rate": float(facts["frame_rate"]),
            "conditions": conditions or None,
            "stg_mode": facts["skip_mode"],
            "stochastic_sampling": facts["stochastic"] == "1",
            "first_pass": PassSettings(**settings(facts["first"])),
            "second_pass": None if second == "null" else PassSettings(**settings(second)),
            "multi_scale": second != "null",
            "image_crf": 0,
            "image_blur": False,
            "packed_noise": True,
        }

    def pixels(self, key: str) -> torch.Tensor:
        """Pixels `[n, 3, H, W]`, bytes."""
        return self.tensors[key][0].movedim(1, 0)

    @property
    def target_tokens(self) -> int:
        """Tokens of the video itself in the last pass, in whose shape the decoder's noise was drawn."""
        return self.noises[-1][0, 0].numel()
