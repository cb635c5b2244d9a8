"""What the package ships: a small checkpoint that both libraries load and run."""

import diffusers
import pytest
import torch
from safetensors.torch import load_file

from ltx2_diffusers import LTX2Pipeline, packaged_checkpoint
from ltx2_diffusers.checkpoints.packaged import PACKAGED, checkpoint_path, meant_instead

MAX_BYTES = 24_000_000


def test_wrong_name_gets_the_nearest_one():
    with pytest.raises(ValueError, match=r"'ltx2-min'; did you mean 'ltx2-mini'\? There are ltx2-mini"):
        packaged_checkpoint("ltx2-min")
    assert meant_instead("LTX2-mini") == "did you mean the packaged 'ltx2-mini'?"
    assert meant_instead("/no/such/folder") == "packaged are ltx2-mini, ltx-video-tiny"


def test_a_path_is_taken_as_it_is(tmp_path):
    assert checkpoint_path(str(tmp_path)) == tmp_path
    assert checkpoint_path("ltx2-mini") == packaged_checkpoint("ltx2-mini")


@pytest.mark.parametrize("name", PACKAGED)
def test_a_packaged_checkpoint_is_small_and_holds_finite_bfloat16(name):
    files = [path for path in packaged_checkpoint(name).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < MAX_BYTES
    # Adapters lie beside the components, in the data type that they were trained in.
    weights = [path for path in files if path.suffix == ".safetensors" and path.parent != packaged_checkpoint(name)]
    assert len(weights) >= (7 if name == "ltx2-mini" else 4)
    for path in weights:
        for key, tensor in load_file(path).items():
            if name != "ltx2-mini" and (key.startswith("latents_") or tensor.ndim == 0):
                # Their file has these in float32.
                continue
            assert tensor.dtype == torch.bfloat16 and tensor.isfinite().all(), (path, key)


@pytest.mark.parametrize("name", ["ltx2-mini"])
@pytest.mark.parametrize("pipeline_class", [LTX2Pipeline, diffusers.LTX2Pipeline], ids=["ours", "diffusers"])
def test_a_packaged_checkpoint_makes_a_clip_with_sound(name, pipeline_class):
    pipeline = pipeline_class.from_pretrained(packaged_checkpoint(name))
    pipeline.set_progress_bar_config(disable=True)
    size = {"height": 64, "width": 64, "num_frames": 17, "num_inference_steps": 2, "output_type": "np"}
    output = pipeline("a red circle moves right", **size, generator=torch.Generator().manual_seed(0))
    assert output.frames.shape == (1, 17, 64, 64, 3)
    assert output.audio.shape[1] == 2 and output.audio.isfinite().all()
