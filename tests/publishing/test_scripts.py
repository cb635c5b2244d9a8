"""The scripts of cards run as they stand, on the packaged miniature."""

import re

import numpy as np
import PIL.Image
import pytest
import torch
from safetensors.torch import load_file

import ltx2_diffusers
from ltx2_diffusers import LTX2Pipeline, packaged_checkpoint
from ltx2_diffusers.media.reading import probe
from ltx2_diffusers.media.writing import write_audio, write_video
from ltx2_diffusers.publishing import CALLS

MINI = packaged_checkpoint("ltx2-mini")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with what scripts read."""
    folder = tmp_path_factory.mktemp("scripts")
    pixels = torch.randint(0, 256, (25, 128, 128, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    sound = torch.full((2, 48000), 0.01)
    for name in ("clip.mp4", "reference.mp4"):
        write_video(folder / name, pixels, 24.0, sound, 24000)
    write_audio(folder / "sound.wav", sound, 24000)
    for name in ("first_frame.png", "last_frame.png"):
        PIL.Image.fromarray(np.asarray(pixels[0])).save(folder / name)
    return folder


def run_scripts(card):
    """Run both scripts of a card in the current directory, and look at what they write."""
    scripts = re.findall(r"^```python\n(.*?)^```", card.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert len(scripts) == 2
    for script in scripts:
        for old in card.parents[1].glob("sample.*"):
            old.unlink()
        exec(script, {})
        (written,) = card.parents[1].glob("sample.*")
        assert probe(written).num_frames or written.suffix == ".wav"


@pytest.mark.slow
@pytest.mark.parametrize("name", CALLS)
def test_the_scripts_of_a_pipeline_run(name, files, monkeypatch):
    monkeypatch.chdir(files)
    getattr(ltx2_diffusers, name).from_pretrained(MINI).save_pretrained(name)
    run_scripts(files / name / "README.md")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["distilled_lora", "ic_lora"])
def test_the_scripts_of_a_lora_run(name, files, monkeypatch):
    monkeypatch.chdir(files)
    factors = {key.removeprefix("transformer."): t for key, t in load_file(MINI / f"{name}.safetensors").items()}
    metadata = {"reference_downscale_factor": "1"} if name == "ic_lora" else None
    said = {"weight_name": f"{name}.safetensors", "base_model": "ltx2-mini", "metadata": metadata}
    LTX2Pipeline.save_lora_weights(name, factors, **said)
    run_scripts(files / name / "README.md")
