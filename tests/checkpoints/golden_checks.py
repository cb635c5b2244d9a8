"""Every component on golden vectors: what a planted error has to be noticed by."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

import ltx2_diffusers
from ltx2_diffusers.checkpoints.self_check import call, connectors, decode, encode, transformer
from tests.golden_data import GOLDEN_DIR, assert_within, load_json, load_tensors
from tests.golden_parts import golden_file


@dataclass(frozen=True)
class GoldenCheck:
    """A component with the weights of a golden folder, one case, and the row of the table that judges it.

    `weights` is a file of one component, or of a whole checkpoint, which holds the configs, too.
    """

    name: str
    row: str
    class_name: str
    folder: str
    case: str
    run: Any
    expected: str
    weights: str = "original.safetensors"

    def model(self) -> Any:
        """The component; its weights are in the original layout or in diffusers'."""
        model_class, folder = getattr(ltx2_diffusers, self.class_name), GOLDEN_DIR / self.folder
        original, config = golden_file(folder / self.weights), folder / "config.json"
        if original.is_file():
            options = {"config": folder} if config.is_file() else {}
            return model_class.from_single_file(original, dtype=torch.float32, device="cpu", **options)
        model = model_class.from_config(load_json(config)).eval()
        model.load_state_dict(load_tensors(folder / "diffusers.safetensors"))
        return model

    @torch.no_grad()
    def check(self, model: Any) -> None:
        """Raise `AssertionError` if the model computes other numbers than are recorded."""
        case = load_tensors(f"{self.folder}/{self.case}.safetensors")
        assert_within(self.run(model, case), case[self.expected], self.row, self.name)


def mean(key: str, model: Any, case: dict[str, torch.Tensor]) -> torch.Tensor:
    """The mean of what a VAE encodes."""
    return encode(key, model, case).chunk(2, dim=1)[0]


_FILE, _OUTPUTS = "ltx-2-tiny-dev.safetensors", "outputs/ltx-2-tiny-dev"
_TRANSFORMER, _VAE = "LTX2AVTransformer3DModel", "AutoencoderKLLTX2Video"
_OWN, _BWE = "transformer with its own angles", "vocoder with bandwidth extension"
GOLDEN_CHECKS = (
    GoldenCheck("transformer 2.0, video", _OWN, _TRANSFORMER, "transformer/ltx20_split", "cases/t2v", partial(transformer, 0), "expected_video"),
    GoldenCheck("transformer 2.0, audio", _OWN, _TRANSFORMER, "transformer/ltx20_split", "cases/t2v", partial(transformer, 1), "expected_audio"),
    GoldenCheck("transformer 2.3, video", _OWN, _TRANSFORMER, "transformer/ltx23", "cases/t2v", partial(transformer, 0), "expected_video"),
    GoldenCheck("transformer 2.3, audio", _OWN, _TRANSFORMER, "transformer/ltx23", "cases/t2v", partial(transformer, 1), "expected_audio"),
    GoldenCheck("connectors 2.0", "connectors", "LTX2TextConnectors", "connectors/ltx20_split", "cases/batch_left_padded", partial(connectors, 0), "expected_video_embeds"),
    GoldenCheck("connectors 2.3", "connectors", "LTX2TextConnectors", "connectors/ltx23", "cases/batch_left_padded", partial(connectors, 1), "expected_audio_embeds"),
    GoldenCheck("video VAE, decode", "video VAE", _VAE, "video_vae", "cases/decode_f1_2x2", partial(decode, "latent"), "video"),
    GoldenCheck("video VAE, encode", "video VAE", _VAE, "video_vae", "cases/encode_f25_32x32", partial(encode, "video"), "moments"),
    GoldenCheck("audio VAE, decode", "checkpoint", "AutoencoderKLLTX2Audio", "checkpoint", _OUTPUTS, partial(decode, "input.audio_vae.decode.z"), "expected.audio_vae.decode.sample", _FILE),
    GoldenCheck("audio VAE, encode", "checkpoint", "AutoencoderKLLTX2Audio", "checkpoint", _OUTPUTS, partial(mean, "input.audio_vae.encode.sample"), "expected.audio_vae.encode.mean", _FILE),
    GoldenCheck("vocoder 2.0", "checkpoint", "LTX2Vocoder", "checkpoint", _OUTPUTS, partial(call, "input.vocoder.hidden_states"), "expected.vocoder.audio", _FILE),
    GoldenCheck("vocoder 2.3", _BWE, "LTX2VocoderWithBWE", "vocoder/bwe", "cases/waveform_aligned", partial(call, "mel"), "waveform_reference"),
    GoldenCheck("latent upsampler x2", "latent upsampler", "LTX2LatentUpsamplerModel", "latent_upsampler/x2_rational", "cases/a", partial(call, "latent"), "upsampled"),
)  # fmt: skip
