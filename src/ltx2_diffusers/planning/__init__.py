"""Memory: what a generation needs, counted without computing it, and plans that fit a device."""

from .lines import SIZES, Lines
from .needs import Clips, Counts, Needs, variants
from .parts import COMPONENTS, DIFFUSION, ModelParts, parts_of
from .plan import DEVICES, DTYPES, ClipWish, MemoryPlan, PartPlan
from .policy import DENOISER, LANGUAGE_MODEL, Budget, Choice, chosen
from .stages import DECODINGS
