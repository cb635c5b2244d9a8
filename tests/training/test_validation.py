"""Validation: which pipelines make which samples, the same as anybody would make with them, and nothing of it in training."""

import os
import random
import socket
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from peft import LoraConfig

from ltx2_diffusers import LTX2Pipeline, LTX2Scheduler
from ltx2_diffusers.media import preprocess
from ltx2_diffusers.media.reading import probe, read_video
from ltx2_diffusers.media.writing import write_audio, write_video
from ltx2_diffusers.pipelines.plan import Size, plan_clip
from ltx2_diffusers.training.config import TrainingConfig
from ltx2_diffusers.training.config_files import save_config
from ltx2_diffusers.training.validation import Validator, offloaded_states, undisturbed
from ltx2_diffusers.training.validation.files import contact_sheet, side_by_side
from ltx2_diffusers.training.validation.requests import sample_calls
from ltx2_diffusers.training.validation.validator import _share
from tests.golden_data import load_json
from tests.tiny_checkpoints import tiny_checkpoint
from tests.training import tiny

DIMS = [64, 64, 17]
RATE = 25.0


@pytest.fixture(scope="module")
def pipeline():
    return LTX2Pipeline.from_pretrained(tiny_checkpoint("2.0"))


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    """A clip with sound, a picture, a recording and a mask of its left half."""
    folder = tmp_path_factory.mktemp("media")
    pixels = torch.randint(0, 256, (33, 96, 128, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    sound = torch.rand(2, 24000 * 2, generator=torch.Generator().manual_seed(1)) - 0.5
    write_video(folder / "clip.mp4", pixels, RATE, sound, 24000)
    write_audio(folder / "sound.wav", sound, 24000)
    PIL.Image.fromarray(pixels[0].numpy()).save(folder / "picture.png")
    mask = np.zeros((64, 64), np.uint8)
    mask[:, :32] = 255
    PIL.Image.fromarray(mask).save(folder / "mask.png")
    return folder


def settings(tmp_path, **validation):
    return TrainingConfig.model_validate(
        {
            "model": {"model_path": str(tiny_checkpoint("2.0"))},
            "lora": {},
            "data": {"preprocessed_data_root": str(tmp_path)},
            "tracking": {"progress_bar": False},
            "validation": {"video_dims": DIMS, "frame_rate": RATE, "inference_steps": 2, **validation},
        }
    )


def one(tmp_path, *conditions, **validation):
    return settings(tmp_path, samples=[{"prompt": "a cat", "conditions": list(conditions)}], **validation)


def models_of(pipeline):
    own = LTX2Pipeline.from_pipe(pipeline)
    return SimpleNamespace(
        pipeline=own, transformer=own.transformer, connectors=own.connectors, trained={}, generation="2.0"
    )


def call_of(config, pipeline, generation="2.0"):
    return sample_calls(config.validation, pipeline, generation)[0]


def test_audio_is_as_long_as_the_reference_makes_it(pipeline):
    for case in load_json("training/audio_lengths.json"):
        shape = pipeline.sizes.audio_shape(1, case["frames"] / case["fps"])
        assert shape.frames == case["audio_latent_frames"], case


def test_pictures_are_cropped_where_the_reference_crops_them(monkeypatch):
    """A side that is no whole number of pixels is rounded up here and down there, which leaves the place of the crop."""
    scaled = []
    interpolate = preprocess.functional.interpolate
    monkeypatch.setattr(
        preprocess.functional, "interpolate", lambda *a, **k: scaled.append(interpolate(*a, **k)) or scaled[-1]
    )
    for case in load_json("training/validation_resize.json"):
        (columns, rows), (width, height) = case["image"], case["target"]
        pixels = torch.arange(rows * columns).remainder(251).reshape(rows, columns, 1).expand(-1, -1, 3)
        cropped = preprocess.fit_cover(pixels, height, width)[0, :, 0]
        whole, top, left = scaled.pop()[0], case["crop_top"], case["crop_left"]
        assert torch.equal(cropped, whole[:, top : top + height, left : left + width]), case
        for ours, reference in zip((whole.shape[2], whole.shape[1]), case["resized"]):
            assert ours - reference in (0, 1), case


def test_noise_levels_are_those_of_the_reference():
    for steps, expected in load_json("training/validation_sigmas.json").items():
        scheduler = LTX2Scheduler()
        scheduler.set_timesteps(int(steps))
        torch.testing.assert_close(scheduler.sigmas, torch.tensor(expected), atol=1e-6, rtol=0)


def test_a_sample_is_what_the_pipeline_makes_of_the_text(pipeline, tmp_path):
    config = settings(tmp_path, prompts=["a cat"], inference_steps=2, guidance_scale=3.0, seed=5)
    models = models_of(pipeline)
    validator = Validator(config, models)
    assert models.pipeline.text_encoder is None
    assert pipeline.text_encoder is not None
    (sample,) = validator.sample(3, tmp_path / "samples", Accelerator(cpu=True))
    assert (sample.path, sample.prompt, sample.seed) == (tmp_path / "samples" / "step_000003_1.mp4", "a cat", 5)
    said = config.validation
    output = pipeline(
        prompt="a cat",
        negative_prompt=said.negative_prompt,
        height=64,
        width=64,
        num_frames=17,
        frame_rate=RATE,
        num_inference_steps=2,
        guidance_scale=3.0,
        audio_guidance_scale=3.0,
        stg_scale=1.0,
        audio_stg_scale=1.0,
        modality_scale=1.0,
        audio_modality_scale=1.0,
        guidance_rescale=0.0,
        audio_guidance_rescale=0.0,
        generator=torch.Generator().manual_seed(5),
        output_type="uint8",
    )
    output.save(tmp_path / "expected.mp4")
    assert sample.path.read_bytes() == (tmp_path / "expected.mp4").read_bytes()


def test_guidance_is_said_in_full(pipeline, tmp_path):
    config = settings(tmp_path, prompts=["a"], guidance_scale=2.0, stg_scale=0.5, stg_mode="stg_v", stg_blocks=None)
    call = call_of(config, pipeline)
    layers = pipeline.transformer.config.num_layers
    assert call.arguments == {
        "guidance_scale": 2.0,
        "stg_scale": 0.5,
        "modality_scale": 1.0,
        "guidance_rescale": 0.0,
        "audio_guidance_scale": 2.0,
        "audio_stg_scale": 0.0,
        "audio_modality_scale": 1.0,
        "audio_guidance_rescale": 0.0,
        "spatio_temporal_guidance_blocks": list(range(layers)),
        "height": 64,
        "width": 64,
        "num_frames": 17,
        "frame_rate": RATE,
        "num_inference_steps": 2,
    }
    newest = call_of(settings(tmp_path, prompts=["a"]), pipeline, "2.3").arguments
    assert (newest["guidance_scale"], newest["audio_guidance_scale"], newest["modality_scale"]) == (3.0, 7.0, 3.0)
    with pytest.raises(ValueError, match=r"stg_blocks has the block 29.*0 to 1"):
        call_of(settings(tmp_path, prompts=["a"], stg_blocks=[29]), pipeline)


def test_every_prompt_makes_its_samples_with_seeds_of_their_own(pipeline, tmp_path):
    calls = sample_calls(settings(tmp_path, prompts=["a", "b"], videos_per_prompt=2).validation, pipeline, "2.0")
    assert [(call.prompt, call.seed) for call in calls] == [("a", 42), ("a", 43), ("b", 42), ("b", 43)]


def first_frame(media):
    return {"type": "first_frame", "image_or_video": str(media / "picture.png")}


def clip(media, kind, **more):
    return {"type": kind, "video": str(media / "clip.mp4"), **more}


def sound(media, kind, **more):
    return {"type": kind, "audio": str(media / "sound.wav"), **more}


CASES = {
    "text": ("LTX2Pipeline", []),
    "first frame": ("LTX2ImageToVideoPipeline", [first_frame]),
    "prefix": ("LTX2ConditionPipeline", [lambda m: clip(m, "prefix", num_frames=9)]),
    "suffix": ("LTX2ConditionPipeline", [lambda m: clip(m, "suffix", num_frames=8)]),
    "both ends": (
        "LTX2ConditionPipeline",
        [lambda m: clip(m, "prefix", num_frames=1), lambda m: clip(m, "suffix", num_frames=8)],
    ),
    "prefix of sound": ("LTX2ConditionPipeline", [lambda m: sound(m, "prefix", duration=0.24)]),
    "suffix of sound": ("LTX2ConditionPipeline", [lambda m: sound(m, "suffix", duration=0.24)]),
    "crop": ("LTX2ConditionPipeline", [lambda m: clip(m, "spatial_crop", spatial_region=[0, 0, 40, 64])]),
    "mask": ("LTX2ConditionPipeline", [lambda m: clip(m, "mask", mask=str(m / "mask.png"))]),
    "reference": ("LTX2InContextPipeline", [lambda m: clip(m, "reference", downscale_factor=2)]),
    "reference and first frame": ("LTX2InContextPipeline", [lambda m: clip(m, "reference"), first_frame]),
    "reference sound": ("LTX2ConditionPipeline", [lambda m: sound(m, "reference")]),
    "sound of a video": ("LTX2VideoToAudioPipeline", [lambda m: clip(m, "video_to_audio")]),
    "video to a sound": ("LTX2AudioToVideoPipeline", [lambda m: sound(m, "audio_to_video"), first_frame]),
}


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("case", CASES)
def test_every_condition_has_a_pipeline_that_makes_the_sample(pipeline, media, tmp_path, case):
    name, conditions = CASES[case]
    config = one(tmp_path, *(make(media) for make in conditions), guidance_scale=1.0, stg_scale=0.0)
    validator = Validator(config, models_of(pipeline))
    assert validator.calls[0].pipeline.__name__ == name
    (sample,) = validator.sample(0, tmp_path, Accelerator(cpu=True))
    info = probe(sample.path)
    assert info.num_frames == 17
    assert info.sampling_rate is not None


def kept(call, pipeline, stream):
    """Which tokens of the target conditions keep clean, on the grid of its latents."""
    plan = plan_clip(pipeline.sizes, 1, Size(64, 64, 17, RATE), [(1.0, 1.0)])
    tool = getattr(plan.tools, stream)
    state = tool.create_initial_state(torch.device("cpu"))
    for condition in call.arguments["conditions"]:
        for item in getattr(condition.opened(pipeline, plan).items(plan), stream):
            state = item.apply_to(state, tool)
    grid = tuple(plan.video[2:]) if stream == "video" else (plan.audio.frames,)
    return (state.denoise_mask[0, :, 0] == 0).reshape(grid)


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("prefix", [[[1, 1], [1, 1]], [[1, 1], [1, 1]], [[0, 0], [0, 0]]]),
        ("suffix", [[[0, 0], [0, 0]], [[0, 0], [0, 0]], [[1, 1], [1, 1]]]),
        ("both ends", [[[1, 1], [1, 1]], [[0, 0], [0, 0]], [[1, 1], [1, 1]]]),
        ("crop", [[[1, 1], [0, 0]]] * 3),
        ("mask", [[[1, 0], [1, 0]]] * 3),
    ],
)
def test_samples_keep_the_tokens_that_training_keeps(pipeline, media, tmp_path, case, expected):
    config = one(tmp_path, *(make(media) for make in CASES[case][1]))
    assert kept(call_of(config, pipeline), pipeline, "video").tolist() == torch.tensor(expected).bool().tolist()


@pytest.mark.parametrize(("case", "expected"), [("prefix of sound", range(6)), ("suffix of sound", range(11, 17))])
def test_samples_keep_the_sound_that_they_are_given(pipeline, media, tmp_path, case, expected):
    config = one(tmp_path, *(make(media) for make in CASES[case][1]))
    assert kept(call_of(config, pipeline), pipeline, "audio").nonzero()[:, 0].tolist() == list(expected)


@pytest.mark.parametrize(
    ("conditions", "validation", "message"),
    [
        ([lambda m: sound(m, "mask", mask=str(m / "sound.wav"))], {}, "sample 1: no pipeline holds a sound to a mask"),
        (
            [lambda m: sound(m, "prefix", duration=0.2)],
            {"generate_audio": False},
            "condition on the sound, but generate_audio is false",
        ),
        ([lambda m: clip(m, "video_to_audio")], {"generate_audio": False}, "video_to_audio makes sound"),
        (
            [lambda m: clip(m, "video_to_audio"), lambda m: sound(m, "reference")],
            {},
            "with the condition reference too",
        ),
        ([first_frame], {"generate_video": False}, "sound alone is made from text only"),
        ([lambda m: clip(m, "prefix", num_frames=8)], {}, r"num_frames has to be 8 k \+ 1 but is 8; use 1$"),
        ([lambda m: clip(m, "suffix", num_frames=9)], {}, "num_frames has to be 8 k but is 9; use 8"),
        ([lambda m: clip(m, "prefix", num_frames=17)], {}, "leave some to be made"),
        ([lambda m: sound(m, "prefix", duration=3.0)], {}, "lasts 2.000 s, but 3.000 s are asked for"),
        ([lambda m: clip(m, "spatial_crop", spatial_region=[0, 0, 20, 20])], {}, "holds no latent"),
        (
            [lambda m: clip(m, "spatial_crop", spatial_region=[0, 0, 32, 32])],
            {"video_dims": [64, 64, 65]},
            "33 frames",
        ),
        (
            [
                lambda m: clip(m, "spatial_crop", spatial_region=[0, 0, 32, 32]),
                lambda m: clip(m, "suffix", num_frames=8),
            ],
            {},
            "two conditions claim the video stream",
        ),
        ([lambda m: clip(m, "reference", downscale_factor=4)], {}, "multiples of 128"),
        ([], {"inference_steps": 1}, "use `num_inference_steps=2` or more"),
    ],
)
def test_what_no_pipeline_makes_is_said_before_training(pipeline, media, tmp_path, conditions, validation, message):
    config = one(tmp_path, *(make(media) for make in conditions), **validation)
    with pytest.raises(ValueError, match=message):
        Validator(config, models_of(pipeline))


def test_samples_without_a_text_encoder_are_refused(pipeline, tmp_path):
    models = models_of(pipeline)
    models.pipeline.text_encoder = None
    with pytest.raises(ValueError, match="text_encoder"):
        Validator(settings(tmp_path, prompts=["a"]), models)
    assert Validator(settings(tmp_path), models).sample(0, tmp_path, Accelerator(cpu=True)) == []


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(
    ("validation", "suffix", "has_sound"),
    [
        ({"video_dims": [64, 64, 1]}, ".png", None),
        ({"generate_audio": False}, ".mp4", False),
        ({"generate_video": False}, ".wav", True),
    ],
)
def test_the_kind_of_file_follows_what_is_made(pipeline, tmp_path, validation, suffix, has_sound):
    config = settings(tmp_path, prompts=["a"], **validation)
    (sample,) = Validator(config, models_of(pipeline)).sample(12, tmp_path, Accelerator(cpu=True))
    assert sample.path == tmp_path / f"step_000012_1{suffix}"
    if suffix == ".png":
        assert PIL.Image.open(sample.path).size == (64, 64)
    else:
        assert (probe(sample.path).sampling_rate is not None) == has_sound
    assert [path.name for path in tmp_path.iterdir()] == [sample.path.name]


def test_a_reference_is_shown_left_of_the_result(pipeline, media, tmp_path):
    condition = clip(media, "reference", include_in_output=True)
    config = one(tmp_path, condition, guidance_scale=1.0, stg_scale=0.0)
    (sample,) = Validator(config, models_of(pipeline)).sample(0, tmp_path, Accelerator(cpu=True))
    info = probe(sample.path)
    # 96 x 128 pixels at a height of 64 are 86 wide.
    assert (info.width, info.height, info.num_frames) == (86 + 64, 64, 17)


def test_the_shorter_clip_waits_on_its_last_frame():
    left = torch.stack([torch.full((4, 8, 3), value, dtype=torch.uint8) for value in (10, 20)])
    right = torch.stack([torch.full((2, 2, 3), value, dtype=torch.uint8) for value in (1, 2, 3)])
    both = side_by_side(left, right)
    assert both.shape == (3, 2, 6, 3)
    assert both[:, 0, :, 0].tolist() == [[10] * 4 + [1] * 2, [20] * 4 + [2] * 2, [20] * 4 + [3] * 2]


def draws():
    return random.random(), np.random.rand(), torch.rand(1).item()


def test_training_draws_the_same_numbers_with_and_without_validation(pipeline, tmp_path):
    models = models_of(pipeline)
    validator = Validator(settings(tmp_path, prompts=["a"]), models)

    def drawn(validate):
        random.seed(1), np.random.seed(1), torch.manual_seed(1)
        numbers = [draws()]
        if validate:
            validator.sample(0, tmp_path, Accelerator(cpu=True))
        return [*numbers, draws()]

    assert drawn(True) == drawn(False)


def test_random_states_and_modes_return_after_an_error():
    network = torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Sequential(torch.nn.Dropout(0.5)))
    network[1].eval()
    network.gradient_checkpointing = True
    torch.manual_seed(3), random.seed(3), np.random.seed(3)
    expected = draws()
    torch.manual_seed(3), random.seed(3), np.random.seed(3)
    with pytest.raises(RuntimeError), undisturbed([network]):
        assert not network.training
        assert not network.gradient_checkpointing
        assert not torch.is_grad_enabled()
        draws()
        raise RuntimeError
    assert draws() == expected
    assert (network.training, network[0].training, network[1].training) == (True, True, False)
    assert network.gradient_checkpointing
    assert torch.is_grad_enabled()


def test_dropout_of_the_adapter_rests_and_training_goes_on(tmp_path):
    own = LTX2Pipeline.from_pretrained(tiny_checkpoint("2.0"))
    adapter = LoraConfig(r=4, lora_alpha=4, lora_dropout=0.9, target_modules=["to_q"], init_lora_weights=False)
    own.transformer.add_adapter(adapter)
    own.transformer.enable_gradient_checkpointing()
    own.transformer.train()
    trained = {name for name, parameter in own.transformer.named_parameters() if parameter.requires_grad}
    validator = Validator(settings(tmp_path, prompts=["a"]), models_of(own))
    files = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        (sample,) = validator.sample(seed, tmp_path, Accelerator(cpu=True))
        files.append(sample.path.read_bytes())
    assert files[0] == files[1]
    assert own.transformer.training
    assert own.transformer.is_gradient_checkpointing
    assert {name for name, parameter in own.transformer.named_parameters() if parameter.requires_grad} == trained


def shared(count, rank, processes, kinds, distributed):
    calls = [SimpleNamespace(pipeline=kind, arguments={}) for kind in kinds[:count]]
    accelerator = SimpleNamespace(process_index=rank, num_processes=processes, distributed_type=distributed)
    return list(_share(calls, accelerator))


def test_processes_share_the_samples():
    assert shared(3, 0, 2, "aab", DistributedType.MULTI_CPU) == [(0, True), (2, True)]
    assert shared(3, 1, 2, "aab", DistributedType.MULTI_CPU) == [(1, True)]


@pytest.mark.parametrize("kinds", ["aaa", "aab"])
def test_processes_that_share_weights_run_equally_often_and_keep_every_sample_once(kinds):
    per_rank = [shared(3, rank, 2, kinds, DistributedType.FSDP) for rank in range(2)]
    assert len(per_rank[0]) == len(per_rank[1])
    assert sorted(index for share in per_rank for index, keeps in share if keeps) == [0, 1, 2]
    if kinds == "aab":
        # Samples of different kinds run differently often, so that all processes have to make the same one at a time.
        assert [index for index, _ in per_rank[0]] == [index for index, _ in per_rank[1]]


def test_states_of_the_optimiser_wait_on_the_host_and_return():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        table = torch.zeros(4, device="cuda")
        first, second = (
            {"exp_avg": torch.zeros(3, device="cuda"), "table": table, "step": torch.zeros(())},
            {"table": table},
        )
        optimizer = SimpleNamespace(state={0: first, 1: second})
        with offloaded_states(optimizer, True):
            assert {value.device.type for state in (first, second) for value in state.values()} == {"cpu"}
            assert first["table"] is second["table"]
        assert {name: value.device.type for name, value in first.items()} == {
            "exp_avg": "cuda",
            "table": "cuda",
            "step": "cpu",
        }
        assert first["table"] is second["table"]
        with offloaded_states(optimizer, False):
            assert first["exp_avg"].device.type == "cuda"


def test_states_of_the_optimiser_are_the_same_afterwards():
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([parameter])
    parameter.grad = torch.tensor([1.0, 2.0, 3.0])
    optimizer.step()
    before = {name: value.clone() for name, value in optimizer.state[parameter].items()}
    with offloaded_states(optimizer, True):
        pass
    assert all(torch.equal(before[name], value) for name, value in optimizer.state[parameter].items())


def test_a_contact_sheet_shows_frames_over_the_whole_time(media):
    sheet = contact_sheet(media / "clip.mp4")
    assert sheet.shape == (2 * 96, 4 * 128, 3)
    frames = read_video(media / "clip.mp4")
    assert np.array_equal(sheet[:96, :128], frames[0].numpy())
    assert np.array_equal(sheet[96:, 3 * 128 :], frames[-1].numpy())


def test_tensorboard_shows_pictures_and_sound(pipeline, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accelerator = Accelerator(cpu=True, log_with="tensorboard", project_dir=str(tmp_path / "logs"))
    accelerator.init_trackers("run")
    Validator(settings(tmp_path, prompts=["a cat"]), models_of(pipeline)).sample(7, tmp_path / "samples", accelerator)
    accelerator.end_training()
    events = EventAccumulator(str(tmp_path / "logs" / "run"), {"images": 0, "audio": 0, "tensors": 0}).Reload()
    assert [event.step for event in events.Images("validation_samples/1")] == [7]
    (heard,) = events.Audio("validation_samples/1/sound")
    assert heard.step == 7
    # AAC comes in packets of 1024 samples.
    assert 0 <= heard.length_frames - 17 / RATE * heard.sample_rate < 1024


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(("version", "rate"), [("2.0", 24000), ("2.3", 48000)])
def test_a_run_of_any_generation_makes_samples(tmp_path, version, rate):
    """Weights in bfloat16, adapters on transformer and connectors in float32, decoders on the host."""
    said = {"prompts": ["a cat"], "video_dims": DIMS, "inference_steps": 2}
    lora = {"target_modules": ["all", "connectors"]}
    model = {"model_path": str(tiny_checkpoint(version))}
    config = tiny.config(lora, model=model, validation=said, tracking={"progress_bar": False})
    models = tiny.loaded(config, needs_decoders=True)
    (sample,) = Validator(config, models, torch.device("cpu")).sample(0, tmp_path, Accelerator(cpu=True))
    assert probe(sample.path).sampling_rate == rate
    assert all(parameter.requires_grad for parameter in models.parameters())


PROCESS = """
import sys
sys.path[:] = {path}
from pathlib import Path
from accelerate import Accelerator
from ltx2_diffusers.training.config_files import load_config
from ltx2_diffusers.training.validation import Validator
from tests.training import tiny

accelerator, config = Accelerator(cpu=True), load_config({config!r})
samples = Validator(config, tiny.loaded(config, needs_decoders=True)).sample(0, Path({folder!r}), accelerator)
print(accelerator.process_index, [(sample.path.name, sample.prompt) for sample in samples])
"""


def two_processes(script: str) -> list[list[str]]:
    """What two processes of one group print, line by line."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    said = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script],
            env={**os.environ, **said, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    return [process.communicate(timeout=300)[0].splitlines() for process in processes]


SPREAD = """
import sys
sys.path[:] = {path}
import torch
from torch.distributed import destroy_process_group, init_process_group
from torch.distributed.fsdp import fully_shard
from ltx2_diffusers.training.validation.gathering import gathered

init_process_group("gloo")
torch.manual_seed(0)
inner = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Bilinear(4, 4, 4))
inner.forward = lambda x: inner[1](inner[0](x), x)
network, x = torch.nn.Sequential(inner), torch.ones(2, 4)
expected = inner(x).detach()
fully_shard(inner[1])
fully_shard(network)
equal = []
for _ in range(2):
    with torch.no_grad(), gathered([network]):
        equal.append(torch.allclose(inner(x), expected))
    network(x).sum().backward()
print(equal, sum(parameter.grad is not None for parameter in network.parameters()) > 0)
destroy_process_group()
"""


@pytest.mark.slow
def test_weights_that_are_spread_over_processes_are_whole_in_validation():
    """Before the first step, and between steps; training goes on afterwards."""
    lines = two_processes(SPREAD.format(path=sys.path))
    assert [line[-1] for line in lines] == ["[True, True] True"] * 2


@pytest.mark.slow
def test_two_processes_make_the_samples_of_one(tmp_path):
    prompts = ["a cat", "a dog", "a horse"]
    said = {"prompts": prompts, "video_dims": DIMS, "inference_steps": 2}
    config = tiny.config(validation=said, tracking={"progress_bar": False})
    validator = Validator(config, tiny.loaded(config, needs_decoders=True))
    alone = validator.sample(0, tmp_path / "alone", Accelerator(cpu=True))
    save_config(config, tmp_path / "config.yaml")
    script = PROCESS.format(path=sys.path, config=str(tmp_path / "config.yaml"), folder=str(tmp_path / "shared"))
    said_by = [lines[-1] for lines in two_processes(script)]
    expected = [(sample.path.name, prompt) for sample, prompt in zip(alone, prompts)]
    assert said_by == [f"{rank} {expected}" for rank in range(2)]
    for sample in alone:
        assert (tmp_path / "shared" / sample.path.name).read_bytes() == sample.path.read_bytes()


@pytest.mark.slow
def test_wandb_plays_the_files(pipeline, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    accelerator = Accelerator(cpu=True, log_with="wandb")
    accelerator.init_trackers("run", init_kwargs={"wandb": {"dir": str(tmp_path)}})
    config = settings(tmp_path, prompts=["a cat"])
    (sample,) = Validator(config, models_of(pipeline)).sample(7, tmp_path / "samples", accelerator)
    accelerator.end_training()
    (kept_file,) = tmp_path.glob("wandb/offline-run-*/files/media/videos/validation_samples*")
    assert kept_file.read_bytes() == sample.path.read_bytes()
