"""Seeded weights of the miniature models, scaled so that every output has a sensible size.

Each tensor is drawn from its own generator, seeded by its name: the order in which a model builds its parts does not
matter. The last layer of each network is then scaled to a wanted standard deviation of the output.
"""

import math
import zlib
from collections.abc import Callable

import torch
from torch import nn

# Standard deviations of outputs: half the range of a pixel, sound that is audible and far from clipping.
LATENT_STD = 1.0
PIXEL_STD = 0.4
LOG_MEL_STD = 2.0
WAVE_STD = 0.1
MEAN_LOG_MEL = -5.0
# Weight of the norms of queries and keys; logits grow with its square.
_TEXT_ATTENTION_SHARPNESS = 2.0


@torch.no_grad()
def draw_weights(model: nn.Module, seed: str) -> None:
    """Fill every parameter of a model.

    Matrices and filters keep the variance of their input; vectors stay near the value they are constructed with (zeros
    of biases, ones of norms), and so do modulation tables.
    """
    for name, parameter in model.named_parameters():
        generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}/{name}".encode()))
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim < 2 or (parameter.shape[-1] == 1 and parameter.ndim < 4):
            start = 1.0 if (parameter == 1).all() else 0.0
            # Text fills a hundredth of its 1024 places: only sharp attention lets a prompt matter.
            start = _TEXT_ATTENTION_SHARPNESS if "attn2.norm_" in name else start
            parameter.copy_(start + 0.05 * noise)
        elif "table" in name or "probe" in name:
            parameter.copy_(0.2 * noise)
        elif "registers" in name:
            parameter.copy_(noise)
        elif "embed_tokens" in name or "position_embedding" in name:
            parameter.copy_(noise / parameter.shape[-1] ** 0.5)
        else:
            parameter.copy_(noise / _fan_in(model, name, parameter) ** 0.5)


@torch.no_grad()
def draw_latent_statistics(model: nn.Module, seed: str) -> None:
    """Give a VAE per-channel statistics that are neither zero nor one, so that forgetting them shows."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}/statistics".encode()))
    model.latents_mean.copy_(0.2 * torch.randn(model.latents_mean.shape, generator=generator))
    model.latents_std.copy_(torch.exp(0.2 * torch.randn(model.latents_std.shape, generator=generator)))


@torch.no_grad()
def smooth_decoder(decoder: nn.Module, patch_size: int) -> None:
    """Make the filters of a video decoder low-pass, so that random latents become moving blobs instead of snow.

    Where a convolution is followed by depth-to-space, all sub-pixels of a channel get the same filter.
    """
    tap = torch.tensor([0.25, 0.5, 0.25])
    low_pass = tap[:, None, None] * tap[:, None] * tap
    for name, layer in decoder.named_modules():
        if not isinstance(layer, nn.Conv3d):
            continue
        sub_pixels = patch_size**2 if name == "conv_out.conv" else 1
        if ".upsamplers." in name:
            sub_pixels = math.prod(decoder.get_submodule(name.removesuffix(".conv.conv")).stride)
        # The centre tap of each filter, drawn with the variance of 27 inputs, stands for all of them.
        gains = layer.weight[::sub_pixels, :, 1:2, 1:2, 1:2] * 27**0.5
        layer.weight.copy_((gains * low_pass).repeat_interleave(sub_pixels, dim=0))
        layer.bias.copy_(layer.bias[::sub_pixels].repeat_interleave(sub_pixels))


@torch.no_grad()
def scale_output(
    layer: nn.Module, run: Callable[[], torch.Tensor], std: float, mean: float = 0.0, sub_pixels: int = 1
) -> None:
    """Scale the last layer of a network so that every channel of `run()` has the given spread and mean.

    Args:
        layer: Convolution whose first rows, `sub_pixels` for each channel, make the channels of the result. One
            without bias leaves the mean alone.
        run: Returns `[B, C, ...]`, which must be nearly linear in the layer's weights.
        std: Wanted standard deviation of every channel.
        mean: Wanted mean of every channel.
        sub_pixels: Rows of the layer for each channel.
    """
    channels = run().float().transpose(0, 1).flatten(1)
    rows = len(channels) * sub_pixels
    gain = (std / channels.std(dim=1)).repeat_interleave(sub_pixels)
    layer.weight[:rows] *= gain.view(-1, *[1] * (layer.weight.ndim - 1))
    if layer.bias is not None:
        centre = channels.mean(dim=1).repeat_interleave(sub_pixels)
        layer.bias[:rows] = (layer.bias[:rows] - centre) * gain + mean


def _fan_in(model: nn.Module, name: str, parameter: torch.Tensor) -> float:
    """Number of inputs that each output sums."""
    owner = model.get_submodule(name.rpartition(".")[0])
    if isinstance(owner, nn.ConvTranspose1d):
        return parameter.shape[0] * parameter.shape[2] / owner.stride[0]
    return parameter[0].numel()
