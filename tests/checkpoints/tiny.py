"""The miniature checkpoints and the classes of this package that belong to them."""

from pathlib import Path

from ltx2_diffusers.models.audio_vae import AutoencoderKLLTX2Audio
from ltx2_diffusers.models.connectors import LTX2TextConnectors
from ltx2_diffusers.models.latent_upsampler import LTX2LatentUpsamplerModel
from ltx2_diffusers.models.transformer import LTX2AVTransformer3DModel
from ltx2_diffusers.models.video_vae import AutoencoderKLLTX2Video
from ltx2_diffusers.models.vocoder import LTX2Vocoder, LTX2VocoderWithBWE
from tests.golden_data import GOLDEN_DIR, golden_cases

CHECKPOINTS = golden_cases("checkpoint")
MODELS = [path for path in CHECKPOINTS if "upscaler" not in path.name]
UPSCALERS = [path for path in CHECKPOINTS if "upscaler" in path.name]
V20 = GOLDEN_DIR / "checkpoint" / "ltx-2-tiny-dev.safetensors"
V23 = GOLDEN_DIR / "checkpoint" / "ltx-2.3-tiny-dev.safetensors"

CLASSES = {
    cls.__name__: cls
    for cls in (
        LTX2AVTransformer3DModel,
        LTX2TextConnectors,
        AutoencoderKLLTX2Video,
        AutoencoderKLLTX2Audio,
        LTX2Vocoder,
        LTX2VocoderWithBWE,
        LTX2LatentUpsamplerModel,
    )
}


def expected_folder(checkpoint: Path) -> Path:
    """The folder in diffusers' layout that belongs to an original file."""
    return GOLDEN_DIR / "checkpoint" / "expected_diffusers" / checkpoint.stem
