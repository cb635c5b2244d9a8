import json
import pickle

import pytest
import torch
from safetensors import safe_open

from ltx2_diffusers import LTX2TextConnectors
from ltx2_diffusers.data.samples import padded_rows, read_sample, valid_rows, write_sample
from tests.tiny_checkpoints import tiny_checkpoint

CAPTION_TOKENS = 60


def video_latents(frames=2, height=3, width=4, channels=5):
    return torch.randn(channels, frames, height, width, generator=torch.Generator().manual_seed(0))


def test_a_sample_comes_back_as_it_was_written(tmp_path):
    path, latents = tmp_path / "sub" / "clip.safetensors", video_latents().to(torch.bfloat16)
    numbers = {"num_frames": 2, "height": 3, "width": 4, "fps": 23.976}
    write_sample(path, {"latents": latents}, numbers)
    sample = read_sample(path)
    assert torch.equal(sample.pop("latents"), latents)
    assert sample == numbers
    assert [type(value) for value in sample.values()] == [int, int, int, float]
    with safe_open(path, framework="pt") as file:
        assert json.loads(file.metadata()["numbers"]) == numbers


def test_a_caption_is_stored_at_sensible_size(tmp_path):
    path = tmp_path / "caption.safetensors"
    write_sample(path, {"video_prompt_embeds": torch.randn(CAPTION_TOKENS, 3840).to(torch.bfloat16)}, {})
    assert 0 <= path.stat().st_size - CAPTION_TOKENS * 3840 * 2 < 512


def test_values_that_are_not_finite_are_not_written(tmp_path):
    path = tmp_path / "clip.safetensors"
    with pytest.raises(ValueError, match="'latents' of 'clip' holds values that are not finite"):
        write_sample(path, {"latents": torch.tensor([1.0, torch.nan])}, {})
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match=r"use 'clip\.safetensors'"):
        write_sample(tmp_path / "clip.pt", {}, {})


def test_pickled_files_are_read(tmp_path):
    latents = video_latents()
    content = {"latents": latents, "num_frames": torch.tensor(2), "height": 3, "width": 4, "fps": 25.0, "note": "x"}
    torch.save(content, tmp_path / "a.pt")
    sample = read_sample(tmp_path / "a.pt")
    assert torch.equal(sample.pop("latents"), latents)
    assert sample == {"num_frames": 2, "height": 3, "width": 4, "fps": 25.0}


def test_tokens_become_a_grid_and_audio_latents_stay(tmp_path):
    latents = video_latents()
    tokens = latents.movedim(0, -1).reshape(-1, 5)
    torch.save({"latents": tokens, "num_frames": 2, "height": 3, "width": 4}, tmp_path / "a.pt")
    assert torch.equal(read_sample(tmp_path / "a.pt")["latents"], latents)
    audio = torch.randn(8, 5, 16)
    torch.save({"latents": audio, "num_time_steps": 5, "frequency_bins": 16, "duration": 0.2}, tmp_path / "b.pt")
    assert torch.equal(read_sample(tmp_path / "b.pt")["latents"], audio)
    torch.save({"latents": tokens, "num_frames": 2, "height": 3, "width": 5}, tmp_path / "c.pt")
    with pytest.raises(ValueError, match=r"c\.pt' stores 24 tokens, but num_frames, height, width are \[2, 3, 5\]"):
        read_sample(tmp_path / "c.pt")


@pytest.mark.parametrize("streams", [("prompt_embeds",), ("video_prompt_embeds", "audio_prompt_embeds")])
def test_padded_captions_become_the_rows_of_their_tokens(tmp_path, streams):
    features = {name: torch.randn(16, 3 + index) for index, name in enumerate(streams)}
    mask = torch.tensor([0] * 9 + [1] * 7)
    torch.save({**features, "prompt_attention_mask": mask}, tmp_path / "a.pt")
    sample = read_sample(tmp_path / "a.pt")
    assert list(sample) == [name if name != "prompt_embeds" else "video_prompt_embeds" for name in streams]
    for name, rows in zip(streams, sample.values()):
        assert torch.equal(rows, features[name][9:])


class Foreign:
    pass


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.pt", b""),
        ("a.pt", b"PK\x03\x04 no archive"),
        ("a.pt", b"random bytes, no pickle"),
        ("a.pt", pickle.dumps(Foreign(), protocol=2)),
        ("a.safetensors", b"\x10\0\0\0\0\0\0\0{"),
        ("a.safetensors", b""),
    ],
)
def test_damaged_files_are_named(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=name):
        read_sample(path)


def test_files_of_another_kind_are_refused(tmp_path):
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ValueError, match=r"list\.pt' holds a list and no sample"):
        read_sample(tmp_path / "list.pt")
    torch.save({"prompt_embeds": torch.zeros(4, 2), "prompt_attention_mask": torch.ones(3)}, tmp_path / "mask.pt")
    with pytest.raises(ValueError, match="has 3 positions, 'video_prompt_embeds' has 4"):
        read_sample(tmp_path / "mask.pt")
    torch.save({"prompt_embeds": torch.zeros(1, 4, 2)}, tmp_path / "batch.pt")
    with pytest.raises(ValueError, match=r"has to have shape \[tokens, width\]"):
        read_sample(tmp_path / "batch.pt")
    with pytest.raises(FileNotFoundError):
        read_sample(tmp_path / "none.pt")


@pytest.mark.parametrize("checkpoint", ["2.0", "2.3"])
def test_rows_of_tokens_give_what_all_positions_give(checkpoint):
    """Registers stand in the place of padding, so that padding need not be stored."""
    connectors = LTX2TextConnectors.from_pretrained(tiny_checkpoint(checkpoint), subfolder="connectors")
    lengths, states = (7, 12), torch.randn(2, 1024, 32, 3, generator=torch.Generator().manual_seed(0))
    mask = torch.stack([torch.arange(1024) >= 1024 - length for length in lengths])
    features = connectors.extract_features(states, mask)
    whole = connectors.run_connectors(*features, mask)
    rows = [padded_rows([valid_rows(*pair) for pair in zip(feature, mask)]) for feature in features]
    assert rows[0][1].tolist() == [[True] * 7 + [False] * 5, [True] * 12]
    short = connectors.run_connectors(rows[0][0], rows[1][0], rows[0][1], target_length=1024)
    for one, other, forward in zip(short, whole, connectors(states, mask.int())):
        assert torch.equal(one, other)
        assert torch.allclose(one, forward, atol=1e-5)


def test_connectors_check_what_they_are_given():
    connectors = LTX2TextConnectors.from_pretrained(tiny_checkpoint("2.0"), subfolder="connectors")
    features = torch.zeros(1, 20, 32)
    with pytest.raises(
        ValueError, match=r"attention_mask must have shape \(1, 20\) like video_features, got \(1, 3\)"
    ):
        connectors.run_connectors(features, features, torch.ones(1, 3))
    with pytest.raises(ValueError, match="target_length must be at least 20, got 16"):
        connectors.run_connectors(features, features, torch.ones(1, 20), target_length=16)
    with pytest.raises(ValueError, match="multiple of the 16 learnable registers, got 20"):
        connectors.run_connectors(features, features, torch.ones(1, 20))
