"""What others are given: model cards beside what is saved, and uploads to the Hub."""

from .card import CARD_NAME, CLIP_TAGS, Card, MakesCard, Origin, hub_id, origin, put_card, table
from .hub import OPTIONS, Push, check_repository_name, link_or_copy, publish_files, publish_folder
from .scripts import CALLS, LORA_TAGS, PROMPT, Call, Script, component_card, quoted
