"""A step of training for every network of LTX-2, the loop that runs it, and what networks need before and after.

| network | step | a batch holds | before | after |
|---|---|---|---|---|
| video VAE | `VideoVaeStep` | `pixels` | `spread_latents` | `calibrate_video_latents` |
| audio VAE | `AudioVaeStep` | `mel` (`spectrogram`) | `spread_latents`, `centre_output` | `calibrate_audio_latents` |
| vocoder | `VocoderStep` | `mel`, `waveform` | `set_spectrum_filters` (2.3) | |
| upsampler | `UpsamplerStep` | `small`, `large` (`latent_pair`) | the video VAE | |
| text encoder | `TextEncoderStep` | `input_ids`, `attention_mask` (`tokenized`) | | |
| transformer | `TransformerStep` | latents and contexts | `initialise_transformer` | |
| connectors | `ConnectorsStep` | latents and `prompts` | | |
"""

from .audio_vae import AudioVaeStep, AudioVaeWeights, spectrogram
from .connectors import ConnectorsStep
from .critics import PairCritic, WaveCritics
from .fit import FitOptions, fit, save_networks
from .initialise import centre_output, spread_latents
from .muon import Muon
from .statistics import calibrate_audio_latents, calibrate_video_latents
from .step import TrainingStep, trained_parameters, weighted
from .text_encoder import TextEncoderStep, tokenized
from .transformer import TransformerStep, initialise_transformer, text_to_video_and_audio
from .upsampler import UpsamplerStep, UpsamplerWeights, latent_pair
from .video_vae import VideoVaeStep, VideoVaeWeights
from .vocoder import VocoderStep, VocoderWeights, set_spectrum_filters

__all__ = [
    "AudioVaeStep",
    "AudioVaeWeights",
    "ConnectorsStep",
    "FitOptions",
    "Muon",
    "PairCritic",
    "TextEncoderStep",
    "TrainingStep",
    "TransformerStep",
    "UpsamplerStep",
    "UpsamplerWeights",
    "VideoVaeStep",
    "VideoVaeWeights",
    "VocoderStep",
    "VocoderWeights",
    "WaveCritics",
    "calibrate_audio_latents",
    "calibrate_video_latents",
    "centre_output",
    "fit",
    "initialise_transformer",
    "latent_pair",
    "save_networks",
    "set_spectrum_filters",
    "spectrogram",
    "spread_latents",
    "text_to_video_and_audio",
    "tokenized",
    "trained_parameters",
    "weighted",
]
