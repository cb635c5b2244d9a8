"""The lines that the description of the API shows, as they stand there but for the server's address, and those of our pages."""

import base64
import json
import re
import subprocess
import sys

import pytest

from benchmarks.serving_load import Server
from ltx2_diffusers.media.reading import read_audio
from ltx2_diffusers.media.writing import write_audio
from scripts.pages import README, page, write_media
from tests.serving.clips import decoded

pytestmark = pytest.mark.slow

ADDRESSES = ("http://<SERVER>:8000", "http://localhost:8000")
TEXT_TO_VIDEO = """\
curl -X POST http://<SERVER>:8000/generate \\
  -H "Content-Type: application/json" \\
  -d '{"prompt": "A cat sitting calmly on a cushion", "width": 288, "height": 512}'
"""
IMAGE_TO_VIDEO = """\
curl -X POST http://<SERVER>:8000/generate \\
  -H "Content-Type: application/json" \\
  -d '{
    "prompt": "The scene animates with gentle movement",
    "width": 288,
    "height": 512,
    "image": "data:image/png;base64,<BASE64_IMAGE>"
  }'
"""
AUDIO_TO_VIDEO = """\
AUDIO_B64=$(base64 -w0 input.wav)

curl -X POST http://<SERVER>:8000/generate \\
  -H "Content-Type: application/json" \\
  -d "{
    \\"prompt\\": \\"A person speaking in front of a camera\\",
    \\"width\\": 288,
    \\"height\\": 512,
    \\"audio\\": \\"data:audio/wav;base64,$AUDIO_B64\\",
    \\"audio_cond_noise_scale\\": 0.15
  }"
"""
CLIENT = """\
import requests
import base64

def generate_video(prompt, server="http://localhost:8000",
                   width=288, height=512, num_frames=49,
                   steps=30, image_path=None, audio_path=None,
                   audio_noise_scale=0.15):
    payload = {
        "prompt": prompt,
        "width": width,
        "height": height,
        "num_frames": num_frames,
        "num_inference_steps": steps,
        "include_audio": True,
    }

    if image_path:
        with open(image_path, "rb") as f:
            payload["image"] = f"data:image/png;base64,{base64.b64encode(f.read()).decode()}"

    if audio_path:
        with open(audio_path, "rb") as f:
            payload["audio"] = f"data:audio/wav;base64,{base64.b64encode(f.read()).decode()}"
            payload["audio_cond_noise_scale"] = audio_noise_scale

    response = requests.post(f"{server}/generate", json=payload, timeout=300)
    result = response.json()

    if "error" in result or "detail" in result:
        raise Exception(result.get("error") or result.get("detail"))

    # Save video
    video_data = result["video"].split(",")[1]
    with open("output.mp4", "wb") as f:
        f.write(base64.b64decode(video_data))

    print(f"Mode: {result['mode']}")
    print(f"Duration: {result['duration_seconds']}s")
    print(f"Generation time: {result['generation_time_seconds']}s")

    return result

# Text-to-video
generate_video("A cat sitting calmly on a cushion")

# Audio-to-video (audio guides video through cross-attention)
generate_video("A person speaking", audio_path="speech.wav", audio_noise_scale=0.15)
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("served") / "data")
    yield server
    assert server.stop() == 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the files that the lines name."""
    folder = tmp_path_factory.mktemp("lines")
    write_media(folder)
    waveform, rate = read_audio(folder / "tone.wav")
    for name in ("input.wav", "speech.wav"):
        # Half a second, since the base64 of a longer one is no argument that a command can have.
        write_audio(folder / name, waveform[0, :, : rate // 2], rate)
    (folder / "out").mkdir(exist_ok=True)
    return folder


def at(server: Server, text: str) -> str:
    for address in ADDRESSES:
        text = text.replace(address, server.url)
    return text


def said(command: str, folder) -> str:
    finished = subprocess.run(["bash", "-ec", command], cwd=folder, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


@pytest.mark.parametrize(
    ("line", "mode"),
    [(TEXT_TO_VIDEO, "text-to-video"), (IMAGE_TO_VIDEO, "image-to-video"), (AUDIO_TO_VIDEO, "audio-to-video")],
    ids=["text", "image", "audio"],
)
def test_the_lines_of_the_description_work(server, folder, line, mode):
    picture = base64.b64encode((folder / "first.png").read_bytes()).decode()
    answer = json.loads(said(at(server, line).replace("<BASE64_IMAGE>", picture), folder))
    assert (answer["mode"], answer["resolution"], answer["duration_seconds"]) == (mode, "288x512", 4.84)
    frames, sound, rate = decoded(answer["video"])
    assert (frames.shape, sound.shape[0], rate) == ((121, 512, 288, 3), 2, 24000)


def test_the_client_of_the_description_works(server, folder):
    (folder / "client.py").write_text(at(server, CLIENT))
    finished = subprocess.run([sys.executable, "client.py"], cwd=folder, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert re.findall("^Mode: (.*)$", finished.stdout, flags=re.MULTILINE) == ["text-to-video", "audio-to-video"]
    assert finished.stdout.count("Duration: 1.96s") == 2
    assert decoded((folder / "output.mp4").read_bytes())[0].shape == (49, 512, 288, 3)


@pytest.mark.parametrize("place", ["README.md", "guides/serving.md"])
def test_the_lines_of_our_pages_work(server, folder, place):
    one = README if place == README.name else page(place)
    commands = "\n".join(block for block in one.blocks("sh"))
    lines = [
        line
        for line in commands.splitlines()
        if not line.startswith(("ltx2 serve", "pip install", "docker", "openssl"))
    ]
    assert any(line.startswith("curl") for line in lines)
    said(at(server, "\n".join(lines)), folder)
    if "-o out/" in commands:
        assert (folder / "out" / "served.mp4").read_bytes()[4:8] == b"ftyp"
