"""Screen `length`: too_long, in characters or in turns."""

from bactrian.data.records import Record
from bactrian.data.screens import words
from bactrian.data.screens.settings import Length


def check(settings: Length, record: Record) -> str | None:
    """`too_long` if any branch of the record is."""
    for messages in words.conversations(record):
        turns = sum(message.role != "system" for message in messages)
        characters = sum(len(message.content) for message in messages)
        if settings.max_turns is not None and turns > settings.max_turns:
            return "too_long"
        if settings.max_characters is not None and characters > settings.max_characters:
            return "too_long"
    return None
