"""The texts that diffusers has as constants of its LTX-2 pipelines, as the installed diffusers has them."""

from diffusers.pipelines.ltx2.utils import DEFAULT_NEGATIVE_PROMPT as DEFAULT_NEGATIVE_PROMPT
from diffusers.pipelines.ltx2.utils import I2V_DEFAULT_SYSTEM_PROMPT as I2V_DEFAULT_SYSTEM_PROMPT
from diffusers.pipelines.ltx2.utils import LTX2_5_I2V_DEFAULT_SYSTEM_PROMPT as LTX2_5_I2V_DEFAULT_SYSTEM_PROMPT
from diffusers.pipelines.ltx2.utils import LTX2_5_T2V_DEFAULT_SYSTEM_PROMPT as LTX2_5_T2V_DEFAULT_SYSTEM_PROMPT
from diffusers.pipelines.ltx2.utils import T2V_DEFAULT_SYSTEM_PROMPT as T2V_DEFAULT_SYSTEM_PROMPT
