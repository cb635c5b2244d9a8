"""`POST /generate` answers as its description says, with a clip or with what is wrong."""

import json

import numpy as np
import pytest

from tests.serving.clips import data_uri, decoded, generate, refusal
from tests.serving.conftest import QUICK

NEVER = {"prompt": "waves", "num_inference_steps": 1000, "num_frames": 257}


def test_an_answer_holds_what_its_description_says(client):
    answer = generate(client, **QUICK, fps=24)
    frames, sound, rate = decoded(answer.pop("video"))
    assert (frames.shape, sound.shape[0], rate) == ((9, 64, 64, 3), 2, 24000)
    assert 0 < answer.pop("generation_time_seconds") < 60
    assert answer == {
        "duration_seconds": 0.375,
        "resolution": "64x64",
        "fps": 24,
        "seed": 7,
        "mode": "text-to-video",
        "has_audio": True,
    }


def test_the_defaults_are_those_of_the_description(client):
    schema = client.get("/openapi.json").json()["components"]["schemas"]["GenerateRequest"]
    assert schema["required"] == ["prompt"]
    assert {name: one.get("default") for name, one in schema["properties"].items() if name != "prompt"} == {
        "negative_prompt": "blurry, low quality, distorted, glitchy, watermark",
        "width": 768,
        "height": 512,
        "num_frames": 121,
        "fps": 25,
        "guidance_scale": 3.0,
        "num_inference_steps": 40,
        "seed": None,
        "image": None,
        "image_cond_noise_scale": 0.15,
        "include_audio": True,
        "audio": None,
        "audio_cond_noise_scale": 0.15,
    }


def test_equal_seeds_give_equal_frames_with_and_without_sound(client):
    first, again, silent, other = (
        generate(client, **{**QUICK, **more}) for more in ({}, {}, {"include_audio": False}, {"seed": 8})
    )
    frames, _, _ = decoded(first["video"])
    assert np.array_equal(frames, decoded(again["video"])[0])
    assert np.array_equal(frames, decoded(silent["video"])[0])
    assert not np.array_equal(frames, decoded(other["video"])[0])
    assert (silent["has_audio"], decoded(silent["video"])[1]) == (False, None)


def test_a_seed_that_is_left_out_is_told_and_makes_the_clip_again(client):
    wanted = {**QUICK, "seed": None}
    first, second = generate(client, **wanted), generate(client, **wanted)
    assert first["seed"] != second["seed"]
    again = generate(client, **{**QUICK, "seed": first["seed"]})
    assert np.array_equal(decoded(first["video"])[0], decoded(again["video"])[0])


def test_keys_that_are_not_described_are_not_read(client):
    assert generate(client, **QUICK, steps=3)["mode"] == "text-to-video"


def test_a_picture_is_followed_as_far_as_its_noise_scale_says(client, media):
    kept, ignored, other = (
        decoded(generate(client, **QUICK, image=data_uri(media / file), image_cond_noise_scale=scale)["video"])[0]
        for file, scale in (("red.png", 0.0), ("red.png", 1.0), ("blue.png", 1.0))
    )
    assert np.array_equal(ignored, other)
    assert not np.array_equal(kept, ignored)
    bare = generate(client, **QUICK, image=data_uri(media / "red.png").partition(",")[2], image_cond_noise_scale=0)
    assert (bare["mode"], np.array_equal(decoded(bare["video"])[0], kept)) == ("image-to-video", True)


def test_sound_is_kept_at_0_and_ignored_at_1(client, media):
    tone = data_uri(media / "tone.wav", "audio/wav")
    kept = generate(client, **QUICK, audio=tone, audio_cond_noise_scale=0)
    assert (kept["mode"], kept["has_audio"]) == ("audio-to-video", True)
    _, sound, rate = decoded(kept["video"])
    seconds = np.arange(sound.shape[1]) / rate
    # The encoder's own start and end leave the middle as it was.
    middle = slice(2048, 6144)
    expected = 0.3 * np.sin(440 * 2 * np.pi * seconds)
    assert np.corrcoef(sound[0, middle], expected[middle])[0, 1] > 0.99
    ignored = decoded(generate(client, **QUICK, audio=tone, audio_cond_noise_scale=1)["video"])
    text = decoded(generate(client, **QUICK)["video"])
    assert np.array_equal(ignored[0], text[0])
    assert np.array_equal(ignored[1], text[1])
    silent = generate(client, **QUICK, audio=tone, include_audio=False)
    assert decoded(silent["video"])[1] is None


def test_a_picture_and_a_sound_are_both_followed(client, media):
    tone = {"audio": data_uri(media / "tone.wav", "audio/wav"), "audio_cond_noise_scale": 0}
    both = generate(client, **QUICK, **tone, image=data_uri(media / "red.png"), image_cond_noise_scale=0)
    assert both["mode"] == "audio-to-video"
    frames, sound, _ = decoded(both["video"])
    alone = decoded(generate(client, **QUICK, **tone)["video"])
    assert np.array_equal(sound, alone[1])
    assert not np.array_equal(frames, alone[0])


def test_a_sound_shorter_than_the_clip_is_followed_by_silence(client, media):
    answer = generate(
        client, **{**QUICK, "num_frames": 33, "fps": 25}, audio=data_uri(media / "tone.wav"), audio_cond_noise_scale=0
    )
    _, sound, rate = decoded(answer["video"])
    assert np.abs(sound[:, int(0.2 * rate) : int(0.9 * rate)]).max() > 0.2
    assert np.abs(sound[:, int(1.1 * rate) :]).max() < 0.02


@pytest.mark.parametrize(
    ("wrong", "field", "reason"),
    [
        ({"width": 500}, "width", "use 480 or 512"),
        ({"height": 0}, "height", "use 32"),
        ({"num_frames": 10}, "num_frames", "use 9 or 17"),
        ({"fps": 0}, "fps", "greater than or equal to 1"),
        ({"guidance_scale": 1e9}, "guidance_scale", "use 1000"),
        ({"num_inference_steps": 0}, "num_inference_steps", "at least 1"),
        ({"num_inference_steps": 300}, "num_inference_steps", "more than the 200"),
        ({"seed": 2**70}, "seed", "64 bits"),
        ({"image_cond_noise_scale": 1.5}, "image_cond_noise_scale", "less than or equal to 1"),
        ({"audio_cond_noise_scale": -1}, "audio_cond_noise_scale", "greater than or equal to 0"),
        ({"include_audio": "perhaps"}, "include_audio", "valid boolean"),
        ({"prompt": 3}, "prompt", "valid string"),
        ({"prompt": "x" * 20_000}, "prompt", "longer than the 10000 characters"),
        ({"prompt": "\ud800"}, "prompt", "no character"),
        ({"width": 16384, "height": 16384}, "num_frames", "megapixels"),
        ({"image": "/etc/hostname"}, "image", "base64"),
        ({"image": "https://example.com/cat.png"}, "image", "base64"),
        ({"image": "data:image/png,abc"}, "image", "without base64"),
        ({"image": ""}, "image", "empty"),
        ({"image": "aGVsbG8="}, "image", "cannot be read"),
        ({"audio": "aGVsbG8="}, "audio", "cannot be read"),
    ],
)
def test_a_wrong_value_is_refused_by_name_before_anything_is_computed(client, wrong, field, reason):
    jobs = client.app.state.server.metrics.registry
    before, inputs = jobs.get_sample_value("ltx2_steps_total"), client.app.state.server.settings.inputs
    # Jobs that other files of tests have made keep theirs.
    held = set(inputs.iterdir())
    answer = client.post(
        "/generate", content=json.dumps({**NEVER, **wrong}), headers={"content-type": "application/json"}
    )
    place, message = refusal(answer)
    assert (place, reason in message) == (field, True), message
    assert jobs.get_sample_value("ltx2_steps_total") == before
    assert set(inputs.iterdir()) == held
    assert "/inputs" not in message


def test_what_is_no_request_is_refused(client):
    assert refusal(client.post("/generate", json={}))[0] == "prompt"
    assert client.post("/generate", content=b"{", headers={"content-type": "application/json"}).status_code == 422
    assert client.post("/generate", json=[1]).status_code == 422
    assert (
        client.post("/generate", content=json.dumps(QUICK), headers={"content-type": "text/plain"}).status_code == 422
    )
    assert client.get("/generate").status_code == 405


def test_a_call_leaves_nothing_behind(client):
    settings = client.app.state.server.settings

    def kept() -> list:
        return [*settings.inputs.iterdir(), *settings.results.iterdir()]

    before = kept()
    generate(client, **QUICK)
    assert client.get("/v1/videos").json()["data"] == []
    assert kept() == before
