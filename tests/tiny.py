"""What tools outside this repository import to make tiny models; see `tests.support.tiny`."""

from tests.support.tiny import CHAT_TEMPLATE, byte_level

__all__ = ["CHAT_TEMPLATE", "byte_level"]
