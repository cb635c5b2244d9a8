"""Captions made ready for training: without the phrases of language models, and with a trigger word."""

from itertools import product

# In the order in which they are tried; the first that a caption begins with is removed.
LLM_PREFIXES = (
    *("In the video,", "In this video,", "In this video clip,", "In the clip,", "Caption:"),
    *(
        f"{subject} {verb}"
        for subject, verb in product(
            (
                *("This video", "The video", "This clip", "The clip", "The animation"),
                *("This image", "The image", "This picture", "The picture"),
            ),
            ("shows", "depicts", "features", "captures", "highlights", "introduces", "presents"),
        )
    ),
)
"""Phrases with which language models begin captions; those of the Lightricks trainer."""
_CAPTIONER_PHRASES = tuple(
    f"{article} {subject} {verb} "
    for article, subject, verb in product(
        ("The", "This"),
        ("video", "image", "scene", "animated sequence", "clip", "footage"),
        ("displays", "shows", "features", "depicts", "presents", "showcases", "captures", "contains"),
    )
)


def without_llm_prefix(caption: str) -> str:
    """A caption without blanks around it and without the phrase that it begins with, if that is one of `LLM_PREFIXES`.

    Upper and lower case count, words need not end where a phrase does, and one phrase is removed.
    """
    caption = caption.strip()
    prefix = next((phrase for phrase in LLM_PREFIXES if caption.startswith(phrase)), "")
    return caption.removeprefix(prefix).strip()


def with_trigger(caption: str, trigger: str | None) -> str:
    """A caption behind a trigger word and a blank; without one, or with blanks alone, the caption as it is."""
    trigger = (trigger or "").strip()
    return f"{trigger} {caption}" if trigger else caption


def without_captioner_phrases(text: str) -> str:
    """What a captioning model wrote, without the first occurrence of each phrase like "The video shows "."""
    for phrase in _CAPTIONER_PHRASES:
        text = text.replace(phrase, "", 1)
    return text
