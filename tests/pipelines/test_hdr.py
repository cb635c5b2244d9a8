"""`LTX2HDRPipeline` computes what is recorded of diffusers' pipeline, and what that pipeline computes."""

import inspect
import json
from functools import cache
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers import LTX2HDRPipeline as DiffusersOriginal
from diffusers.configuration_utils import FrozenDict
from diffusers.pipelines.ltx2.pipeline_ltx2_hdr_lora import LTX2HDRReferenceCondition as DiffusersReference

from ltx2_diffusers import LTX2AVTransformer3DModel, LTX2HDRPipeline, LTX2HDRReferenceCondition
from ltx2_diffusers.media.hdr import curves
from ltx2_diffusers.media.hdr.processor import LTX2VideoHDRProcessor
from ltx2_diffusers.media.hdr.writing import HDRFile
from ltx2_diffusers.media.preprocess import fit_inside, padded_inside
from ltx2_diffusers.media.reading import probe
from ltx2_diffusers.prompts import Prompts
from tests.golden_data import EQUAL_PIPELINES, load_json, load_metadata, load_tensors
from tests.media.test_hdr import decoded_png
from tests.pipelines.recipes import add_lora, no_computation
from tests.pipelines.tiny import PROMPT, load, ours, seeded, sibling, with_token_sigmas

# Of the README, and on top what values of up to 7 are rounded to on the way.
CALLS = {"atol": 2e-5, "rtol": 5e-6}
DiffusersPipeline = with_token_sigmas(DiffusersOriginal)
BASE = {
    "prompt": PROMPT,
    "height": 64,
    "width": 64,
    "num_frames": 9,
    "frame_rate": 24.0,
    "num_inference_steps": 2,
    "max_sequence_length": 64,
    "output_type": "latent",
    "use_cross_timestep": False,
}
# 2.0 has no spatio-temporal guidance in diffusers.
GUIDED = {"guidance_scale": 3.0, "modality_scale": 2.0, "guidance_rescale": 0.7}


def picture(height: int, width: int, shift: int) -> PIL.Image.Image:
    y, x, k = np.ogrid[:height, :width, :3]
    return PIL.Image.fromarray(((3 * y + 5 * x + 40 * k + shift) % 256).astype(np.uint8))


def clip(height: int = 64, width: int = 64, count: int = 9) -> list[PIL.Image.Image]:
    return [picture(height, width, 7 * index) for index in range(count)]


# --- what is recorded ---


class MeanVideoVAE(torch.nn.Module):
    """The video autoencoder that the numbers were recorded with: means of cells."""

    spatial_compression_ratio, temporal_compression_ratio, min_latent_side = 32, 8, 1
    config = FrozenDict(scaling_factor=1.0, timestep_conditioning=False)
    dtype, device = torch.float32, torch.device("cpu")

    def __init__(self):
        super().__init__()
        setup = load_tensors("dfr_hdr/setup.safetensors")
        self.mean, self.std = (setup[f"vae.latents_{name}"].view(1, -1, 1, 1, 1) for name in ("mean", "std"))

    def encode(self, pixels: torch.Tensor) -> SimpleNamespace:
        cells = pixels.unflatten(4, (-1, 32)).unflatten(3, (-1, 32)).mean((4, 6))
        groups = [cells[:, :, :1], *cells[:, :, 1:].split(8, dim=2)]
        colours = torch.stack([group.mean(2) for group in groups], dim=2)
        channel = torch.arange(12).view(1, -1, 1, 1, 1)
        latents = colours[:, [c % 3 for c in range(12)]] * (1 + 0.1 * channel) + 0.05 * channel
        return SimpleNamespace(latent_dist=SimpleNamespace(mode=lambda: latents))

    def normalize_latents(self, latents: torch.Tensor) -> torch.Tensor:
        return (latents - self.mean) / self.std

    def denormalize_latents(self, latents: torch.Tensor) -> torch.Tensor:
        return latents * self.std + self.mean


class AudioSizes(torch.nn.Module):
    """The audio autoencoder of the same, of which only sizes are read."""

    config = FrozenDict(sample_rate=16000, mel_hop_length=160, mel_bins=20, latent_channels=2)
    mel_compression_ratio = temporal_compression_ratio = 4
    dtype, device = torch.float32, torch.device("cpu")


@cache
def recorded_pipeline() -> LTX2HDRPipeline:
    transformer = LTX2AVTransformer3DModel.from_config(load_json("transformer/ltx25/config.json")).eval()
    transformer.load_state_dict(load_tensors("transformer/ltx25/diffusers.safetensors"))
    pipe = LTX2HDRPipeline(
        FlowMatchEulerDiscreteScheduler(), MeanVideoVAE(), AudioSizes(), None, None, None, transformer, None
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.usefixtures("golden_sinusoid")
@pytest.mark.parametrize("name", ["hdr_call", "hdr_call_downscale2"])
def test_recorded_calls(name):
    recorded, said = load_tensors(f"dfr_hdr/{name}.safetensors"), load_metadata(f"dfr_hdr/{name}.safetensors")
    embeds = {key: recorded[key] for key in ("connector_video_embeds", "connector_audio_embeds")}
    reference = LTX2HDRReferenceCondition(clip(64, 96), json.loads(said["reference_strength"]))
    call = {**json.loads(said["call"]), **embeds, "output_type": "latent", "sampler": "euler"}
    output = recorded_pipeline()(reference_conditions=reference, **call, generator=seeded(json.loads(said["seed"])))
    assert output.audio is None
    torch.testing.assert_close(output.frames, recorded["video"], **CALLS)
    # The noise that the network hears matters.
    silent = recorded_pipeline()(
        reference_conditions=reference, **call, use_audio_stream=False, generator=seeded(json.loads(said["seed"]))
    )
    assert (silent.frames - recorded["video"]).abs().max() > 1e-2


@pytest.mark.parametrize("index", range(4))
def test_recorded_frames_fitted_inside(index):
    recorded = load_tensors("dfr_hdr/hdr.safetensors")
    given, expected = recorded[f"resize.{index}.in"], recorded[f"resize.{index}.out"]
    fitted = padded_inside(given[0].transpose(0, 1), *expected.shape[-2:]).transpose(0, 1)[None]
    torch.testing.assert_close(fitted, expected, rtol=0, atol=1e-6)


def test_recorded_processing():
    """diffusers first rounds the size of references to multiples of 32, which only the inherited method does here."""
    recorded, processor = load_tensors("dfr_hdr/hdr.safetensors"), LTX2VideoHDRProcessor()
    light = processor.postprocess_hdr_video(recorded["post.in"], "pt")
    torch.testing.assert_close(light, recorded["post.out"], rtol=1e-6, atol=1e-6)
    assert np.array_equal(processor.postprocess_hdr_video(recorded["post.in"]), light.numpy())
    pictures = [picture(45, 70, shift) for shift in (0, 10)]
    rounded = padded_inside(processor.preprocess_video(pictures)[0].transpose(0, 1), 32, 64).transpose(0, 1)[None]
    expected = recorded["preprocess.pictures_45x70_to_32x64"]
    torch.testing.assert_close(rounded, expected, rtol=0, atol=1e-6)
    exact = processor.preprocess_reference_video_hdr(pictures, 32, 64)
    assert exact.shape == expected.shape and (exact - expected).abs().max() > 0.1


def test_a_reference_keeps_its_size():
    """1080 rows are no multiple of 32: they are continued, not squeezed."""
    frames = np.random.default_rng(0).integers(0, 256, (2, 45, 70, 3), dtype=np.uint8)
    fitted = fit_inside(torch.from_numpy(frames), 64, 96)[0].movedim(0, -1)
    encoded = LTX2HDRReferenceCondition(frames).fitted(torch.from_numpy(frames), [0, 1], 64, 96)[0].movedim(0, -1)
    assert torch.equal(encoded, fitted / 127.5 - 1)
    assert torch.equal(fitted[:, :45, :70], torch.from_numpy(frames).float())
    assert torch.equal(fitted[:, 45:, :70], fitted[:, range(43, 24, -1), :70])
    assert torch.equal(fitted[:, :, 70:], fitted[:, :, range(68, 42, -1)])
    # The processor does the same to what diffusers' takes.
    video = LTX2VideoHDRProcessor().preprocess_reference_video_hdr(list(map(PIL.Image.fromarray, frames)), 64, 96)
    torch.testing.assert_close((video[0].movedim(0, -1) + 1) * 127.5, fitted, rtol=0, atol=1e-3)


# --- parity with diffusers ---


@cache
def hdr(name: str = "2.0") -> LTX2HDRPipeline:
    return sibling(name, LTX2HDRPipeline)


def compare(references, name: str = "2.0", **kwargs) -> float:
    outputs = [
        sibling(name, pipeline)(
            reference_conditions=[reference(*one) for one in references], **BASE | kwargs, generator=seeded(1)
        )
        for pipeline, reference in (
            (LTX2HDRPipeline, LTX2HDRReferenceCondition),
            (DiffusersPipeline, DiffusersReference),
        )
    ]
    assert [output.audio for output in outputs] == [None, None]
    # A step of the signal is up to 500 times as large in light.
    frames = [curves.logc3(o.frames) if kwargs.get("output_type") == "pt" else o.frames for o in outputs]
    assert frames[0].shape == frames[1].shape
    return (frames[0] - frames[1]).abs().max().item()


@pytest.mark.parametrize(
    ("name", "references", "arguments"),
    [
        ("2.0", [(clip(),)], {}),
        ("2.0", [(clip(), 0.6)], {"sigmas": [0.9, 0.4]}),
        ("2.0", [(clip(),), (clip(64, 32), 0.5)], GUIDED),
        ("2.0", [(clip(32, 96),)], {"output_type": "pt"}),
        ("2.0", [(clip(32, 32),)], {"reference_downscale_factor": 2, "prompt": [PROMPT, "Waves."]}),
        ("2.0", [], {"latents": torch.ones(1, 128, 2, 2, 2), "noise_scale": 0.5}),
        ("2.3", [(clip(),)], {**GUIDED, "stg_scale": 1.0, "spatio_temporal_guidance_blocks": [1]}),
        ("2.3", [(clip(),)], {"use_cross_timestep": True}),
    ],
    ids=["one", "weak", "two, guided", "decoded", "half", "latents", "all guidance", "cross timestep"],
)
def test_same_video_as_diffusers(name, references, arguments):
    assert compare(references, name, **arguments) <= EQUAL_PIPELINES


def test_components_are_those_of_diffusers_in_their_order():
    theirs, own = (list(inspect.signature(one).parameters) for one in (DiffusersOriginal, LTX2HDRPipeline))
    assert own[: len(theirs)] == theirs


# --- what diffusers has not, or has wrong ---


def embeds(pipe: LTX2HDRPipeline, *prompts: str) -> dict[str, torch.Tensor]:
    """What the connectors make of prompts, as the file of an HDR IC-LoRA holds it."""
    encoder = pipe.prompt_reader.encoder
    states = encoder.states(Prompts(list(prompts), max_sequence_length=64), False)
    context, _ = encoder.contexts(states, 64)
    return {"connector_video_embeds": context.video, "connector_audio_embeds": context.audio}


@torch.no_grad()
def generate(pipe: LTX2HDRPipeline | None = None, **arguments):
    pipe = hdr() if pipe is None else pipe
    call = {**BASE, "reference_conditions": LTX2HDRReferenceCondition(clip()), "generator": seeded(3), **arguments}
    if call["prompt"] is None:
        del call["max_sequence_length"]
    return pipe(**call)


def without_prompt(**arguments):
    return generate(**{"prompt": None, **arguments})


def test_embeds_stand_for_a_prompt():
    expected = generate().frames
    assert torch.equal(without_prompt(**embeds(hdr(), PROMPT)).frames, expected)
    watched = without_prompt(
        **embeds(hdr(), PROMPT),
        callback_on_step_end=lambda _pipe, _step, _time, seen: assert_none(seen.pop("prompt_embeds")),
        callback_on_step_end_tensor_inputs=["latents", "prompt_embeds"],
    )
    assert torch.equal(watched.frames, expected)


def assert_none(value):
    assert value is None


def test_embeds_are_repeated_and_guide():
    """In diffusers neither works."""
    guided = {**GUIDED, "stg_scale": 1.0, "spatio_temporal_guidance_blocks": [1]}
    expected = generate(num_videos_per_prompt=2, negative_prompt="blurry", generator=seeded(1, 2), **guided).frames
    both = embeds(hdr(), "blurry", PROMPT)
    made = without_prompt(**both, num_videos_per_prompt=2, generator=seeded(1, 2), **guided).frames
    assert made.shape[0] == 2 and (made - expected).abs().max() <= EQUAL_PIPELINES


def test_without_the_audio_stream_no_noise_is_heard():
    """The network sees one stream, as in the original code."""
    seen = []
    handle = hdr().transformer.register_forward_pre_hook(
        lambda _module, _args, inputs: seen.append(inputs["audio_hidden_states"]), with_kwargs=True
    )
    heard, silent = generate().frames, generate(use_audio_stream=False).frames
    handle.remove()
    assert len(seen) == 4 and torch.equal(seen[0], seen[1]) and seen[2:] == [None, None]
    assert (heard - silent).abs().max() > 1e-4
    video = {"connector_video_embeds": embeds(hdr(), PROMPT)["connector_video_embeds"]}
    assert torch.equal(without_prompt(**video, use_audio_stream=False).frames, silent)


@pytest.mark.parametrize("sampler", ["euler_ancestral", "res_2s", "gradient_estimating"])
def test_the_noise_stays_as_it_is_in_every_sampler(sampler):
    seen = []
    handle = hdr().transformer.register_forward_pre_hook(
        lambda _module, _args, inputs: seen.append(inputs["audio_hidden_states"]), with_kwargs=True
    )
    output = generate(sampler=sampler)
    handle.remove()
    assert len(seen) >= 2 and all(torch.equal(one, seen[0]) for one in seen)
    assert output.frames.isfinite().all()


def test_no_audio_autoencoder_and_no_vocoder_are_needed():
    small = LTX2HDRPipeline.from_pipe(hdr(), audio_vae=None, vocoder=None)
    small.set_progress_bar_config(disable=True)
    assert torch.equal(generate(small).frames, generate().frames)


def test_a_saved_pipeline_loads(tmp_path):
    small = LTX2HDRPipeline.from_pipe(hdr(), audio_vae=None, vocoder=None)
    small.save_pretrained(tmp_path)
    again = LTX2HDRPipeline.from_pretrained(tmp_path, hdr_transform="acescct", dtype=torch.float32)
    again.set_progress_bar_config(disable=True)
    assert (again.audio_vae, again.vocoder, again.hdr_transform) == (None, None, "acescct")
    assert json.loads((tmp_path / "model_index.json").read_text())["_class_name"] == "LTX2HDRPipeline"
    assert (generate(again).frames - generate().frames).abs().max() <= EQUAL_PIPELINES


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [({}, "logc3"), ({"hdr_transform": "true"}, "logc3"), ({"hdr_transform": "acescct"}, "acescct")]
    + [({"use_hdr_transform": "True"}, "logc3"), ({"use_hdr_transform": "false"}, "logc3")],
)
def test_the_curve_is_read_from_the_lora(tmp_path, metadata, expected):
    pipe = load("2.0", LTX2HDRPipeline)
    add_lora(pipe, tmp_path, "hdr", reference_downscale_factor="2", **metadata)
    assert pipe.hdr_transform == pipe.hdr_video_processor.config.hdr_transform == expected
    seen = []
    pipe.transformer.register_forward_pre_hook(
        lambda _module, _args, inputs: seen.append(inputs["hidden_states"].shape[1]), with_kwargs=True
    )
    generate(pipe)
    # 2 frames of 2 x 2 latents, and those of a reference of half the size.
    assert seen == [8 + 2] * 2


@pytest.mark.parametrize(
    ("curves_told", "of_the_pipeline", "message"),
    [
        (["slog3"], None, "`hdr_transform` has to be one of 'logc3', 'acescct' but is 'slog3'"),
        (
            ["acescct"],
            "logc3",
            "`hdr_transform` of the pipeline is 'logc3', but the active LoRA was trained with 'acescct'",
        ),
        (["acescct", "logc3"], None, "the active LoRAs make signals of different curves"),
    ],
)
def test_curves_that_contradict_each_other_are_refused(tmp_path, curves_told, of_the_pipeline, message):
    pipe = load("2.0", LTX2HDRPipeline, hdr_transform=of_the_pipeline)
    for index, curve in enumerate(curves_told):
        add_lora(pipe, tmp_path, f"hdr_{index}", hdr_transform=curve)
    pipe.set_adapters([f"hdr_{index}" for index in range(len(curves_told))])
    with no_computation(pipe), pytest.raises(ValueError, match=message):
        generate(pipe)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"output_type": "pil"}, "`output_type` has to be one of 'pt', 'np', 'latent'"),
        ({"save_path": "clip.avi", "output_type": "pt"}, "is written as .mp4 or .mov or .exr or .png"),
        ({"save_path": "clip.mp4"}, 'output_type="latent" makes no frames'),
        ({"reference_conditions": None, "reference_downscale_factor": 2}, "there are no `reference_conditions`"),
        ({"use_audio_stream": False, "modality_scale": 2.0}, "there is no audio stream"),
        ({"height": 65}, "`height` has to be divisible by 32"),
        ({"connector_video_embeds": torch.ones(1, 4, 8)}, "without `connector_audio_embeds`"),
        ("beside a prompt", "`connector_video_embeds` takes its place"),
        ("no videos", "`num_videos_per_prompt` has to be a whole number"),
        ("wrong width", r"`connector_audio_embeds` has shape \(1, 64, 3\), but this transformer reads"),
        ("odd rows", "has 1 rows, but a guided call reads two per prompt"),
        ("other rows", "must have as many rows and positions"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_errors_come_first(arguments, message):
    right = embeds(hdr(), PROMPT)
    audio = right["connector_audio_embeds"]
    named = {
        "beside a prompt": right,
        "wrong width": {"prompt": None, **right, "connector_audio_embeds": audio[..., :3]},
        "no videos": {"prompt": None, **right, "num_videos_per_prompt": 0},
        "odd rows": {"prompt": None, **right, "guidance_scale": 2.0},
        "other rows": {"prompt": None, **right, "connector_audio_embeds": audio.repeat(2, 1, 1)},
    }
    with no_computation(hdr()), pytest.raises(ValueError, match=message):
        generate(**(named[arguments] if isinstance(arguments, str) else arguments))


# --- files ---


def test_a_file_is_that_of_saving_the_output(tmp_path):
    pipe = hdr()
    output = generate(output_type="pt")
    assert output.frames.dtype == torch.float32 and output.frames.shape == (1, 9, 64, 64, 3)
    output.save(tmp_path / "saved.mp4", preset="ultrafast", crf=10)
    pipe.vae.enable_streaming(4)
    try:
        written = generate(output_type="pt", save_path=HDRFile(tmp_path / "written.png", signal="linear"))
    finally:
        pipe.vae.use_streaming = None
    assert (written.frames, written.info["path"]) == (None, str(tmp_path / "written.png"))
    codes = [decoded_png(tmp_path / f"written_{index:05d}.png") for index in range(9)]
    expected = output.frames[0].clamp(0, 1) * 65535
    assert (torch.from_numpy(np.stack(codes).astype(np.int64)) - expected).abs().max() <= 1.5
    assert probe(tmp_path / "saved.mp4").frame_rate == 24


def test_a_batch_has_a_file_for_each_clip(tmp_path):
    output = generate(output_type="np", prompt=[PROMPT, "Waves."])
    names = output.save(tmp_path / "clip.png")
    assert names == [str(tmp_path / f"clip-{index}.png") for index in range(2)]
    assert len(list(tmp_path.iterdir())) == 18


def test_a_video_of_standard_range_takes_no_hdr_file(tmp_path):
    call = {key: BASE[key] for key in ("prompt", "height", "width", "num_frames", "max_sequence_length")}
    with no_computation(ours()), pytest.raises(ValueError, match="given as HDRFile, but the video is one of standard"):
        ours()(**call, save_path=HDRFile(tmp_path / "clip.mp4"))


@pytest.mark.gpu
def test_light_is_made_and_written_on_a_gpu(tmp_path):
    pipe = load("2.0", LTX2HDRPipeline).to("cuda")
    light = generate(pipe, output_type="pt").frames
    assert light.device.type == "cuda" and light.dtype == torch.float32
    pipe.vae.enable_streaming(4)
    written = generate(pipe, output_type="pt", save_path=tmp_path / "clip.png")
    assert written.info["path"] == str(tmp_path / "clip.png")
    codes = np.stack([decoded_png(tmp_path / f"clip_{index:05d}.png") for index in range(9)]) / 65535
    assert np.abs(codes - curves.logc3(light[0].clamp(min=0)).cpu().numpy()).max() <= EQUAL_PIPELINES
    expected = curves.logc3(generate(output_type="pt").frames)
    assert (curves.logc3(light).cpu() - expected).abs().max() <= 1e-3
