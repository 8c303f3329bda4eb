"""How a story hears what its nodes hear, beside the application that they are for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from trio_overlay.nodes.streams import Stream
from trio_overlay.protocol.json import JSON

T = TypeVar("T")

_STORY = "trio_overlay.testing"
"""The key of what the story says, which no application says."""


def as_told(content: JSON) -> JSON:
    """What a node says for the sake of the story."""
    return {_STORY: content}


def is_told(data: JSON) -> bool:
    """Whether a node has said *data* for the sake of the story, and not for the application."""
    return isinstance(data, dict) and data.keys() == {_STORY}


def content_of(data: JSON) -> JSON:
    """What was said, of *data* that `is_told`."""
    assert isinstance(data, dict)
    return data[_STORY]


class Overheard(Stream[T], Generic[T]):
    """To stand in the place of *stream*, which is empty: *hear* is called with what comes.

    What *is_for_story* never comes out: the application reads the rest, as if there was nothing
    else. It leaves when it would come out, so that items leave in the order in which they came.
    """

    def __init__(
        self,
        stream: Stream[T],
        hear: Callable[[T], object],
        is_for_story: Callable[[T], bool] = lambda _: False,
    ) -> None:
        super().__init__(
            max_items=stream._max_items,
            max_bytes=stream._max_bytes,
            keeps_what_is_read=stream._keeps_what_is_read,
            on_leave=stream._on_leave,
        )
        self._hear = hear
        self._is_for_story = is_for_story

    def put(self, item: T, size: int = 0) -> None:
        if not self._is_closed:
            self._hear(item)
        super().put(item, size)
        self._skip()

    def _leave(self) -> T:
        item = super()._leave()
        self._skip()
        return item

    def _skip(self) -> None:
        while self._items and self._is_for_story(self._items[0][0]):
            super()._leave()
