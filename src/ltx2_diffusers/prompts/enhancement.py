"""Rewriting a short prompt into a detailed one with the pipeline's own language model."""

from collections.abc import Sequence

import PIL.Image
import torch
from diffusers.utils import logging

from ..memory.on_demand import session
from .chat import DEDICATED_ENHANCER, ChatModel
from .encoding import Enhancement

logger = logging.get_logger(__name__)

# The models were trained on long captions; these texts ask a language model for one in the same manner.
TEXT_SYSTEM_PROMPT = """\
You help a film maker. Turn the idea you are given into one prompt for a model that makes video together with sound.
- Keep everything the idea asks for: style, subjects, actions, camera, sound. Where it is vague, decide: name the light, \
textures, materials and the place; for a person give gender, clothing, hair and expression. Add nobody who was not asked \
for. In a first-person view leave the viewer undescribed.
- Write in the present progressive and in the order in which things happen. If nothing happens, let something natural move.
- Weave the sounds in beside the actions that make them, and name them exactly.
- Let people speak only if the idea has talking or singing. Then quote every word, say how the voice sounds, the language \
if it is not English and the accent if it matters. Leave given lines as they are except for typing errors; otherwise \
invent none.
- You may open with "Style: ..." when a style is clear; cinematic and realistic is the default.
- Describe only what can be seen and heard, in plain and restrained words. No camera motion, cuts or times of your own. \
Do not begin with how the scene opens, nor with a special character.
- An idea that is already detailed and in order stays as it is; add only the sound it lacks.
Answer with one English paragraph without headings, lists or markup. Never ask back. Return an unsafe or meaningless idea \
unchanged.
Example. Idea: a woman takes a call in a café. Answer: Style: cinematic-realistic. In a small café with warm light a woman \
in a green coat is lifting her phone to her ear while cups are clinking behind the counter and rain is pattering against \
the window. "I'm already here," she is saying in a low, amused voice, turning towards the door, whose bell is ringing."""
IMAGE_SYSTEM_PROMPT = """\
You help a film maker. You see the first frame of a video and an idea for what follows. Write one prompt for a model that \
continues the frame with motion and sound.
- Look at the subject, the place, the style and the mood first. Then describe only what changes from this frame on: \
repeating what is visible, or getting it wrong, makes the video cut to something else.
- Where the idea and the frame disagree the idea wins; describe how one becomes the other.
- Write in the present progressive and in the order in which things happen.
- Spread the sounds through the text beside the actions that make them. If people talk and no lines are given, write \
short ones and quote them, with the sound of the voice. Leave given lines as they are.
- Describe only what can be seen and heard, no feelings or intentions. No camera motion, cuts or times of your own.
Answer with one concise English paragraph without headings, lists or markup. Never ask back. Return an unsafe or \
meaningless idea unchanged."""


def enhance(
    chat: ChatModel,
    prompts: Sequence[str],
    wish: Enhancement,
    device: torch.device,
    generator: torch.Generator | list[torch.Generator] | None = None,
    image: PIL.Image.Image | None = None,
) -> list[str]:
    """One rewritten text per prompt; the prompt itself where the language model gave no answer.

    Args:
        chat: The language model.
        prompts: Texts.
        wish: How they are rewritten.
        device: Where to compute.
        generator: Its initial seed, or that of the first one, takes the place of the wish's.
        image: First frame of the video, which the texts are to continue.
    """
    system_prompt, question = wish.system_prompt, "user prompt: {}" if image is None else "User Raw Input Prompt: {}."
    if system_prompt is None and chat.defaults is DEDICATED_ENHANCER:
        # Reading them imports pipelines of diffusers.
        from .diffusers_texts import LTX2_5_I2V_DEFAULT_SYSTEM_PROMPT, LTX2_5_T2V_DEFAULT_SYSTEM_PROMPT

        system_prompt = LTX2_5_T2V_DEFAULT_SYSTEM_PROMPT if image is None else LTX2_5_I2V_DEFAULT_SYSTEM_PROMPT
    elif system_prompt is None:
        system_prompt = TEXT_SYSTEM_PROMPT if image is None else IMAGE_SYSTEM_PROMPT
    first = generator[0] if isinstance(generator, list) else generator
    with session(chat.model):
        answers = [
            chat.answer(
                system_prompt,
                question.format(text),
                seed=wish.seed if first is None else first.initial_seed(),
                device=device,
                image=image,
                max_new_tokens=wish.max_new_tokens,
                generation_kwargs=wish.generation_kwargs,
            )
            for text in prompts
        ]
    for text, answer in zip(prompts, answers):
        if not answer.strip():
            logger.warning(f"the language model gave no answer to the prompt {text!r}, which is used as it is")
    return [answer if answer.strip() else text for text, answer in zip(prompts, answers)]
