"""Packets of a media file copied unchanged into a new one, and the rule that says before anything else which can be."""

from .packets import CopiedPackets, copy_description
from .rule import MP4_SOUND, EncodedAnewWarning, copy_obstacle, encoding_notice, warn_of_encoding

__all__ = [
    "MP4_SOUND",
    "CopiedPackets",
    "EncodedAnewWarning",
    "copy_description",
    "copy_obstacle",
    "encoding_notice",
    "warn_of_encoding",
]
