import pickle

import pytest
import torch

from ltx2_diffusers.data.dataset import WIDTHS, DummyDataset, PrecomputedDataset, check_not_smaller, collate
from ltx2_diffusers.data.samples import text_features, write_sample

SOURCES = {"latents": "latents", "conditions": "conditions"}
GRID = {"num_frames": 2, "height": 3, "width": 4}


def make(root, names, folders=("latents", "conditions"), fps=25.0):
    """Samples whose values tell their place in the list."""
    for number, name in enumerate(names):
        for folder in folders:
            path = root / folder / f"{name}.safetensors"
            if "audio" in folder:
                write_sample(path, {"latents": torch.full((8, 5, 16), float(number))}, {"duration": 0.2})
            elif folder == "conditions":
                write_sample(path, {"video_prompt_embeds": torch.full((3 + number, 6), float(number))}, {})
            else:
                write_sample(path, {"latents": torch.full((5, 2, 3, 4), float(number))}, {**GRID, "fps": fps})


def test_samples_are_sorted_and_found_in_either_folder(tmp_path):
    make(tmp_path / ".precomputed", ["b", "sub/a", "a.cut"])
    for root in (tmp_path, tmp_path / ".precomputed", str(tmp_path)):
        dataset = PrecomputedDataset(root, SOURCES)
        assert dataset.names == ["a.cut", "b", "sub/a"]
        assert len(dataset) == 3
    item = dataset[1]
    assert list(item) == ["latents", "conditions", "idx"]
    assert item["idx"] == 1
    assert item["latents"]["latents"].unique().tolist() == [0.0]
    assert item["latents"]["fps"] == 25.0
    assert item["conditions"]["video_prompt_embeds"].shape == (3, 6)


def test_keys_follow_the_sources(tmp_path):
    make(tmp_path, ["a"])
    assert list(PrecomputedDataset(tmp_path)[0]) == ["latent_conditions", "text_conditions", "idx"]
    assert list(PrecomputedDataset(tmp_path, ["conditions", "latents"])[0]) == ["conditions", "latents", "idx"]
    with pytest.raises(TypeError, match="got str"):
        PrecomputedDataset(tmp_path, "latents")


def test_incomplete_samples_are_left_out_with_a_warning(tmp_path):
    make(tmp_path, ["a", "b", "c"])
    make(tmp_path, ["c", "a"], ["audio_latents"])
    with pytest.warns(UserWarning, match="1 of 3 samples .* such as 'b': files are missing for 1 in 'audio_latents'"):
        dataset = PrecomputedDataset(tmp_path, [*SOURCES, "audio_latents"])
    assert (dataset.names, dataset.dropped) == (["a", "c"], ["b"])
    (tmp_path / "audio_latents" / "a.safetensors").unlink()
    (tmp_path / "audio_latents" / "c.safetensors").unlink()
    with pytest.raises(
        ValueError, match=r"none of the 3 samples .* is complete: files are missing for 3 in 'audio_latents'"
    ):
        PrecomputedDataset(tmp_path, [*SOURCES, "audio_latents"])


def test_missing_folders_and_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*latents"):
        PrecomputedDataset(tmp_path, SOURCES)
    (tmp_path / "latents").mkdir()
    (tmp_path / "conditions").mkdir()
    with pytest.raises(ValueError, match=r"latents' holds no \.safetensors or \.pt files"):
        PrecomputedDataset(tmp_path, SOURCES)
    make(tmp_path, ["a"])
    (tmp_path / "conditions" / "a.safetensors").write_bytes(b"half")
    with pytest.raises(RuntimeError, match=r"sample 'a' cannot be loaded: .*conditions/a\.safetensors"):
        PrecomputedDataset(tmp_path, SOURCES)[0]
    with pytest.raises(FileNotFoundError, match="caption dropout"):
        PrecomputedDataset(tmp_path, SOURCES).empty_prompt()


def test_trees_of_the_reference_load(tmp_path):
    """Numbered names, tokens and padded captions; beside a new file, an old one of that name is not read."""
    (tmp_path / "latents").mkdir()
    (tmp_path / "conditions").mkdir()
    for number in (2, 10):
        torch.save({"latents": torch.zeros(24, 5), **GRID, "fps": 24}, tmp_path / f"latents/latent_{number}.pt")
        features = {"prompt_embeds": torch.ones(8, 6), "prompt_attention_mask": torch.tensor([0] * 6 + [1] * 2)}
        torch.save(features, tmp_path / f"conditions/condition_{number}.pt")
    dataset = PrecomputedDataset(tmp_path, SOURCES)
    assert dataset.names == ["latent_10", "latent_2"]
    assert dataset[0]["latents"]["latents"].shape == (5, 2, 3, 4)
    assert dataset[0]["conditions"]["video_prompt_embeds"].shape == (2, 6)
    make(tmp_path, ["latent_2"])
    assert PrecomputedDataset(tmp_path, SOURCES)[1]["conditions"]["video_prompt_embeds"].shape == (3, 6)


def test_files_being_written_are_no_samples(tmp_path):
    make(tmp_path, ["a", ".ltx2-partial-00000000-000000000000"])
    assert PrecomputedDataset(tmp_path, SOURCES).names == ["a"]


def test_a_batch_pads_captions_and_joins_numbers(tmp_path):
    make(tmp_path, ["a", "b", "c"])
    dataset = PrecomputedDataset(tmp_path, SOURCES)
    batch = collate([dataset[2], dataset[0]])
    assert batch["idx"].tolist() == [2, 0]
    assert batch["latents"]["latents"].shape == (2, 5, 2, 3, 4)
    assert batch["latents"]["num_frames"].tolist() == [2, 2]
    assert batch["latents"]["num_frames"].dtype == torch.int64
    assert batch["latents"]["fps"].dtype == torch.float64
    video, audio, mask = text_features(batch["conditions"])
    assert mask.tolist() == [[True] * 5, [True] * 3 + [False] * 2]
    assert video[:, :, 0].tolist() == [[2.0] * 5, [0.0] * 5]
    assert audio is video


def test_samples_without_sound_stay_where_they_may(tmp_path):
    make(tmp_path, ["a", "b"])
    make(tmp_path, ["b"], ["audio_latents"])
    dataset = PrecomputedDataset(tmp_path, [*SOURCES, "audio_latents"], optional=["audio_latents"])
    assert dataset.names == ["a", "b"]
    assert "audio_latents" not in dataset[0]
    batch = collate([dataset[0], dataset[1]])
    assert batch["audio_latents"]["present"].tolist() == [False, True]
    assert batch["audio_latents"]["latents"].shape == (2, 8, 5, 16)
    assert not batch["audio_latents"]["latents"][0].any()
    assert "present" not in collate([dataset[1]])["audio_latents"]
    assert "audio_latents" not in collate([dataset[0]])
    with pytest.raises(ValueError, match="optional names 'sound'"):
        PrecomputedDataset(tmp_path, SOURCES, optional=["sound"])


def test_samples_that_do_not_fit_together_are_named(tmp_path):
    make(tmp_path, ["a", "b"])
    write_sample(tmp_path / "latents" / "b.safetensors", {"latents": torch.zeros(5, 2, 3, 5)}, {**GRID, "fps": 25.0})
    dataset = PrecomputedDataset(tmp_path, SOURCES)
    with pytest.raises(ValueError, match=r"latents\.latents of sample 0 has shape \[5, 2, 3, 4\] but of sample 1"):
        collate([dataset[0], dataset[1]])
    write_sample(tmp_path / "latents" / "b.safetensors", {"latents": torch.zeros(5, 2, 3, 4)}, GRID)
    with pytest.raises(ValueError, match="latents: sample 0 has 'fps', others of its batch do not"):
        collate([dataset[0], dataset[1]])


def test_a_dataset_may_not_be_smaller_than_a_batch():
    check_not_smaller(DummyDataset(length=2), 2)
    with pytest.raises(ValueError, match="has 2 samples, fewer than batch_size 3; use batch_size 2"):
        check_not_smaller(DummyDataset(length=2), 3)


def test_the_empty_caption_is_read(tmp_path):
    make(tmp_path, ["a"])
    write_sample(tmp_path / "empty_prompt.safetensors", {"video_prompt_embeds": torch.ones(1, 6)}, {})
    assert PrecomputedDataset(tmp_path, SOURCES).empty_prompt()["video_prompt_embeds"].shape == (1, 6)


@pytest.mark.parametrize(("generation", "audio_text"), [("2.0", None), ("2.3", 2048)])
def test_random_samples_have_the_real_keys_and_widths(generation, audio_text):
    folders = ["latents", "conditions", "audio_latents", "reference_latents", "video_masks", "audio_masks"]
    dataset = DummyDataset(folders, 64, 96, 17, 25.0, length=2, prompt_tokens=3, widths=WIDTHS[generation])
    item = dataset[1]
    assert list(item) == [*folders, "idx"]
    assert item["latents"]["latents"].shape == item["reference_latents"]["latents"].shape == (128, 3, 3, 2)
    assert {k: v for k, v in item["latents"].items() if k != "latents"} == {
        **GRID,
        "num_frames": 3,
        "width": 2,
        "fps": 25.0,
    }
    assert item["audio_latents"]["latents"].shape == (8, 17, 16)
    assert item["audio_latents"]["num_time_steps"] == 17
    assert item["video_masks"]["mask"].shape == (3, 3, 2)
    assert item["audio_masks"]["mask"].shape == (17,)
    widths = (
        {"video_prompt_embeds": 3840}
        if audio_text is None
        else {"video_prompt_embeds": 4096, "audio_prompt_embeds": 2048}
    )
    assert {name: rows.shape for name, rows in item["conditions"].items()} == {k: (3, w) for k, w in widths.items()}
    batch = collate([dataset[0], dataset[1]])
    assert batch["conditions"]["prompt_attention_mask"].all()
    again = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(again[0]["latents"]["latents"], dataset[0]["latents"]["latents"])
    assert not torch.equal(dataset[0]["latents"]["latents"], dataset[1]["latents"]["latents"])
    assert {name: len(rows) for name, rows in dataset.empty_prompt().items()} == dict.fromkeys(widths, 1)


def test_random_samples_have_possible_sizes():
    with pytest.raises(ValueError, match="`width` has to be divisible by 32 but is 100; use 96 or 128"):
        DummyDataset(width=100)
    with pytest.raises(ValueError, match=r"`num_frames` has to be 8 \* k \+ 1 but is 24; use 17 or 25"):
        DummyDataset(num_frames=24)
