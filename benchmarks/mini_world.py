"""What a model of the miniature world makes of captions, read by exact analysis, and how settings change it.

Run `python -m benchmarks.mini_world [--only default,guidance]`. Captions and seeds are fixed; those of the split "held_out" name
combinations of shape, colour and background that nothing was trained on. Every score maps a setting to numbers: rates are
percentages of the clips, `bounce_ms` is the median offset of clicks from bounces that are seen, lengths are parts of the
picture's shorter side.
"""

import argparse
import hashlib
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import PIL.Image
import torch
from diffusers.utils import logging
from torch import Tensor

from benchmarks.common import RESULTS_DIR, print_table, write_results
from examples.mini_world.drawing import FRAME_RATE, draw
from examples.mini_world.reading import Seen, hear, judge, judged_picture, see
from examples.mini_world.scenes import Scene, outlined, prompts
from examples.mini_world.sounding import sound
from ltx2_diffusers import (
    LTX2AudioToVideoPipeline,
    LTX2DistilledPipeline,
    LTX2ExtendPipeline,
    LTX2ImageToVideoPipeline,
    LTX2InContextPipeline,
    LTX2Pipeline,
    LTX2ReferenceCondition,
    LTX2RetakePipeline,
    LTX2TwoStagePipeline,
    LTX2VideoToAudioPipeline,
)
from ltx2_diffusers.checkpoints.packaged import checkpoint_path
from ltx2_diffusers.sampling.samplers import SAMPLERS
from ltx2_diffusers.training.components.audio_vae import spectrogram

Numbers = dict[str, float | None]
Rows = dict[str, Numbers]

SEED = 9
CLIP = {"height": 128, "width": 128, "num_frames": 25}
SMALL = CLIP | {"height": 64, "width": 64}
DISTILLED, IN_CONTEXT = "distilled_lora.safetensors", "ic_lora.safetensors"
RATES = ("shape", "colour", "background", "direction", "pitch", "size", "loudness", "clicks")
MEANS = ("pan_error", "pan_correlation")
RANGE_DB = 60.0
"""What lies further below the loudest of a sound is not heard, and not compared."""


class Asked(NamedTuple):
    """A caption and a scene that it is true of."""

    caption: str
    scene: Scene


class Clip(NamedTuple):
    """Frames `[F, 3, H, W]` in [0, 1] and a waveform `[2, N]` of so many samples in a second."""

    frames: Tensor
    audio: Tensor | None = None
    rate: int = 0


@dataclass(frozen=True)
class Bench:
    """What is measured, and how much of it.

    Args:
        checkpoint: Folder in diffusers' layout; LoRAs lie beside its sub-folders.
        split: Whose combinations the captions name.
        count: Captions of the scores at the default settings.
        curve_count: Captions of every point of a curve.
        single_count: Captions where a call makes one clip.
        batch_size: Captions in a call.
        steps: Denoising steps of guided runs; default None, the checkpoint's.
    """

    checkpoint: Path
    split: str = "held_out"
    count: int = 200
    curve_count: int = 100
    single_count: int = 30
    batch_size: int = 25
    steps: int | None = None

    def asked(self, count: int, **options: Any) -> list[Asked]:
        """The first captions of the split."""
        return [Asked(*pair) for pair in prompts(self.split, count, SEED, **options)]

    @cached_property
    def pipeline(self) -> LTX2TwoStagePipeline:
        """All components, in float32."""
        return self.load(LTX2TwoStagePipeline)

    @cached_property
    def full(self) -> Numbers:
        """Scores of captions at the checkpoint's own settings."""
        asked = self.asked(self.count)
        return scored(asked, self.generate(self.kind(LTX2Pipeline), [a.caption for a in asked], **CLIP))

    def load(self, kind: type, lora: str = "", name: str = "", dtype: torch.dtype = torch.float32) -> Any:
        """A pipeline with weights of its own, and a LoRA of the checkpoint's folder."""
        pipeline = kind.from_pretrained(self.checkpoint, dtype=dtype)
        if lora:
            pipeline.load_lora_weights(self.checkpoint, weight_name=lora, adapter_name=name)
        return quiet(pipeline)

    def kind(self, kind: type) -> Any:
        """A pipeline of another kind with the common weights."""
        return quiet(kind.from_pipe(self.pipeline))

    def generate(
        self, pipeline: Any, texts: Sequence[str], given: Sequence[Mapping[str, Any]] = (), **call: Any
    ) -> list[Clip]:
        """A clip for each text, each with a seed of its own, so that batches change nothing.

        Args:
            pipeline: Makes the clips.
            texts: Prompts.
            given: Further arguments of each text, which are put together in lists.
            call: Arguments that all have in common.
        """
        clips: list[Clip] = []
        if self.steps is not None and not isinstance(pipeline, LTX2DistilledPipeline):
            call = {"num_inference_steps": self.steps, **call}
        for start in range(0, len(texts), self.batch_size):
            part = slice(start, start + self.batch_size)
            own = {name: [one[name] for one in given[part]] for name in (given[0] if given else ())}
            own = {name: torch.stack(v) if isinstance(v[0], Tensor) else v for name, v in own.items()}
            seeds = range(len(texts))[part]
            generator = [torch.Generator().manual_seed(SEED + seed) for seed in seeds]
            output = pipeline(prompt=list(texts[part]), generator=generator, output_type="pt", **own, **call)
            clips += clips_of(output)
        return clips

    def generate_each(self, pipeline: Any, texts: Sequence[str], calls: Sequence[Mapping[str, Any]]) -> list[Clip]:
        """A clip for each text, by calls that make one."""
        clips: list[Clip] = []
        steps = {} if self.steps is None else {"num_inference_steps": self.steps}
        for seed, (text, call) in enumerate(zip(texts, calls)):
            generator = torch.Generator().manual_seed(SEED + seed)
            clips += clips_of(pipeline(prompt=text, generator=generator, output_type="pt", **steps, **call))
        return clips


def quiet(pipeline: Any) -> Any:
    """The pipeline without its progress bar."""
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def clips_of(output: Any) -> Iterator[Clip]:
    """The clips of a pipeline's output."""
    for index, frames in enumerate(output.frames):
        audio = None if output.audio is None else output.audio[index].float().cpu()
        yield Clip(frames.float().cpu(), audio, output.sampling_rate or 0)


def drawn(scene: Scene, height: int, width: int, num_frames: int, rate: int = 16_000) -> Clip:
    """The clip that a scene describes."""
    frames = draw([scene], num_frames, height, width)[0].movedim(0, 1) / 2 + 0.5
    return Clip(frames, sound([scene], num_frames, rate, width / height)[0], rate)


def in_bytes(frames: Tensor) -> Tensor:
    """Frames as a media file holds them."""
    return (frames * 255).round().byte()


def scored(asked: Sequence[Asked], clips: Sequence[Clip]) -> Numbers:
    """How many of the clips are right, in percent, and means of the other judgements."""
    verdicts = []
    for (caption, scene), clip in zip(asked, clips):
        verdict = judge(scene, *clip)
        if not {"big", "small"} & set(caption.split()):
            verdict["size"] = None
        verdicts.append(verdict)
    return summed(verdicts)


def summed(verdicts: Sequence[Mapping[str, Any]]) -> Numbers:
    """Rates, means and the median offset of the judgements of many clips."""
    numbers: Numbers = {"clips": len(verdicts)}
    for name in (*RATES, *MEANS):
        values = [float(v[name]) for v in verdicts if v.get(name) is not None]
        numbers |= {name: (100 if name in RATES else 1) * statistics.fmean(values)} if values else {}
    offsets = [v["bounce_offset_ms"] for v in verdicts if v.get("bounce_offset_ms") is not None]
    return numbers | ({"bounce_ms": finite(statistics.median(offsets))} if offsets else {})


def finite(value: float) -> float | None:
    """A number for a JSON file, which knows no infinity: None."""
    return value if math.isfinite(value) else None


def psnr(made: Tensor, real: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of pictures in [0, 1], at most 100."""
    return -10 * math.log10(max(float((made - real).square().mean()), 1e-10))


def spectral_distance(made: Tensor, real: Tensor) -> float:
    """Root mean square difference in dB of log-mel spectrograms `[C, T, M]`, over bins, averaged over time."""
    frames = min(made.shape[1], real.shape[1])
    floor = real.max() - RANGE_DB * math.log(10) / 20
    difference = made[:, :frames].clamp(min=floor) - real[:, :frames].clamp(min=floor)
    return float(difference.square().mean(-1).sqrt().mean()) * 20 / math.log(10)


# Scores


def default(bench: Bench) -> Rows:
    """Captions at the checkpoint's own settings, and the same without any text."""
    asked, pipeline = bench.asked(bench.count), bench.kind(LTX2Pipeline)
    silent = bench.generate(pipeline, [""] * len(asked), **CLIP)
    return {"captions": bench.full, "no text": scored(asked, silent)}


def curve(bench: Bench, settings: Mapping[str, Mapping[str, Any]]) -> Rows:
    """Scores of the same captions and seeds by settings of a call."""
    asked, pipeline = bench.asked(bench.curve_count), bench.kind(LTX2Pipeline)
    texts = [a.caption for a in asked]
    return {name: scored(asked, bench.generate(pipeline, texts, **CLIP, **call)) for name, call in settings.items()}


def both(name: str, values: Sequence[float]) -> dict[str, dict[str, float]]:
    """Settings of a guidance scale that picture and sound have in common."""
    return {f"{value:g}": {name: value, f"audio_{name}": value} for value in values}


def guidance(bench: Bench) -> Rows:
    """By the scale of classifier-free guidance; "off" has no other guidance either."""
    return curve(bench, {"off": {"guidance_scale": 1.0}} | both("guidance_scale", (1.0, 2.0, 3.0, 5.0, 8.0)))


def stg(bench: Bench) -> Rows:
    """By the scale of spatio-temporal guidance."""
    return curve(bench, both("stg_scale", (0.0, 0.5, 1.0, 2.0)))


def modality(bench: Bench) -> Rows:
    """By the scale of guidance away from a pass without the other stream."""
    return curve(bench, both("modality_scale", (1.0, 2.0, 3.0, 5.0)))


def steps(bench: Bench) -> Rows:
    """By the number of denoising steps."""
    return curve(bench, {str(count): {"num_inference_steps": count} for count in (2, 4, 8, 15, 30, 40)})


def sampler(bench: Bench) -> Rows:
    """By the sampler."""
    return curve(bench, {name: {"sampler": name} for name in SAMPLERS})


def vae(bench: Bench) -> Rows:
    """Drawn clips through the video VAE: their PSNR, and what is read of them, which no generated clip can exceed."""
    rows: Rows = {}
    for num_frames, height, width in ((17, 64, 64), (25, 64, 96), (17, 128, 128)):
        asked = bench.asked(bench.curve_count, aspect=width / height)
        ratios, verdicts = [], []
        for start in range(0, len(asked), 8):
            scenes = [a.scene for a in asked[start : start + 8]]
            real = draw(scenes, num_frames, height, width)
            made = reconstructed(bench.pipeline.vae, real)
            for scene, one, other in zip(scenes, made / 2 + 0.5, real / 2 + 0.5):
                ratios.append(psnr(one, other))
                verdicts.append(judged_picture(scene, see(one.movedim(0, 1))))
        rows[f"{num_frames}x{height}x{width}"] = summed(verdicts) | {"psnr_db": statistics.fmean(ratios)}
    return rows


def reconstructed(vae: Any, videos: Tensor) -> Tensor:
    """Videos `[B, 3, F, H, W]` in [-1, 1] through an autoencoder."""
    with torch.no_grad():
        return vae.decode(vae.encode(videos).latent_dist.mode()).sample.clamp(-1, 1)


@torch.no_grad()
def audio(bench: Bench) -> Rows:
    """Sounds of scenes through the audio VAE, through the vocoder, and through both."""
    networks = bench.pipeline
    rate = networks.vocoder.config.output_sampling_rate
    rows: dict[str, list[Mapping[str, Any]]] = {"audio VAE": [], "vocoder": [], "both": []}
    distances: dict[str, list[float]] = {name: [] for name in rows}
    for _, scene in bench.asked(bench.curve_count):
        clip = drawn(scene, **CLIP, rate=rate)
        mel = spectrogram(networks.audio_vae, clip.audio[None], rate)
        decoded = networks.audio_vae.decode(networks.audio_vae.encode(mel).latent_dist.mode()).sample
        distances["audio VAE"].append(spectral_distance(decoded[0], mel[0]))
        for name, given in (("vocoder", mel), ("both", decoded)):
            wave = networks.vocoder(given).clamp(-1, 1)
            distances[name].append(spectral_distance(spectrogram(networks.audio_vae, wave, rate)[0], mel[0]))
            rows[name].append(judge(scene, clip.frames, wave[0], rate))
    heard = ("pitch", "loudness", "clicks", *MEANS, "bounce_offset_ms")
    rows = {name: [{key: v[key] for key in heard} for v in verdicts] for name, verdicts in rows.items()}
    means = {name: {"log_spectral_distance_db": statistics.fmean(values)} for name, values in distances.items()}
    return {name: summed(rows[name]) | means[name] | {"clips": len(distances[name])} for name in rows}


def two_stage(bench: Bench) -> Rows:
    """Two stages to the double size against one at either size."""
    asked = bench.asked(bench.curve_count)
    texts = [a.caption for a in asked]
    pipeline = bench.load(LTX2TwoStagePipeline, DISTILLED, "distilled")
    runs = {
        "two stages": CLIP,
        "one, large": {"two_stage": False, **CLIP},
        "one, small": {"two_stage": False, **SMALL},
    }
    return {name: scored(asked, bench.generate(pipeline, texts, **call)) for name, call in runs.items()}


def distilled(bench: Bench) -> Rows:
    """8 (+ 3) steps without guidance by the distilled LoRA against the full model."""
    asked = bench.asked(bench.count)
    texts = [a.caption for a in asked]
    few = bench.load(LTX2DistilledPipeline, DISTILLED, "distilled")
    rows = {"full": bench.full}
    for name, call in {"8 steps": {"two_stage": False, **CLIP}, "8 + 3 steps": CLIP}.items():
        rows[name] = scored(asked, bench.generate(few, texts, **call))
    return rows


def image_to_video(bench: Bench) -> Rows:
    """Clips that begin with a drawn picture: how near their first frame is to it, and what becomes of it."""
    asked, pipeline = bench.asked(bench.curve_count), bench.kind(LTX2ImageToVideoPipeline)
    pictures = [in_bytes(drawn(a.scene, **CLIP).frames[0]) for a in asked]
    given = [{"image": PIL.Image.fromarray(picture.movedim(0, -1).numpy())} for picture in pictures]
    clips = bench.generate(pipeline, [a.caption for a in asked], given, **CLIP)
    ratios = [psnr(clip.frames[0], picture / 255) for clip, picture in zip(clips, pictures)]
    return {"captions": scored(asked, clips) | {"first_frame_psnr_db": statistics.fmean(ratios)}}


def audio_to_video(bench: Bench) -> Rows:
    """Pictures for the sound of a scene, whose place and moments no caption says; without text the shape, too, is heard."""
    asked, pipeline = bench.asked(bench.curve_count), bench.kind(LTX2AudioToVideoPipeline)
    given = [drawn(a.scene, **CLIP) for a in asked]
    sounds = [{"audio": clip.audio} for clip in given]
    call = {"sampling_rate": given[0].rate, "two_stage": False, **CLIP}
    texts = {"captions": [a.caption for a in asked], "no text": [""] * len(asked)}
    return {name: scored(asked, bench.generate(pipeline, said, sounds, **call)) for name, said in texts.items()}


def video_to_audio(bench: Bench) -> Rows:
    """The sound of drawn pictures: without text the pitch follows from what is seen alone."""
    asked, pipeline = bench.asked(bench.single_count), bench.kind(LTX2VideoToAudioPipeline)
    videos = [drawn(a.scene, **CLIP).frames for a in asked]
    calls = [{"video": in_bytes(video)} for video in videos]
    texts = {"captions": [a.caption for a in asked], "no text": [""] * len(asked)}
    rows = {}
    for name, given in texts.items():
        made = bench.generate_each(pipeline, given, calls)
        rows[name] = scored(asked, [Clip(video, clip.audio, clip.rate) for video, clip in zip(videos, made)])
    return rows


def steps_at(seen: Seen, seams: Sequence[int]) -> float:
    """How far the shape gets between the frames before and after seams, at the most."""
    return max(float((seen.centres[seam] - seen.centres[seam - 1]).norm()) for seam in seams)


def continued(sources: Sequence[Clip], clips: Sequence[Clip], seams: Sequence[int], kept: slice) -> Numbers:
    """How clips of which frames are given go on at the seams, and how near what is kept is to what was given."""
    seen = [see(clip.frames) for clip in clips]
    pitches = [hear(clip.audio, clip.rate).shape == hear(s.audio, s.rate).shape for clip, s in zip(clips, sources)]
    grounds = [float((clip.frames[seam] - clip.frames[seam - 1]).abs().mean()) for clip in clips for seam in seams]
    kept_psnr = [psnr(clip.frames[kept], source.frames[kept]) for clip, source in zip(clips, sources)]
    return {
        "seam_step": statistics.fmean(steps_at(one, seams) for one in seen),
        "seam_difference": statistics.fmean(grounds),
        "same_pitch": 100 * statistics.fmean(pitches),
        "kept_psnr_db": statistics.fmean(kept_psnr),
    }


def retake(bench: Bench) -> Rows:
    """A third of a drawn clip made anew; "drawn" says what the same numbers are for the clip itself."""
    asked, pipeline = bench.asked(bench.single_count), bench.kind(LTX2RetakePipeline)
    sources = [drawn(a.scene, **CLIP) for a in asked]
    # The latent frame of frames 9 to 16 overlaps this stretch, no other does.
    calls = [
        {"video": in_bytes(s.frames), "audio": s.audio, "sampling_rate": s.rate, "start_s": 0.42, "end_s": 0.66}
        for s in sources
    ]
    clips = bench.generate_each(pipeline, [a.caption for a in asked], calls)
    rows = {"retaken": clips, "drawn": sources}
    return {name: scored(asked, made) | continued(sources, made, (9, 17), slice(9)) for name, made in rows.items()}


def extension(bench: Bench) -> Rows:
    """A drawn clip of 17 frames made 16 frames longer; "drawn" says what the numbers are for a drawn clip as long."""
    asked, pipeline = bench.asked(bench.single_count), bench.kind(LTX2ExtendPipeline)
    wholes = [drawn(a.scene, **{**CLIP, "num_frames": 33}) for a in asked]
    calls = []
    for whole in wholes:
        first = whole.audio[:, : round(17 / FRAME_RATE * whole.rate)]
        given = {"video": in_bytes(whole.frames[:17]), "audio": first, "sampling_rate": whole.rate}
        calls.append({**given, "overlap_frames": 9, "num_frames": 25})
    clips = bench.generate_each(pipeline, [a.caption for a in asked], calls)
    rows = {"extended": clips, "drawn": wholes}
    return {name: scored(asked, made) | continued(wholes, made, (17,), slice(17)) for name, made in rows.items()}


def in_context(bench: Bench) -> Rows:
    """Outlines anywhere in the picture, filled by the IC-LoRA: how much of both areas is in common; the same captions without
    a reference show what is in common by chance.
    """
    asked = bench.asked(bench.single_count, spread=1.0)
    pipeline = bench.load(LTX2InContextPipeline, IN_CONTEXT, "outline")
    calls = [
        {"reference_conditions": LTX2ReferenceCondition(in_bytes(drawn(outlined(a.scene), **CLIP).frames)), **CLIP}
        for a in asked
    ]
    runs = {"outline": calls, "no reference": [CLIP] * len(asked)}
    rows = {}
    for name, run in runs.items():
        clips = bench.generate_each(pipeline, [a.caption for a in asked], run)
        rows[name] = scored(asked, clips) | {"overlap": statistics.fmean(overlaps(asked, clips))}
    return rows


def overlaps(asked: Sequence[Asked], clips: Sequence[Clip]) -> Iterator[float]:
    """Area that the shape has in common with that of the scene, over the area that either has."""
    for (_, scene), clip in zip(asked, clips):
        frames, _, height, width = clip.frames.shape
        made, real = (see(one).coverage > 0.5 for one in (clip.frames, drawn(scene, height, width, frames).frames))
        yield float((made & real).sum()) / max(1, int((made | real).sum()))


def tiling(bench: Bench) -> Rows:
    """Decoding in tiles against decoding as a whole, of the same latents."""
    vae, size = bench.load(LTX2Pipeline).vae, {"num_frames": 25, "height": 128, "width": 128}
    asked = bench.asked(bench.single_count)
    real = [drawn(a.scene, **size).frames for a in asked]
    with torch.no_grad():
        latents = [vae.encode(frames.movedim(1, 0)[None] * 2 - 1).latent_dist.mode() for frames in real]
        whole = decoded(vae, latents)
        vae.enable_tiling(96, 96, tile_sample_stride_height=64, tile_sample_stride_width=64)
        tiled = decoded(vae, latents)
    rows = {}
    for name, made in {"whole": whole, "tiled": tiled}.items():
        verdicts = [judged_picture(a.scene, see(frames)) for a, frames in zip(asked, made)]
        to_real = statistics.fmean(psnr(*pair) for pair in zip(made, real))
        to_whole = statistics.fmean(psnr(*pair) for pair in zip(made, whole))
        rows[name] = summed(verdicts) | {"psnr_db": to_real, "psnr_to_whole_db": to_whole}
    return rows


def decoded(vae: Any, latents: Sequence[Tensor]) -> list[Tensor]:
    """Frames `[F, 3, H, W]` in [0, 1] of latents `[1, C, F', h, w]`."""
    return [(vae.decode(one).sample[0].movedim(0, 1) / 2 + 0.5).clamp(0, 1) for one in latents]


def precision(bench: Bench) -> Rows:
    """The same captions and seeds in float32 and in bfloat16."""
    asked = bench.asked(bench.curve_count)
    made = {}
    for name, dtype in {"float32": torch.float32, "bfloat16": torch.bfloat16}.items():
        pipeline = bench.load(LTX2Pipeline, dtype=dtype)
        made[name] = bench.generate(pipeline, [a.caption for a in asked], **CLIP)
    rows = {}
    for name, clips in made.items():
        ratios = [psnr(one.frames, other.frames) for one, other in zip(clips, made["float32"])]
        rows[name] = scored(asked, clips) | {"psnr_to_float32_db": statistics.median(ratios)}
    return rows


SCORES: dict[str, Callable[[Bench], Rows]] = {
    function.__name__: function
    for function in (
        *(default, vae, audio, guidance, stg, modality, steps, sampler, two_stage, distilled, image_to_video),
        *(audio_to_video, video_to_audio, retake, extension, in_context, tiling, precision),
    )
}
NEEDS = {"two_stage": DISTILLED, "distilled": DISTILLED, "in_context": IN_CONTEXT}
"""LoRAs without which there is nothing to score."""
SAID = ("shape", "colour", "background", "direction", "pitch")
"""What every caption says."""
BOUNDS = (
    *(("default", "captions", name, ">=", 90.0) for name in SAID),
    ("default", "captions", "bounce_ms", "<=", 40.0),
    ("image_to_video", "captions", "first_frame_psnr_db", ">=", 25.0),
)
"""What the miniature should reach: score, setting, number, and its bound."""
LOST_BY_DISTILLING = 5.0
"""Most points of every rate that few steps may cost."""


def missed(scores: Mapping[str, Rows]) -> list[str]:
    """What falls short of its bound, in words."""
    short = []
    for score, setting, name, side, bound in BOUNDS:
        if score not in scores:
            continue
        value = scores[score][setting].get(name)
        if value is None or (value < bound if side == ">=" else value > bound):
            short.append(f"{score}, {setting}: {name} is {value}, and should be {side} {bound:g}")
    if rows := scores.get("distilled"):
        least = {name: rows["full"][name] - LOST_BY_DISTILLING for name in SAID}
        few = rows["8 + 3 steps"]
        short += [
            f"distilled, 8 + 3 steps: {name} is {few[name]}, and should be >= {bound:g}"
            for name, bound in least.items()
            if few[name] < bound
        ]
    return short


def print_rows(name: str, rows: Rows) -> None:
    """Print a score, a setting in a row; what a setting has no number for stays empty."""
    keys = list(dict.fromkeys(key for row in rows.values() for key in row))
    said = {setting: {key: "" if row.get(key) is None else row[key] for key in keys} for setting, row in rows.items()}
    rounded = {s: {k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()} for s, row in said.items()}
    print_table([{name: setting, **row} for setting, row in rounded.items()])
    print(flush=True)


def identity(bench: Bench) -> dict[str, str]:
    """What scores belong to: the weights of all networks, and the split."""
    content = hashlib.sha256()
    for path in sorted(bench.checkpoint.rglob("*.safetensors")):
        content.update(path.read_bytes())
    return {"checkpoint": bench.checkpoint.name, "weights": content.hexdigest()[:16], "split": bench.split}


def recorded(whose: Mapping[str, str]) -> dict[str, Rows]:
    """Scores that are written down already and belong to the same weights."""
    path = RESULTS_DIR / "mini_world.json"
    content = json.loads(path.read_text()) if path.exists() else {}
    return content["scores"] if whose.items() <= content.items() else {}


def chosen(bench: Bench, only: str) -> list[str]:
    """Names of the scores to compute; what the checkpoint has no LoRA for is left out with a word, or refused if asked for."""
    names = only.split(",") if only else list(SCORES)
    if unknown := [name for name in names if name not in SCORES]:
        raise SystemExit(f"there is no score {', '.join(unknown)}; choose of {', '.join(SCORES)}")
    lacking = {name: NEEDS[name] for name in names if name in NEEDS and not (bench.checkpoint / NEEDS[name]).exists()}
    if lacking and only:
        raise SystemExit(f"{bench.checkpoint} lacks what {', '.join(lacking)} need: {', '.join(lacking.values())}")
    for name, file in lacking.items():
        print(f"{name} is left out: {bench.checkpoint} has no {file}", file=sys.stderr)
    return [name for name in names if name not in lacking]


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mini_world", description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help=f"scores to compute, with commas: {', '.join(SCORES)}")
    parser.add_argument("--checkpoint", default="ltx2-mini", help="packaged checkpoint or folder (default ltx2-mini)")
    parser.add_argument("--split", choices=("held_out", "validation"), default="held_out", help="default held_out")
    parser.add_argument("--prompts", type=int, default=200, help="captions at the default settings (default 200)")
    parser.add_argument("--curve-prompts", type=int, default=100, help="captions of a point of a curve (default 100)")
    parser.add_argument("--single-prompts", type=int, default=30, help="where a call makes one clip (default 30)")
    parser.add_argument("--batch-size", type=int, default=25, help="captions in a call (default 25)")
    parser.add_argument("--steps", type=int, help="denoising steps (default the checkpoint's)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Compute, print and write scores; exit status 1 if one of them misses its bound."""
    options = parsed(arguments)
    counts = (options.curve_prompts, options.single_prompts)
    bench = Bench(
        checkpoint_path(options.checkpoint),
        options.split,
        options.prompts,
        *(min(options.prompts, count) for count in counts),
        options.batch_size,
        options.steps,
    )
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    names, whose = chosen(bench, options.only), identity(bench)
    scores = recorded(whose)
    for name in names:
        start = time.perf_counter()
        scores[name] = SCORES[name](bench)
        print_rows(name, scores[name])
        print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr)
        ordered = {name: scores[name] for name in SCORES if name in scores}
        write_results("mini_world", {**whose, "seed": SEED, "steps": options.steps, "scores": ordered})
    for line in (short := missed({name: scores[name] for name in names})):
        print(line)
    return int(bool(short))


if __name__ == "__main__":
    sys.exit(main())
