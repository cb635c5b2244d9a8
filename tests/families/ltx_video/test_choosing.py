"""A checkpoint says which family it is of: to the command line, to applications, and to what runs LTX-2 alone."""

import json

import numpy as np
import PIL.Image
import pytest
import torch

import ltx2_diffusers
from ltx2_diffusers import LTXVideoPipeline
from ltx2_diffusers.application.generate import generate
from ltx2_diffusers.application.selection import GenerationRequest, TimelineItem, select_pipeline
from ltx2_diffusers.checkpoints.convert import convert_to_diffusers, convert_to_original
from ltx2_diffusers.checkpoints.packaged import packaged_checkpoint
from ltx2_diffusers.checkpoints.versions import checkpoint_family
from ltx2_diffusers.cli.main import main
from ltx2_diffusers.media.writing import write_video
from ltx2_diffusers.pipelines.planned import plan_memory
from tests.cli.running import complaint, manifest
from tests.golden_data import golden_file

TINY = packaged_checkpoint("ltx-video-tiny")
FILE = "ltx_video/checkpoints/v090/model.safetensors"
SMALL = ["--width", "64", "--height", "64", "--num-frames", "9", "--device", "cpu"]


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    folder = tmp_path_factory.mktemp("media")
    picture = np.random.default_rng(0).integers(0, 255, (80, 96, 3), dtype=np.uint8)
    PIL.Image.fromarray(picture).save(folder / "a.png")
    write_video(folder / "clip.mp4", torch.from_numpy(picture)[None].repeat(17, 1, 1, 1), 24.0)
    return folder


def run(path, *options):
    return main(
        ["generate", "--checkpoint", "ltx-video-tiny", "--prompt", "a dog", "-o", str(path), *map(str, options)]
    )


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("ltx-video-tiny", "ltx_video"),
        ("ltx2-mini", "ltx2"),
        ("Lightricks/LTX-Video-0.9.8-13B-distilled", "ltx_video"),
        ("a-r-r-o-w/LTX-0.9.8-Latent-Upsampler", "ltx_video"),
        ("Lightricks/LTX-2.3", "ltx2"),
    ],
)
def test_the_family_of_a_checkpoint(name, family):
    assert checkpoint_family(name) == family


def test_the_family_of_files():
    assert checkpoint_family(golden_file(FILE)) == "ltx_video"
    assert checkpoint_family(golden_file("checkpoint/ltx-2-tiny-dev.safetensors")) == "ltx2"


def test_the_command_line_runs_the_pipeline_of_the_checkpoint(tmp_path, media):
    path = tmp_path / "clip.mp4"
    assert run(path, *SMALL, "--image", media / "a.png", "--image-at", 8, f"{media / 'a.png'}:0.5", "--one-stage") == 0
    facts = manifest(path)
    assert facts["pipeline"] == "LTXVideoPipeline"
    assert main(["replay", f"{path}.json", "--device", "cpu"]) == 0


@pytest.mark.parametrize(
    "options",
    [
        ["--video", "clip.mp4", "--denoise-strength", "0.5", "--one-stage"],
        ["--reference", "clip.mp4", "--frame-rate", "24", "--one-stage"],
        ["--steps", "2", "--guidance-scale", "3", "--stg-scale", "1", "--one-stage", "--lora", "lora.safetensors:0.5"],
    ],
    ids=["from a clip", "after a reference", "guided, with a LoRA"],
)
def test_the_command_line_makes_every_kind_of_clip(tmp_path, media, options):
    pipe = LTXVideoPipeline.from_pretrained(TINY)
    layer = pipe.transformer.proj_in
    factors = {"lora_A.weight": torch.ones(1, layer.in_features), "lora_B.weight": torch.ones(layer.out_features, 1)}
    LTXVideoPipeline.save_lora_weights(
        media, {f"proj_in.{k}": v for k, v in factors.items()}, weight_name="lora.safetensors"
    )
    known = {file.name: str(file) for file in media.iterdir()}
    given = [option if ":" not in option else f"{known[option.split(':')[0]]}:0.5" for option in options]
    assert run(tmp_path / "clip.mp4", *SMALL, *(known.get(option, option) for option in given)) == 0


def test_an_original_file_takes_its_text_encoder_from_elsewhere(tmp_path, capsys):
    checkpoint = ["--checkpoint", golden_file(FILE)]
    assert run(tmp_path / "clip.mp4", *SMALL, *checkpoint) == 2
    assert "--text-encoder" in complaint(capsys)
    assert run(tmp_path / "clip.mp4", *SMALL, *checkpoint, "--text-encoder", TINY, "--steps", 1) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--no-audio"], "means nothing for video of LTX-Video"),
        (["--vram", "4"], "--offload model"),
        (["--offload", "blocks"], "--offload model"),
        (["--height", "0"], "use 1"),
        (
            ["--height", "65", "--width", "64"],
            "--height and --width have to be even in a file but are 65 and 64; use (66, 64)",
        ),
        (["--image-at", "0", "clip.mp4", "--frame-by-frame"], "by their times"),
        (["--auto-length"], "--auto-length means nothing for video of LTX-Video"),
        (["--image-at", "-10", "clip.mp4", *SMALL], "--image-at has to be from 0 to 8 but is -10"),
    ],
)
def test_what_the_family_does_not_have_is_refused(tmp_path, media, capsys, options, message):
    given = [str(media / option) if option == "clip.mp4" else option for option in options]
    assert run(tmp_path / "clip.mp4", *given, "--device", "cpu") == 2
    assert message in complaint(capsys)
    assert not (tmp_path / "clip.mp4").exists()


def test_frames_are_counted_from_the_end(tmp_path, media):
    for name, place in (("end", -1), ("eight", 8), ("start", 0)):
        options = [*SMALL, "--one-stage", "--steps", 1, "--image-at", place, media / "a.png"]
        assert run(tmp_path / f"{name}.mp4", *options) == 0
    end, eight, start = ((tmp_path / f"{name}.mp4").read_bytes() for name in ("end", "eight", "start"))
    assert end == eight != start


@pytest.mark.parametrize(
    ("one", "other"), [("LTX2Pipeline", "LTXVideoPipeline"), ("LTXVideoPipeline", "LTX2Pipeline")]
)
def test_a_pipeline_is_not_made_of_one_of_the_other_family(one, other):
    checkpoints = {"LTX2Pipeline": packaged_checkpoint("ltx2-mini"), "LTXVideoPipeline": TINY}
    pipeline = getattr(ltx2_diffusers, one).from_pretrained(checkpoints[one])
    with pytest.raises(ValueError, match=f"another family .*{one}.from_pipe"):
        getattr(ltx2_diffusers, other).from_pipe(pipeline)


def test_compilation_says_how_it_is_done_in_the_family():
    with pytest.raises(ValueError, match=r"compile\(\) is for networks of LTX-2.*compile_repeated_blocks"):
        LTXVideoPipeline.from_pretrained(TINY).compile("transformer")


def test_info_tells_the_family_and_its_settings(capsys):
    assert main(["info", "ltx-video-tiny"]) == 0
    assert (
        "LTX-Video 0.9.8 2b distilled, settings ltxv-2b-0.9.8-distilled, positions causal" in capsys.readouterr().out
    )
    assert main(["info", "--json", str(golden_file(FILE))]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["family"], summary["version"], summary["kind"]) == ("ltx_video", "0.9", "2b dev")
    assert summary["preset"]["schedule"]["shifting"] == "SD3"
    assert summary["components"]["vae"]["class"] == "AutoencoderKLLTXVideo"


def test_what_runs_ltx_2_alone_says_so(tmp_path):
    with pytest.raises(ValueError, match=r"not LTX-2; .*use --offload model .*or enable_model_cpu_offload"):
        plan_memory(TINY, 8)
    with pytest.raises(ValueError, match=r"LTXVideoPipeline\.from_single_file.*save_pretrained"):
        convert_to_diffusers(golden_file(FILE), tmp_path / "folder")
    with pytest.raises(ValueError, match="not written; save a folder"):
        convert_to_original(TINY, tmp_path / "file.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_request_shows_pictures_and_clips_at_their_frames():
    timeline = (TimelineItem("image", "first.png"), TimelineItem("video", "clip.mp4", 16, 0.5))
    request = GenerationRequest("a dog", timeline=timeline, width=700, num_frames=30, enhance_prompt=True)
    selection = select_pipeline(request, family="ltx_video")
    assert (selection.rule, selection.pipeline_name, selection.pipeline_class) == (
        "ltx_video",
        "LTXVideoPipeline",
        LTXVideoPipeline,
    )
    shown = selection.arguments["conditions"]
    assert [(one.image, one.video, one.frame_index, one.strength) for one in shown] == [
        ("first.png", None, 0, 1.0),
        (None, "clip.mp4", 16, 0.5),
    ]
    # The pipeline cuts any size out of a larger one.
    assert (selection.arguments["width"], selection.arguments["num_frames"]) == (700, 30)
    assert any("stays as it is" in note for note in selection.notes)
    # The preset says these.
    assert not {"num_inference_steps", "guidance_scale"} & selection.arguments.keys()
    with pytest.raises(ValueError, match="family"):
        select_pipeline(request, family="ltx_vid")


def test_generate_serves_a_request_with_a_pipeline_of_the_family(media):
    pipe = LTXVideoPipeline.from_pretrained(TINY, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    timeline, steps = (TimelineItem("image", str(media / "a.png")),), []
    request = GenerationRequest("a dog", timeline=timeline, width=60, height=64, num_frames=8, seed=1)
    output = generate(
        request, pipe, on_progress=lambda step, total: steps.append((step, total)), output_type="pt", multi_scale=False
    )
    assert output.frames.shape == (1, 8, 3, 64, 60)
    assert output.info["rule"] == "ltx_video"
    assert steps[-1] == (8, 8)
