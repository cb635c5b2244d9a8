"""A decoded clip to an MP4 file: ours against diffusers' numpy path. Run `python -m benchmarks.export_video`.

The clip is what a video decoder returns, float32 `[1, 3, 121, 256, 384]` in [-1, 1], smooth and moving. Upstream is
`VideoProcessor.postprocess_video(output_type="np")` followed by `encode_video`; ours is `write_video` on
`decoded_frames`. "Conversion" is the way from the decoded clip to bytes: for upstream the post-processing and what
`encode_video` needs longer for its array than for finished bytes. Memory is the growth of the process's peak resident
size over the size before the call, each side in a process of its own, the encoder's own buffers included.

"Overlap" begins with latents: our decoder at a quarter of the published width, decoded whole and then written, and
written while it is decoded.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import encode_video
from diffusers.video_processor import VideoProcessor

from benchmarks.common import interleaved, ratio, write_results
from benchmarks.vae import CONFIGS, STREAMED_SHAPE, reduced
from ltx2_diffusers.media.pixels import decoded_frames, to_uint8
from ltx2_diffusers.media.writing import write_video
from ltx2_diffusers.models.video_vae import AutoencoderKLLTX2Video

FRAME_RATE = 24
# What libx264 does when nothing is set, as in upstream's `encode_video`.
UPSTREAM_ENCODER = {"crf": 23, "preset": "medium"}


def smooth_clip(num_frames: int, height: int = 256, width: int = 384) -> torch.Tensor:
    """Moving waves `[1, 3, F, H, W]` in [-1, 1]."""
    time = torch.arange(num_frames)[:, None, None] / 121
    row = torch.arange(height)[None, :, None] / height
    column = torch.arange(width)[None, None, :] / width
    red = torch.sin(6 * (column + time) + 3 * row)
    green = torch.cos(5 * row - 4 * time + 2 * column)
    blue = torch.sin(9 * column * row + 5 * time)
    return torch.stack([red, green, blue])[None]


def upstream_file(video: torch.Tensor, path: Path) -> None:
    """Write a clip the way upstream's examples do."""
    encode_video(VideoProcessor().postprocess_video(video, output_type="np")[0], FRAME_RATE, str(path))


def our_file(video: torch.Tensor, path: Path) -> None:
    """Write a clip with upstream's encoder options."""
    write_video(path, decoded_frames(video[0]), FRAME_RATE, **UPSTREAM_ENCODER)


def timed_steps(video: torch.Tensor, folder: Path) -> dict[str, Callable[[], None]]:
    """The steps to time, by name."""
    array = VideoProcessor().postprocess_video(video, output_type="np")[0]
    frames = to_uint8(torch.from_numpy(array))

    def consume() -> None:
        for _ in decoded_frames(video[0]):
            pass

    return {
        "upstream_postprocess": lambda: VideoProcessor().postprocess_video(video, output_type="np"),
        "upstream_encode_array": lambda: encode_video(array, FRAME_RATE, str(folder / "array.mp4")),
        "upstream_encode_bytes": lambda: encode_video(frames, FRAME_RATE, str(folder / "bytes.mp4")),
        "upstream_file": lambda: upstream_file(video, folder / "upstream.mp4"),
        "ours_conversion": consume,
        "ours_file_same_encoder": lambda: our_file(video, folder / "ours.mp4"),
        "ours_file_default": lambda: write_video(folder / "default.mp4", decoded_frames(video[0]), FRAME_RATE),
    }


def peak_growth(side: str, num_frames: int) -> int:
    """Bytes by which one export raises the peak resident size of this process (Linux)."""
    export = {"ours": our_file, "upstream": upstream_file}[side]
    with tempfile.TemporaryDirectory() as folder:
        # The first call loads libraries, which is not what is measured.
        export(smooth_clip(9), Path(folder) / "warm.mp4")
        video = smooth_clip(num_frames)
        # Resets the peak to the present size (man 5 proc).
        Path("/proc/self/clear_refs").write_text("5")
        before = _status_bytes("VmRSS")
        export(video, Path(folder) / "clip.mp4")
        return _status_bytes("VmHWM") - before


def measured_peak(side: str, num_frames: int) -> int:
    """`peak_growth` in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.export_video", "--peak", side, "--frames", str(num_frames)]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(json.loads(result.stdout.splitlines()[-1]))


def _status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no field {field}")


@torch.no_grad()
def measure_overlap(num_frames: int, repeats: int) -> dict[str, Any]:
    """Time from latents to a file, one after the other and side by side."""
    torch.manual_seed(0)
    vae = AutoencoderKLLTX2Video(**reduced(CONFIGS["2.0"])).eval()
    vae.disable_streaming()
    sides = STREAMED_SHAPE["height"] // 32, STREAMED_SHAPE["width"] // 32
    latents = torch.randn(1, vae.config.latent_channels, (num_frames - 1) // 8 + 1, *sides)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"

        def streamed() -> None:
            chunks = (frames for chunk in vae.decode_streamed(latents) for frames in decoded_frames(chunk[0]))
            write_video(path, chunks, FRAME_RATE)

        steps = {
            "decode": lambda: vae.decode(latents),
            "serial": lambda: write_video(path, decoded_frames(vae.decode(latents).sample[0]), FRAME_RATE),
            "overlapped": streamed,
        }
        times = interleaved(steps, repeats)
    return {
        "clip": f"{num_frames}x{STREAMED_SHAPE['height']}x{STREAMED_SHAPE['width']}",
        "median_s": {name: statistics.median(seconds) for name, seconds in times.items()},
        "speedup": ratio(times, "serial", "overlapped"),
    }


def byte_difference(video: torch.Tensor) -> int:
    """Largest difference between the bytes that both sides hand to the encoder."""
    upstream = (VideoProcessor().postprocess_video(video, output_type="np")[0] * 255).round().astype("int16")
    ours = torch.cat(list(decoded_frames(video[0]))).to(torch.int16)
    return int((ours - torch.from_numpy(upstream)).abs().max())


def run(num_frames: int, repeats: int) -> dict[str, Any]:
    """Measure time and memory of both sides."""
    video = smooth_clip(num_frames)
    with tempfile.TemporaryDirectory() as folder:
        times = interleaved(timed_steps(video, Path(folder)), repeats)
        sizes = {path.name: path.stat().st_size for path in sorted(Path(folder).glob("*.mp4"))}
    steps = (times[f"upstream_{step}"] for step in ("postprocess", "encode_array", "encode_bytes"))
    times["upstream_conversion"] = [post + array - finished for post, array, finished in zip(*steps)]
    peaks = {side: measured_peak(side, num_frames) for side in ("upstream", "ours")}
    return {
        "clip": f"{num_frames}x256x384 float32",
        "repeats": repeats,
        "median_s": {name: statistics.median(seconds) for name, seconds in times.items()},
        "conversion_speedup": ratio(times, "upstream_conversion", "ours_conversion"),
        "file_speedup_same_encoder": ratio(times, "upstream_file", "ours_file_same_encoder"),
        "file_speedup_default_encoder": ratio(times, "upstream_file", "ours_file_default"),
        "peak_growth_bytes": peaks,
        "memory_ratio": peaks["ours"] / peaks["upstream"],
        "overlap": measure_overlap(num_frames, min(repeats, 3)),
        "max_byte_difference": byte_difference(video),
        "file_bytes": sizes,
    }


def main() -> None:
    """Run the benchmark and write its results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer repeats, nothing else changes")
    parser.add_argument("--frames", type=int, default=121, help="frames of the clip")
    parser.add_argument("--peak", choices=("ours", "upstream"), help="only print the peak memory of one side")
    arguments = parser.parse_args()
    if arguments.peak:
        print(json.dumps(peak_growth(arguments.peak, arguments.frames)))
        return
    results = run(arguments.frames, repeats=2 if arguments.quick else 7)
    print(json.dumps(results, indent=2))
    print("written to", write_results("export_video", results))


if __name__ == "__main__":
    main()
