"""Clips of the world as latents and as files, and the trained networks as a checkpoint."""

import random

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.testing import assert_close

from examples.mini_world import networks
from examples.mini_world.assemble import assemble
from examples.mini_world.clips import Parts, Size, encoded, kept_pool, random_scenes
from examples.mini_world.drawing import draw
from examples.mini_world.scenes import NEW_SHAPE, SHAPES, triples
from examples.mini_world.train_flow import fresh_step, pipeline
from examples.mini_world.train_upsampler import scores as upsampler_scores
from examples.mini_world.write_clips import main, write_clips
from ltx2_diffusers import (
    AutoencoderKLLTX2Audio,
    AutoencoderKLLTX2Video,
    LTX2LatentUpsamplerModel,
    LTX2Pipeline,
    LTX2Vocoder,
)
from ltx2_diffusers.media.reading import probe
from ltx2_diffusers.training.components import UpsamplerStep, save_networks

SMALL = Size(17, 64, 64)


@pytest.fixture(scope="module")
def parts() -> Parts:
    """Networks that know nothing, of the sizes that are shipped."""
    torch.manual_seed(0)
    return Parts(
        AutoencoderKLLTX2Video(**networks.VIDEO_VAE).eval(),
        AutoencoderKLLTX2Audio(**networks.AUDIO_VAE).eval(),
        LTX2Vocoder(**networks.VOCODER).eval(),
    )


@pytest.mark.parametrize("size", [SMALL, Size(25, 64, 96)])
def test_latents_have_the_sizes_that_generation_makes(parts, size):
    video, audio = encoded(parts, random_scenes(size, 2), size)
    wanted = parts.sizes.audio_shape(2, size.num_frames / 24)
    assert list(video.shape) == [2, 128, (size.num_frames - 1) // 8 + 1, 2, size.width // 32]
    assert tuple(audio.shape) == tuple(wanted)


def test_latents_of_a_pool_are_made_once(parts, tmp_path, monkeypatch):
    pool = kept_pool(tmp_path / "pool.pt", parts, SMALL, 3, group=2)
    video, audio = encoded(parts, pool.scenes, SMALL)
    assert_close(pool.video.float(), video, atol=2e-3, rtol=2e-3)
    assert_close(pool.audio.float(), audio, atol=2e-3, rtol=2e-3)
    monkeypatch.setattr("examples.mini_world.clips.encoded", None)
    again = kept_pool(tmp_path / "pool.pt", parts, SMALL, 3)
    assert torch.equal(again.video, pool.video) and again.scenes == pool.scenes
    assert {(one.shape, one.colour, one.background) for one in pool.scenes} <= set(triples("train"))


def test_batches_hold_rows_with_their_captions(parts, tmp_path):
    pool = kept_pool(tmp_path / "pool.pt", parts, SMALL, 3)
    batch = pool.batch([2, 0], random.Random(0), without_text=0.0)
    assert torch.equal(batch["latents"]["latents"], pool.video[[2, 0]].float())
    assert torch.equal(batch["audio_latents"]["latents"], pool.audio[[2, 0]].float())
    for text, row in zip(batch["prompts"], (2, 0)):
        assert f"{pool.scenes[row].colour} {pool.scenes[row].shape}" in text.lower()
    assert pool.batch([1], random.Random(0), without_text=1.0)["prompts"] == [""]


def test_a_clip_is_written_with_its_caption_and_its_outline(tmp_path):
    write_clips(tmp_path, 2, [NEW_SHAPE], "train", (9, 64, 64), with_outline=True, seed=3)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {f"{number:04}{end}" for number in (0, 1) for end in (".mp4", ".txt", "_reference.mp4")}
    assert all(NEW_SHAPE in (tmp_path / f"{number:04}.txt").read_text() for number in (0, 1))
    rates = [probe(tmp_path / name).sampling_rate for name in ("0000.mp4", "0000_reference.mp4")]
    assert rates == [48000, None]
    again = tmp_path / "again"
    write_clips(again, 2, [NEW_SHAPE], "train", (9, 64, 64), with_outline=False, seed=3)
    assert (again / "0001.mp4").read_bytes() == (tmp_path / "0001.mp4").read_bytes()


def test_the_tokenizer_has_a_token_for_every_word_of_the_world():
    tokenizer = networks.tokenizer()
    for text in ("A small red circle bounces on the floor on a blue background.", f"a white {NEW_SHAPE} gets smaller"):
        # Besides the token of the beginning.
        assert len(tokenizer(text).input_ids) == 1 + len(text.split())
    assert tokenizer.decode(tokenizer("zebra").input_ids, skip_special_tokens=True) == "zebra"
    assert tokenizer.model_max_length == networks.TEXT_POSITIONS
    assert {*SHAPES} <= {token.strip("▁") for token in tokenizer.get_vocab()}


@pytest.fixture(scope="module")
def trained(parts, tmp_path_factory):
    """A folder as the trainings leave it."""
    out = tmp_path_factory.mktemp("out")
    for name in ("vae", "audio_vae", "vocoder"):
        getattr(parts, name).save_pretrained(out / name)
    save_networks(fresh_step(parts.sizes), out / "networks")
    upsampler = UpsamplerStep(LTX2LatentUpsamplerModel(**networks.LATENT_UPSAMPLER), parts.vae)
    save_networks(upsampler, out / "networks_upsampler")
    save_file({"transformer.a.lora_A.weight": torch.ones(2, 2)}, out / "distilled_lora.safetensors", {"alpha": "2"})
    return out


def test_trained_networks_become_a_checkpoint(parts, trained, tmp_path):
    assemble(trained, tmp_path / "mini")
    with safe_open(tmp_path / "mini" / "distilled_lora.safetensors", "pt") as adapter:
        assert adapter.metadata() == {"alpha": "2"}
        assert adapter.get_tensor("transformer.a.lora_A.weight").dtype == torch.bfloat16
    pipe = LTX2Pipeline.from_pretrained(tmp_path / "mini")
    assert pipe.scheduler.config.base_shift == pipe.scheduler.config.max_shift == networks.SHIFT
    for name in ("vae", "audio_vae", "vocoder"):
        for own, loaded in zip(
            getattr(parts, name).state_dict().values(), getattr(pipe, name).state_dict().values(), strict=True
        ):
            assert torch.equal(own.bfloat16().float(), loaded)
    call = {"height": 64, "width": 64, "num_frames": 9, "num_inference_steps": 2, "output_type": "latent"}
    made = pipe("a red circle", **call, generator=torch.Generator().manual_seed(0))
    assert made.frames.shape == (1, 128, 2, 2, 2)


def test_what_is_trained_generates_as_the_checkpoint_will(parts):
    pipe = pipeline(fresh_step(parts.sizes), parts)
    made = pipe("a red circle", height=64, width=64, num_frames=9, num_inference_steps=1, output_type="latent")
    assert made.frames.shape == (1, 128, 2, 2, 2) and made.frames.isfinite().all()


def test_an_upsampler_is_scored_by_what_is_seen(parts):
    step = UpsamplerStep(LTX2LatentUpsamplerModel(**networks.LATENT_UPSAMPLER), parts.vae)
    found = upsampler_scores(step, draw(random_scenes(Size(9, 64, 64), 2), 9, 64, 64))
    assert 0 < found["psnr"] < 30


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--spread", "5", "lie in"),
        ("--spread", "nan", "lie in"),
        ("--count", "0", "at least 1"),
        ("--size", "-8", "at"),
    ],
)
def test_what_clips_cannot_be_is_refused(option, value, said, tmp_path, monkeypatch, capsys):
    values = [value] * 3 if option == "--size" else [value]
    monkeypatch.setattr("sys.argv", ["write_clips", str(tmp_path / "clips"), option, *values])
    with pytest.raises(SystemExit):
        main()
    error = capsys.readouterr().err
    assert option in error and said in error
    assert not (tmp_path / "clips").exists()
