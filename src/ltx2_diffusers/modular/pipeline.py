"""Modular pipelines: components from every LTX-2 repository, for blocks to compute with."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch
from diffusers.modular_pipelines import ModularPipeline, ModularPipelineBlocks
from diffusers.modular_pipelines.ltx2 import utils as constants
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from .. import checks
from ..adapters.mixin import LTX2LoraMixin
from ..checkpoints.class_names import PACKAGE, to_ours, to_portable
from ..pipelines.conditions import as_conditions
from ..pipelines.engine import OUTPUT_TYPES
from ..pipelines.generation import LTX2GenerationPipeline
from ..pipelines.plan import ModelSizes, Size, plan_clip
from . import blocks as known_blocks
