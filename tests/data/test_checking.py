"""What was computed is counted, measured and decoded back, and shown on a sheet."""

import copy
import csv
import math

import numpy as np
import PIL.Image
import pytest
import torch

from ltx2_diffusers import AutoencoderKLLTX2Video, LTX2Pipeline
from ltx2_diffusers.data.checking import SHEET, DecodePlan, Decoder, captions_of, check_dataset, decode_dataset
from ltx2_diffusers.data.samples import write_sample
from ltx2_diffusers.data.sheet import Card, draw_sheet
from ltx2_diffusers.media.reading import probe, read_audio
from tests.golden_data import EQUAL_MODELS
from tests.media.clips import gradient_clip, tone
from tests.tiny_checkpoints import tiny_checkpoint

RATE = 25.0
FRAMES = 17


@pytest.fixture(scope="module")
def pipeline():
    components = dict.fromkeys(("transformer", "text_encoder", "tokenizer", "connectors"))
    return LTX2Pipeline.from_pretrained(tiny_checkpoint("2.0"), **components)


@pytest.fixture(scope="module")
def encoded(pipeline):
    """Latents of a clip of 64 x 128 pixels, of a picture, of a smaller clip, and of a tone."""
    clip = gradient_clip(FRAMES, 64, 128)
    sizes = {"clip": clip, "picture": clip[:1], "half": gradient_clip(FRAMES, 32, 64)}
    latents = {
        name: pipeline.encode_video(frames.movedim(1, 0)[None] * 2 - 1)[0].bfloat16().detach()
        for name, frames in sizes.items()
    }
    sound = pipeline.encode_audio(tone(FRAMES / RATE)[None], 24000)[0].detach()
    return {**latents, "sound": sound}


def write_latents(path, latents, fps=RATE):
    frames, height, width = latents.shape[1:]
    write_sample(path, {"latents": latents}, {"num_frames": frames, "height": height, "width": width, "fps": fps})


def write_sound(path, latents, duration=FRAMES / RATE):
    numbers = {"num_time_steps": latents.shape[1], "frequency_bins": latents.shape[2], "duration": duration}
    write_sample(path, {"latents": latents}, numbers)


@pytest.fixture
def dataset(tmp_path, encoded):
    """Three samples, two of them with sound, and their captions."""
    root = tmp_path / ".precomputed"
    for index, name in enumerate(("a", "sub/b", "c")):
        write_latents(root / "latents" / f"{name}.safetensors", encoded["clip"])
        rows = torch.zeros(3 + index, 16)
        write_sample(root / "conditions" / f"{name}.safetensors", {"video_prompt_embeds": rows}, {})
        if name != "c":
            write_sound(root / "audio_latents" / f"{name}.safetensors", encoded["sound"])
    (tmp_path / "sub").mkdir()
    for name in ("a.mp4", "sub/b.mp4", "c.mp4"):
        (tmp_path / name).touch()
    with (tmp_path / "dataset.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerows(
            [("media_path", "caption"), ("a.mp4", "A dog runs over wet sand."), ("sub/b.mp4", "Rain."), ("c.mp4", "A")]
        )
    return tmp_path


# --- numbers ---


def test_a_whole_dataset_is_counted(dataset):
    check = check_dataset(dataset)
    assert check == check_dataset(dataset / ".precomputed")
    assert (check.samples, check.is_sound) == (3, True)
    assert check.counts == {"latents": 3, "audio_latents": 2, "conditions": 3}
    assert check.sizes == {(128, 64, FRAMES): 3}
    assert check.rates == {RATE: 3}
    assert check.video_s == pytest.approx(3 * FRAMES / RATE)
    assert check.audio_s == pytest.approx(2 * FRAMES / RATE)
    assert check.tokens == (3, 4, 5)
    assert check.without_sound == ["c"]
    assert check.bytes["latents"] == sum(path.stat().st_size for path in dataset.rglob("latents/**/*.safetensors"))
    assert not (check.missing or check.orphans or check.damaged or check.mismatched or check.outliers)


def test_missing_partners_and_lone_files_are_named(dataset, encoded):
    root = dataset / ".precomputed"
    (root / "conditions" / "a.safetensors").unlink()
    write_latents(root / "reference_latents" / "c.safetensors", encoded["half"])
    write_sound(root / "audio_latents" / "alone.safetensors", encoded["sound"])
    check = check_dataset(dataset)
    assert check.missing == {"conditions": ["a"], "reference_latents": ["a", "sub/b"]}
    assert check.orphans == {"audio_latents": ["alone"]}
    assert (check.samples, check.is_sound) == (1, False)


def test_captions_that_were_never_made(dataset):
    for path in (dataset / ".precomputed" / "conditions").rglob("*.safetensors"):
        path.unlink()
    check = check_dataset(dataset)
    assert check.missing == {"conditions": ["a", "c", "sub/b"]}
    assert check.samples == 0


def test_damaged_files_are_named(dataset, encoded):
    root = dataset / ".precomputed"
    cut, wrong, nan = (root / "latents" / f"{name}.safetensors" for name in ("a", "c", "sub/b"))
    cut.write_bytes(cut.read_bytes()[:-10])
    write_sample(wrong, {"other": torch.zeros(1)}, {})
    bad = encoded["clip"].clone()
    bad[0, 0, 0, 0] = math.nan
    nan.unlink()
    torch.save({"latents": bad, "num_frames": 3, "height": 2, "width": 3, "fps": RATE}, nan.with_suffix(".pt"))
    check = check_dataset(dataset)
    assert list(check.damaged) == [cut, wrong, nan.with_suffix(".pt")]
    assert "has to hold 'latents' with 4 axes, but its shape is none" in check.damaged[wrong]
    assert "not finite (NaN or infinity)" in check.damaged[nan.with_suffix(".pt")]
    assert (check.samples, check.is_sound) == (0, False)


def changed_numbers(root, encoded):
    write_sample(
        root / "latents" / "a.safetensors",
        {"latents": encoded["clip"]},
        {"num_frames": 3, "height": 4, "width": 2, "fps": RATE},
    )


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (changed_numbers, "its numbers say [3, 4, 2] latent frames, rows and columns, its latents are [3, 2, 4]"),
        (lambda root, e: write_latents(root / "latents" / "a.safetensors", e["clip"], 0.0), "its frame rate is 0.0"),
        (
            lambda root, e: write_latents(root / "latents" / "a.safetensors", e["clip"], 50.0),
            "its sound lasts 0.68 s, its video 0.34 s",
        ),
        (
            lambda root, e: write_latents(root / "reference_latents" / "a.safetensors", e["picture"][:, :, :1, :3]),
            "its reference has 1 x 3 latents, no whole part of its own 2 x 4",
        ),
        (
            lambda root, e: write_latents(root / "reference_latents" / "a.safetensors", e["clip"], 12.5),
            "its reference lasts 1.36 s, its video 0.68 s",
        ),
        (
            lambda root, _: write_sample(root / "video_masks" / "a.safetensors", {"mask": torch.ones(2, 2, 3)}, {}),
            "its mask has shape [2, 2, 3], its latents [3, 2, 4]",
        ),
        (
            lambda root, _: write_sample(
                root / "conditions" / "a.safetensors", {"video_prompt_embeds": torch.zeros(0, 16)}, {}
            ),
            "its caption has no tokens",
        ),
    ],
    ids=["numbers", "no rate", "rate", "reference size", "reference rate", "mask", "empty caption"],
)
def test_what_does_not_fit_together(dataset, encoded, change, reason):
    change(dataset / ".precomputed", encoded)
    check = check_dataset(dataset)
    assert check.mismatched == {"a": reason}
    assert not check.is_sound


def test_a_smaller_reference_fits(dataset, encoded):
    assert encoded["half"].shape[1:] == (3, 1, 2)
    for name in ("a", "sub/b", "c"):
        write_latents(dataset / ".precomputed" / "reference_latents" / f"{name}.safetensors", encoded["half"])
    assert check_dataset(dataset).is_sound


def test_odd_latents_are_shown(tmp_path):
    noise = torch.Generator().manual_seed(0)
    for index in range(8):
        latents = torch.randn(16, 2, 4, 4, generator=noise)
        latents = {3: latents + 2, 5: latents * 3, 6: latents * 0.01}.get(index, latents)
        write_latents(tmp_path / "latents" / f"{index}.safetensors", latents)
    assert list(check_dataset(tmp_path).outliers) == ["3", "5", "6"]


def test_a_dataset_of_sound_alone(tmp_path, encoded):
    write_sound(tmp_path / "audio_latents" / "a.safetensors", encoded["sound"])
    write_sample(tmp_path / "conditions" / "a.safetensors", {"video_prompt_embeds": torch.zeros(3, 16)}, {})
    check = check_dataset(tmp_path)
    assert (check.samples, check.is_sound, check.video_s) == (1, True, 0.0)


def test_nothing_to_check(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no samples; run `ltx2 data process` first"):
        check_dataset(tmp_path)


# --- decoding ---


def test_clips_sounds_and_pictures_come_back(dataset, encoded, pipeline, tmp_path):
    root, out = dataset / ".precomputed", tmp_path / "out"
    write_latents(root / "latents" / "p.safetensors", encoded["picture"], 1.0)
    write_latents(root / "reference_latents" / "a.safetensors", encoded["clip"][..., :2])
    report = decode_dataset(Decoder(pipeline), DecodePlan.of(dataset, out), out / SHEET)
    files = sorted(path.relative_to(out).as_posix() for path in report.written)
    assert files == [
        "decoded_audio/a.wav",
        "decoded_audio/sub/b.wav",
        "decoded_reference_videos/a.mp4",
        "decoded_videos/a.mp4",
        "decoded_videos/c.mp4",
        "decoded_videos/p.png",
        "decoded_videos/sub/b.mp4",
    ]
    clip, silent = probe(out / "decoded_videos/a.mp4"), probe(out / "decoded_videos/c.mp4")
    assert (clip.num_frames, clip.height, clip.width, clip.frame_rate) == (FRAMES, 64, 128, 25)
    rate = pipeline.vocoder.config.output_sampling_rate
    assert (clip.sampling_rate, silent.sampling_rate) == (rate, None)
    own, _ = read_audio(out / "decoded_videos/a.mp4")
    alone, _ = read_audio(out / "decoded_audio/a.wav")
    shared = min(own.shape[-1], alone.shape[-1]) - 2048
    assert torch.nn.functional.cosine_similarity(own[0, 0, :shared], alone[0, 0, :shared], dim=0) > 0.9
    assert PIL.Image.open(out / "decoded_videos/p.png").size == (128, 64)
    assert probe(out / "decoded_reference_videos/a.mp4").width == 64
    assert report.sheet == out / SHEET


def test_what_comes_back_is_what_the_networks_decode(encoded, pipeline):
    latents = encoded["clip"][None].float()
    with torch.no_grad():
        video = pipeline.vae.decode(pipeline.vae.denormalize_latents(latents), return_dict=False)[0]
        spectrogram = pipeline.audio_vae.decode(
            pipeline.audio_vae.denormalize_latents(encoded["sound"][None]), return_dict=False
        )[0]
        waveform = pipeline.vocoder(spectrogram)[0]
    expected = ((video[0].movedim(0, -1) / 2 + 0.5).clamp(0, 1) * 255).round()
    for tiling in (True, False):
        frames = torch.cat(list(Decoder(pipeline, tiling).frames(encoded["clip"])))
        assert frames.shape == (FRAMES, 64, 128, 3)
        assert (frames - expected).abs().max() <= 1
    samples, rate = Decoder(pipeline).sound(encoded["sound"])
    assert rate == pipeline.vocoder.config.output_sampling_rate
    assert (samples - waveform).abs().max() <= EQUAL_MODELS


@pytest.mark.parametrize("tiling", [True, False])
def test_the_noise_of_a_decoder_is_seeded(encoded, pipeline, tiling):
    torch.manual_seed(0)
    stages = len(pipeline.vae.config.decoder_inject_noise)
    vae = AutoencoderKLLTX2Video.from_config({**pipeline.vae.config, "decoder_inject_noise": (True,) * stages}).eval()
    for name, scale in vae.named_parameters():
        if "per_channel_scale" in name:
            torch.nn.init.ones_(scale)
    noisy = copy.copy(pipeline)
    noisy.register_modules(vae=vae)
    one, same, other, drawn = (
        torch.cat(list(Decoder(noisy, tiling, seed).frames(encoded["clip"]))) for seed in (1, 1, 2, None)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert not torch.equal(one, drawn)


def test_one_folder_of_latents(dataset, pipeline, tmp_path):
    plan = DecodePlan.of(dataset / ".precomputed" / "latents", tmp_path / "clips")
    report = decode_dataset(Decoder(pipeline), plan, tmp_path / "clips" / SHEET)
    files = {path.relative_to(tmp_path).as_posix() for path in report.written}
    assert files == {"clips/a.mp4", "clips/sub/b.mp4", "clips/c.mp4", "decoded_audio/a.wav", "decoded_audio/sub/b.wav"}
    assert probe(tmp_path / "clips/a.mp4").sampling_rate


def test_sound_may_be_left_out_or_lie_elsewhere(dataset, tmp_path):
    latents = dataset / ".precomputed" / "latents"
    assert list(DecodePlan.of(latents, tmp_path / "out", with_audio=False).places) == ["latents"]
    (tmp_path / "elsewhere").mkdir()
    plan = DecodePlan.of(latents, tmp_path / "out", tmp_path / "elsewhere")
    assert plan.places["audio_latents"] == (tmp_path / "elsewhere", tmp_path / "decoded_audio")
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*none' of audio latents"):
        DecodePlan.of(latents, tmp_path / "out", tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="holds no latents; give a dataset"):
        DecodePlan.of(tmp_path / "elsewhere", tmp_path / "out")


def test_damaged_files_stop_nothing(dataset, pipeline, tmp_path):
    bad = dataset / ".precomputed" / "latents" / "a.safetensors"
    bad.write_bytes(b"x")
    out = tmp_path / "out"
    report = decode_dataset(Decoder(pipeline), DecodePlan.of(dataset, out), out / SHEET)
    assert list(report.damaged) == [bad]
    names = {path.name for path in report.written}
    assert names == {"a.wav", "b.wav", "b.mp4", "c.mp4"}


def test_some_samples_are_enough_for_a_look(dataset, pipeline, tmp_path):
    done = []
    plan = DecodePlan({"latents": (dataset / ".precomputed" / "latents", None)})
    report = decode_dataset(Decoder(pipeline), plan, tmp_path / SHEET, max_samples=2, on_sample=done.append)
    assert (report.written, done) == ([], ["a", "c"])
    with pytest.raises(ValueError, match="`max_samples` has to be a whole number of at least 1"):
        decode_dataset(Decoder(pipeline), plan, tmp_path / SHEET, max_samples=0)


# --- the sheet ---


def test_captions_belong_to_samples(dataset):
    assert captions_of(dataset) == {"a": "A dog runs over wet sand.", "sub/b": "Rain.", "c": "A"}


def test_the_sheet_shows_first_middle_and_last_frames(dataset, pipeline, tmp_path):
    plan = DecodePlan({"latents": (dataset / ".precomputed" / "latents", None)})
    report = decode_dataset(Decoder(pipeline), plan, tmp_path / SHEET, captions_of(dataset))
    sheet = np.asarray(PIL.Image.open(report.sheet)).astype(int)
    frames = torch.cat(list(Decoder(pipeline).frames(torch.zeros(128, 3, 2, 4))))
    assert frames.shape[0] == FRAMES
    assert sheet.shape[1] > 1600
    # Three cards in two columns: the last place is empty.
    bottom = sheet[-200:-30]
    assert bottom[:, :800].std() > 10
    assert bottom[:, -700:].std() < 1


def test_cards_are_drawn_where_they_belong(tmp_path):
    red, green, blue = (PIL.Image.new("RGB", (96, 64), colour) for colour in ("red", "lime", "blue"))
    cards = [Card("one", "words " * 200, "96x64x17", [red, green, blue]), Card("n" * 300, None, "x", [green])]
    sheet = np.asarray(PIL.Image.open(draw_sheet(tmp_path / "s.png", cards, "title")))
    places = {}
    for name, colour in (("red", (255, 0, 0)), ("lime", (0, 255, 0)), ("blue", (0, 0, 255))):
        rows, columns = np.nonzero((sheet == colour).all(-1))
        places[name] = (rows.min(), columns.min(), columns.max())
    assert places["red"][2] < places["lime"][1] < places["blue"][1]
    # The second card begins with green, too, right of the first one.
    assert places["lime"][2] > places["blue"][2]
    assert places["red"][0] == places["blue"][0]
