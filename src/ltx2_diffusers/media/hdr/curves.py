"""Linear light to signals and back, in float32 on the tensor's device.

Light is linear Rec.709 (red, green, blue in the last axis), in which 1.0 is diffuse white; signals lie in [0, 1].
"""

import math

import numpy as np
import torch

from ..colours import BT2020, HLG_CURVE, PQ_CURVE, PQ_PEAK_NITS, WHITE_NITS, to_bt709_primaries

# ARRI LogC3 at EI 800: c * log10(a * x + b) + d from the cut on, and the line e * x + f below.
_A, _B, _C, _D, _E, _F, _CUT = 5.555556, 0.052272, 0.247190, 0.385537, 5.367655, 0.092809, 0.010591
# ACEScct (Academy S-2016-001): the line below the cut.
_SLOPE, _OFFSET, _ACES_CUT_SIGNAL = 10.5402377416545, 0.0729055341958355, 0.155251141552511
# Linear red, green and blue of Rec.709 from those of ACEScg, and those of Rec.2020 from Rec.709.
_FROM_ACESCG = np.array([(1.70505, -0.62179, -0.08326), (-0.13026, 1.1408, -0.01055), (-0.024, -0.12897, 1.15297)])
_TO_BT2020 = np.linalg.inv(to_bt709_primaries(BT2020).astype(np.float64)).astype(np.float32)
# Diffuse white as HLG's scene light, at 75 % of the signal.
_HLG_WHITE = (math.exp((0.75 - HLG_CURVE[2]) / HLG_CURVE[0]) + HLG_CURVE[1]) / 12


def logc3(light: torch.Tensor) -> torch.Tensor:
    """ARRI LogC3 (EI 800) signal of light."""
    logarithm = _C * torch.log10(torch.clamp(_A * light + _B, min=1e-12)) + _D
    return torch.where(light >= _CUT, logarithm, _E * light + _F).clamp(0, 1)


def from_logc3(signal: torch.Tensor) -> torch.Tensor:
    """Light of a LogC3 signal, -0.0173 to 55.08; values below 0 are shadows darker than the sensor's black."""
    signal = signal.clamp(0, 1)
    exponential = (torch.pow(10.0, (signal - _D) / _C) - _B) / _A
    return torch.where(signal >= _E * _CUT + _F, exponential, (signal - _F) / _E)


def from_acescct(signal: torch.Tensor) -> torch.Tensor:
    """Light of an ACEScct signal."""
    signal = signal.clamp(0, 1)
    light = torch.where(signal > _ACES_CUT_SIGNAL, torch.pow(2.0, 17.52 * signal - 9.72), (signal - _OFFSET) / _SLOPE)
    return _mixed(light, _FROM_ACESCG)


TRANSFORMS = {"logc3": from_logc3, "acescct": from_acescct}
"""Light of the signals that networks work on."""


def pq(light: torch.Tensor, white_nits: float = WHITE_NITS, peak_nits: float = PQ_PEAK_NITS) -> torch.Tensor:
    """PQ signal (SMPTE ST 2084, Rec.2020) of light.

    Args:
        light: `[..., 3]`; what is below 0 is black.
        white_nits: Luminance of light 1.0 in cd/m2; default 203.
        peak_nits: Luminance where light is clipped, in each channel; default 10000.
    """
    luminance = (_mixed(light, _TO_BT2020) * white_nits).clamp(0, peak_nits) / PQ_PEAK_NITS
    m1, m2, c1, c2, c3 = PQ_CURVE
    power = luminance**m1
    return ((c1 + c2 * power) / (1 + c3 * power)) ** m2


def hlg(light: torch.Tensor) -> torch.Tensor:
    """HLG signal (ITU-R BT.2100, Rec.2020) of light `[..., 3]`: white at 75 %, and all above it within the rest.

    What is below 0 is black.
    """
    light = _mixed(light, _TO_BT2020).clamp(min=0)
    bend = _HLG_WHITE / (1 - _HLG_WHITE)
    shoulder = 1 - (1 - _HLG_WHITE) * torch.exp(-bend * (light - 1))
    scene = torch.where(light <= 1, light * _HLG_WHITE, shoulder)
    a, b, c = HLG_CURVE
    logarithm = a * torch.log((12 * scene - b).clamp(min=1e-12)) + c
    return torch.where(scene <= 1 / 12, torch.sqrt(3 * scene), logarithm).clamp(0, 1)


def srgb(light: np.ndarray) -> np.ndarray:
    """sRGB signal of light in [0, 1]."""
    return np.where(light <= 0.0031308, light * 12.92, 1.055 * np.power(light, 1.0 / 2.4) - 0.055)


def _mixed(light: torch.Tensor, matrix: np.ndarray) -> torch.Tensor:
    return light.float() @ torch.from_numpy(matrix.T.astype(np.float32)).to(light.device)
