"""Memory: what a generation needs, counted without computing it, and plans that fit a device."""

from .needs import Clips, Counts, Needs, variants
from .parts import ModelParts, parts_of
from .plan import DEVICES, DTYPES, ClipWish, MemoryPlan, PartPlan
from .policy import DENOISER, Budget, Choice, chosen
from .stages import DECODINGS
