"""The networks of sound: an audio VAE, and a vocoder that says what it decodes.

Run as `python -m examples.mini_world.train_sound --out FOLDER`; both end up in folders of their names.

Shapes: B batch, F frames, N samples, T mel frames, M mel bins.
"""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from ltx2_diffusers import AutoencoderKLLTX2Audio, LTX2Vocoder
from ltx2_diffusers.training.components import (
    AudioVaeStep,
    AudioVaeWeights,
    FitOptions,
    VocoderStep,
    VocoderWeights,
    calibrate_audio_latents,
    centre_output,
    spectrogram,
    spread_latents,
)

from .drawing import FRAME_RATE
from .networks import AUDIO_VAE, VOCODER, VOCODER_SIDE
from .reading import hear
from .scenes import MOTIONS, NEW_SHAPE, SHAPES, Scene, random_scene
from .sounding import clicks, harmonics, panned, sound
from .stages import CPU, Phase, Place, Scores, arguments, train

RATE = 24000
"""Of the vocoder, in Hz."""
FRAMES, BATCH = (17, 25), 8
GROUPS = 240
"""Batches of sound that the vocoder learns from."""
VARIED = 2
"""How many sounds of a batch are of no scene."""
HOP_HZ = 100
"""Mel frames per second. A vocoder does the same at every frame: it can only learn tones that repeat with them."""
STRETCH = 48
"""Mel frames of a sound that the vocoder learns from at once."""
QUIET = -8.0
"""Log-mel below which there is no sound worth hearing; silence is at -11.5."""
OPTIONS = FitOptions(optimizer="muon", betas=(0.95, 0.99), warmup_steps=50, ema_decay=0.995)


def heard_scenes(count: int, seed: str, split: str = "train", aspect: float = 1.0) -> list[Scene]:
    """Scenes of a split; a quarter of them bounce, a quarter moves sideways. The new shape is heard in training."""
    draw = random.Random(seed)
    shapes = (*SHAPES, NEW_SHAPE) if split == "train" else SHAPES
    motions = (("bounces",), MOTIONS, ("left", "right"), MOTIONS)
    return [
        random_scene(draw, split, aspect, draw.choice(motions[number % len(motions)]), shapes, spread=1)
        for number in range(count)
    ]


def varied(draw: random.Random, num_frames: int, step_hz: int) -> Tensor:
    """Sound `[2, N]` of no scene: any pitch, loudness and place, which change, with clicks or silence.

    Args:
        draw: Where chance comes from.
        num_frames: Length of the clip.
        step_hz: The pitch is a multiple of it.
    """
    samples = round(num_frames / FRAME_RATE * RATE)
    part = torch.linspace(0, 1, samples, dtype=torch.float64)
    pitch = step_hz * round(math.exp(draw.uniform(math.log(150), math.log(3000))) / step_hz)
    ends = [math.exp(draw.uniform(math.log(0.02), math.log(0.6))) for _ in range(2)]
    sides = torch.lerp(*(torch.tensor(draw.uniform(0, 1), dtype=torch.float64) for _ in range(2)), part)
    level = ends[0] * (ends[1] / ends[0]) ** part
    if draw.random() < 0.3:
        # Heard only for a while.
        first, last = sorted(draw.uniform(-0.5, 1.5) for _ in range(2))
        level = level * ((part - first) * 100).clamp(0, 1) * ((last - part) * 100).clamp(0, 1)
    times = [draw.uniform(0, samples / RATE) for _ in range(draw.choice((0, 0, 1, 2)))]
    mono = harmonics(pitch, torch.arange(samples, dtype=torch.float64) / RATE) * level
    return ((mono + draw.uniform(0.3, 1) * clicks(times, samples, RATE)) * panned(sides)).clamp(-1, 1).float()


def waveforms(number: int, step_hz: int = 1) -> Tensor:
    """Sound `[B, 2, N]` of a batch: of scenes of the training split, and varied."""
    draw, num_frames = random.Random(f"sound {number}"), FRAMES[number % len(FRAMES)]
    aspect = draw.choice((1.0, 1.5))
    of_scenes = sound(heard_scenes(BATCH - VARIED, f"heard {number}", aspect=aspect), num_frames, RATE, aspect)
    return torch.cat([of_scenes, torch.stack([varied(draw, num_frames, step_hz) for _ in range(VARIED)])])


def train_audio_vae(folder: Path) -> AutoencoderKLLTX2Audio:
    """The audio VAE, with the statistics of its latents."""
    torch.manual_seed(0)
    vae = AutoencoderKLLTX2Audio(**AUDIO_VAE)
    first = torch.cat([spectrogram(vae, waveforms(-1 - len(FRAMES) * number), RATE) for number in range(4)])
    spread_latents(vae, first)
    centre_output(vae, first)
    # The noise that so much of this loss leaves on latents makes the decoder forgive what a transformer does not hit.
    step = AudioVaeStep(vae, AudioVaeWeights(kl=5e-3))
    held_back = spectrogram(vae, sound(heard_scenes(24, "sound", "validation"), 25, RATE), RATE)
    phases = [
        Phase(
            "learn",
            lambda number: {"mel": spectrogram(vae, waveforms(number), RATE)},
            3000,
            3e-3,
            replace(OPTIONS, mixed_precision="bf16"),
            every=100,
            enough=-0.095,
        )
    ]
    train(folder, step, phases, lambda: vae_scores(vae, held_back), "negative_mel_error")
    vae.eval()
    lengths = [(number, num_frames) for number in range(4) for num_frames in (17, 33, 49)]
    calibrate_audio_latents(
        vae,
        (
            spectrogram(vae, sound(heard_scenes(16, f"calibrate {number}"), num_frames, RATE), RATE)
            for number, num_frames in lengths
        ),
    )
    return vae


@torch.no_grad()
def vae_scores(vae: AutoencoderKLLTX2Audio, mel: Tensor) -> Scores:
    """Mean absolute error of a log-mel spectrogram `[B, 2, T, M]` in nats, everywhere and where there is sound."""
    made = vae(mel).sample
    error = (made - mel[:, :, : made.shape[2]]).abs()
    heard = error[mel[:, :, : made.shape[2]] > QUIET].mean().item()
    return {"negative_mel_error": -heard, "mel_error_everywhere": error.mean().item()}


def train_vocoder(folder: Path, vae: AutoencoderKLLTX2Audio, place: Place = CPU, steps: int = 4000) -> LTX2Vocoder:
    """The vocoder, on spectrograms of real sound and on those that the audio VAE decodes from noisy latents.

    Trained as a whole it gives both sides the same sound, which is nearly right. So one side is trained, and doubled.
    """
    torch.manual_seed(0)
    vae, side = vae.to(place.device), LTX2Vocoder(**VOCODER_SIDE).to(place.device)
    scenes = heard_scenes(48, "sound", "validation")
    real = sound(scenes, 33, RATE).to(place.device)
    mels = {"real": spectrogram(vae, real, RATE)}
    mels["decoded"] = handed_on(vae, mels["real"], noisy=False)
    batches = Voiced(vae, max(1, place.times // 3))
    # Spectra alone teach silence first: at most frequencies there is nothing, and they do not tell which way to sound.
    weights = {"tone": VocoderWeights(stft=0, mel=0, samples=2), "right": VocoderWeights(stft=0.5, mel=0.5, samples=2)}
    settling = replace(OPTIONS, schedule="linear", warmup_steps=0)
    for goal, weighting in weights.items():
        phases = [Phase("learn", batches, steps, 3e-3, OPTIONS, every=200, enough=0.95)]
        if goal == "right":
            phases.append(Phase("settle", batches, steps // 4, 3e-3, settling))
        step = VocoderStep(side, weighting)
        train(
            folder / goal, step, phases, lambda: vocoder_scores(doubled(side), mels, real, scenes), f"decoded_{goal}"
        )
    return doubled(side).eval().cpu()


@torch.no_grad()
def doubled(side: LTX2Vocoder) -> LTX2Vocoder:
    """A vocoder whose two sides are made alike, neither of which hears the other."""
    both = LTX2Vocoder(**VOCODER).to(side.device)
    weights, biases = torch.eye(2, device=side.device)[:, :, None], torch.ones(2, device=side.device)
    both.load_state_dict(
        {name: torch.kron(weights if one.ndim == 3 else biases, one) for name, one in side.state_dict().items()}
    )
    return both


@torch.no_grad()
def handed_on(vae: AutoencoderKLLTX2Audio, mel: Tensor, noisy: bool) -> Tensor:
    """What the audio VAE decodes of spectrograms `[B, 2, T, M]`, T cut to 4 k + 1 frames."""
    return vae(mel, sample_posterior=noisy).sample


class Voiced:
    """Spectrograms of stretches of one side, every other pair after the audio VAE, with the sound that is wanted of them.

    Args:
        vae: The audio VAE, on the device of the batches.
        times: As many times the sounds that two CPU cores are given.
    """

    def __init__(self, vae: AutoencoderKLLTX2Audio, times: int = 1) -> None:
        self.vae, self.times = vae, times
        made = [waveforms(number, HOP_HZ).to(vae.device) for number in range(GROUPS * times)]
        self.pools = [made[place :: len(FRAMES)] for place in range(len(FRAMES))]

    def __call__(self, number: int) -> dict[str, Tensor]:
        """The batch of a step."""
        draw = random.Random(f"voiced {number}")
        waveform = torch.cat(draw.sample(self.pools[number % len(self.pools)], self.times))
        # Scenes are seldom far to one side.
        gains = [[math.exp(draw.uniform(math.log(0.2), 0)) for _ in range(2)] for _ in waveform]
        waveform = waveform * torch.tensor(gains, device=waveform.device)[..., None]
        mel = spectrogram(self.vae, waveform, RATE)
        through = handed_on(self.vae, mel[::2], noisy=True)
        mel = mel[:, :, : through.shape[2]].clone()
        mel[::2] = through
        hop = RATE // HOP_HZ
        wanted = F.pad(waveform, (0, mel.shape[2] * hop - waveform.shape[2])).unflatten(2, (-1, hop))
        starts = [draw.randrange(mel.shape[2] - STRETCH + 1) for _ in mel]
        mel, wanted = (
            torch.stack([one[:, start : start + STRETCH] for one, start in zip(rows, starts)]).flatten(0, 1)[:, None]
            for rows in (mel, wanted)
        )
        return {"mel": mel, "waveform": wanted.flatten(2)}


@torch.no_grad()
def vocoder_scores(vocoder: LTX2Vocoder, mels: Mapping[str, Tensor], real: Tensor, scenes: Sequence[Scene]) -> Scores:
    """Scores of what a vocoder makes of spectrograms of 33 frames of scenes, by the spectrograms' names.

    "tone" is the share of clips whose pitch is right, whose place is within a twentieth of the width, and whose
    loudness is within 2 dB; "right" that of clips which also have all clicks within 10 ms, and no others.
    """
    found = {}
    for name, mel in mels.items():
        made = vocoder(mel).cpu()
        samples = min(made.shape[-1], real.shape[-1])
        made, wanted = made[..., :samples], real[..., :samples].cpu()
        rows = [differences(*pair, scene) for *pair, scene in zip(made, wanted, scenes)]
        found[f"{name}_distance_db"] = log_spectral_distance_db(made, wanted)
        for kind in rows[0]:
            found[f"{name}_{kind}"] = sum(row[kind] for row in rows) / len(rows)
        for goal, most in MOST.items():
            good = [all(row[kind] <= limit for kind, limit in most.items()) for row in rows]
            found[f"{name}_{goal}"] = sum(good) / len(good)
    return found


_TONE = {"wrong_pitch": 0, "pan_error": 0.05, "loudness_db": 2}
MOST = {"tone": _TONE, "right": _TONE | {"wrong_clicks": 0, "click_ms": 10}}
"""Largest differences of a clip whose tone, or all of it, is right."""


def differences(made: Tensor, wanted: Tensor, scene: Scene) -> Scores:
    """How far the sound `[2, N]` of a scene is from what is wanted, as it is read."""
    heard, real = hear(made, RATE), hear(wanted, RATE)
    pairs = list(zip(heard.clicks_s, real.clicks_s))
    return {
        "wrong_pitch": float(heard.shape != scene.shape),
        "wrong_clicks": float(len(heard.clicks_s) != len(real.clicks_s)),
        "click_ms": max((abs(first - second) * 1000 for first, second in pairs), default=0.0),
        "pan_error": (heard.pan - real.pan).abs().mean().item(),
        "loudness_db": abs(20 * math.log10(max(heard.loudness, 1e-5) / real.loudness)),
    }


def log_spectral_distance_db(made: Tensor, wanted: Tensor, range_db: float = 60) -> float:
    """Root mean square over frequencies of the difference of power spectra in dB, averaged over windows of 43 ms.

    Args:
        made, wanted: Waveforms `[B, 2, N]`.
        range_db: What lies further below the loudest line of a clip counts as that. Default 60.
    """
    window = torch.hann_window(1024)
    levels = [
        20
        * torch.stft(wave.flatten(0, 1), 1024, 256, window=window, return_complex=True).abs().clamp(min=1e-6).log10()
        for wave in (made, wanted)
    ]
    floor = levels[1].amax((1, 2), keepdim=True) - range_db
    difference = levels[0].maximum(floor) - levels[1].maximum(floor)
    return difference.square().mean(1).sqrt().mean().item()


def main() -> None:
    """Train both until their scores are good."""
    parser = arguments(__doc__)
    parser.add_argument("--vocoder-steps", type=int, default=4000, help="most steps towards each of its two goals")
    given = parser.parse_args()
    out: Path = given.out
    if not (out / "audio_vae").exists():
        train_audio_vae(out / "sound" / "audio_vae").save_pretrained(out / "audio_vae")
    audio_vae = AutoencoderKLLTX2Audio.from_pretrained(out / "audio_vae").eval()
    vocoder = train_vocoder(out / "sound" / "vocoder", audio_vae, given.place, given.vocoder_steps)
    vocoder.save_pretrained(out / "vocoder")


if __name__ == "__main__":
    main()
