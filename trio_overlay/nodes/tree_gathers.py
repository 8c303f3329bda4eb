"""Questions to a whole subtree, whose answers are combined on the way up; and one that all answer.

A question goes down the tree. Each node answers it, waits for its children's answers, combines what
it has, if it knows how, and passes that up; if it does not, it passes on what comes as it comes.
"""

from __future__ import annotations

import logging
import random
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import TypeAlias, TypeVar

import trio

from trio_overlay.errors import DeliveryFailed, MessageTooLarge, UsageError
from trio_overlay.nodes.tree_cast_links import MAX_MESSAGE, CastLink, cost_of
from trio_overlay.nodes.tree_casts import Casts, check_depth
from trio_overlay.protocol.cast_frames import MAX_COUNT, MAX_TOPIC, Answers, Ask, encode_cast
from trio_overlay.protocol.json import JSON, encode_json

logger = logging.getLogger(__name__)

T = TypeVar("T")

Answer: TypeAlias = Callable[[JSON], Awaitable[JSON]]
"""Given the question, this node's answer."""
Combine: TypeAlias = Callable[[JSON, JSON], JSON]
"""One answer for two; the order in which answers are combined is any."""

MAX_OPEN = 100
"""Questions that a node works on at a time."""
MAX_REMEMBERED = 1000
"""Questions that a node knows to have heard."""
MAX_GATHERED = 16 << 20
"""Bytes of answers, not combined, that who asked takes; others count as missing."""
MAX_HOP_DELAY = 0.25
MAX_TIMEOUT = 86_400.0
ROOT = "the root"
"""Stands among the children that are waited for, when it is the root who was asked."""


@dataclass(frozen=True, slots=True)
class Gathered:
    """What came of a question."""

    value: JSON
    """All answers combined (None if there are none); or a list of them, in no order, if the node
    that asked does not know how to combine them."""
    count: int
    """How many nodes have answered."""
    count_missing: int
    """How many have not, as far as is known: those without an answer to this topic, those below
    a child that was lost or late, and neighbours of the old protocol. A node that changes its
    parent meanwhile may be counted here and as having answered."""


Reply: TypeAlias = Callable[[Answers, int, CastLink | None], None]
"""Passes answers on: a frame, its size, and the child that is to wait until it is gone."""


@dataclass(eq=False)
class _Collection:
    """One question at one node."""

    ask: Ask
    combine: Combine | None
    reply: Reply | None
    """None if it is this node that wants to know."""
    waiting: dict[str, int] = field(default_factory=dict)
    """How many nodes are yet to answer below each child that is asked."""
    parts: list[JSON] = field(default_factory=list)
    """If they can be combined, none or one."""
    size: int = 0
    count: int = 0
    missing: int = 0
    is_done: trio.Event = field(default_factory=trio.Event)


@dataclass(eq=False)
class _Passage:
    """The way back to who asked all."""

    child: str
    question_id: str
    """What the child calls the question."""
    lost: int = 0
    """Answers for which there was no room."""


class Gathers:
    """One node's questions and answers."""

    def __init__(self, casts: Casts, rng: random.Random) -> None:
        self._casts = casts
        self._rng = rng
        self._nursery: trio.Nursery
        self._topics: dict[str, tuple[Answer, Combine | None]] = {}
        self._open: dict[str, _Collection] = {}
        self._heard: OrderedDict[str, None] = OrderedDict()
        self._passages: OrderedDict[str, _Passage] = OrderedDict()
        """For questions to all that came from below."""
        casts.on_question = self._take_question
        casts.on_answers = self._take_answers
        casts.on_lost_child = self._lose_child

    def start(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery

    def set_answer(self, topic: str, answer: Answer, combine: Combine | None) -> None:
        if not (0 < len(topic) <= MAX_TOPIC and topic.isascii() and topic.isprintable()):
            raise ValueError(f"a topic has 1 to {MAX_TOPIC} printable ASCII characters: {topic!r}")
        if topic in self._topics:
            raise UsageError(f"there is an answer to {topic} already")
        self._topics[topic] = (answer, combine)

    async def gather(self, topic: str, question: JSON, timeout: float, *, of_all: bool) -> Gathered:
        """As `TreeNode.gather`."""
        await trio.lowlevel.checkpoint()
        if not 0 < timeout <= MAX_TIMEOUT:
            raise ValueError(f"a timeout is above 0 and up to {MAX_TIMEOUT} s, not {timeout}")
        text = encode_json(question)
        if len(text) > MAX_MESSAGE:
            raise MessageTooLarge(f"a question of {len(text)} bytes, and {MAX_MESSAGE} can go")
        check_depth(text)
        asks_root = of_all and not self._casts.is_top
        ask = Ask(self._make_id(), topic, question, timeout, is_for_all=asks_root)
        if not asks_root:
            collection = self._open_question(ask, None)
        else:
            collection = _Collection(ask, self._combine_of(topic), None, {ROOT: 1})
            self._open[ask.question_id] = collection
            self._casts.push_up(_shorten(ask), cost_of(encode_cast(ask)))
        try:
            if ROOT not in collection.waiting:
                await self._collect(collection)
            else:
                with trio.move_on_after(timeout):
                    await collection.is_done.wait()
                if ROOT in collection.waiting:
                    if not collection.count:
                        raise DeliveryFailed(f"the root did not answer within {timeout:g} s")
                    self._give_up(collection, ROOT)
        finally:
            del self._open[ask.question_id]
        if collection.combine is None:
            return Gathered(collection.parts, collection.count, collection.missing)
        value = collection.parts[0] if collection.parts else None
        return Gathered(value, collection.count, collection.missing)

    # --- questions ------------------------------------------------------------------------

    def _take_question(self, link: CastLink, ask: Ask, size: int) -> None:
        is_above = link is self._casts.above
        if ask.is_for_all and not is_above:
            if not self._casts.is_top:
                passage = _Passage(link.id, ask.question_id)
                _remember(self._passages, ask.question_id, passage)
                self._casts.push_up(_shorten(ask), size, link)
                return
            # All are asked, who asked us included, so it cannot be by the same id.
            own = Ask(self._make_id(), ask.topic, ask.question, ask.timeout, is_for_all=False)
            passage = _Passage(link.id, ask.question_id)
            self._begin(own, lambda answers, _size, _source: self._pass_down(answers, passage))
        elif is_above and not ask.is_for_all:
            if ask.question_id in self._heard:
                # We were asked below another parent. What is still to come goes to this one.
                if ask.question_id not in self._open:
                    self._reply_up(Answers(ask.question_id, (), 0, 0, is_last=True), 0, None)
                return
            _remember(self._heard, ask.question_id, None)
            self._begin(ask, self._reply_up)

    def _begin(self, ask: Ask, reply: Reply) -> None:
        ask = replace(ask, timeout=min(ask.timeout, MAX_TIMEOUT))
        if len(self._open) >= MAX_OPEN:
            missing = 1 + sum(map(self._casts.routes.count_below, self._casts.below))
            reply(Answers(ask.question_id, (), 0, missing, is_last=True), 0, None)
            return
        collection = self._open_question(ask, reply)
        self._nursery.start_soon(self._collect_and_reply, collection, reply)

    def _open_question(self, ask: Ask, reply: Reply | None) -> _Collection:
        """Ask the children, and be ready for what they say."""
        collection = _Collection(ask, self._combine_of(ask.topic), reply)
        self._open[ask.question_id] = collection
        further = _shorten(ask)
        for child, link in self._casts.below.items():
            below = self._casts.routes.count_below(child)
            if link.put_nowait(further):
                collection.waiting[child] = below
            else:
                collection.missing += below
        return collection

    async def _collect_and_reply(self, collection: _Collection, reply: Reply) -> None:
        question_id = collection.ask.question_id
        try:
            await self._collect(collection)
        finally:
            del self._open[question_id]
        count, missing = collection.count, collection.missing
        last = Answers(question_id, tuple(collection.parts), count, missing, is_last=True)
        if not self._fits(collection.ask.topic, last):
            last = Answers(question_id, (), 0, missing + count, is_last=True)
        reply(last, cost_of(encode_cast(last)), None)

    def _fits(self, topic: str, answers: Answers) -> bool:
        try:
            text = encode_json(answers.parts)
            check_depth(text)
        except (TypeError, ValueError) as error:
            logger.warning("answers to %s were combined to what is no JSON: %s", topic, error)
            return False
        if len(text) > MAX_MESSAGE:
            logger.warning("an answer to %s has %d bytes: too many", topic, len(text))
            return False
        return True

    async def _collect(self, collection: _Collection) -> None:
        """Answer, and wait until all have, or the time is over."""
        with trio.move_on_after(collection.ask.timeout):
            await self._answer(collection)
            if collection.waiting:
                await collection.is_done.wait()
            return
        for child in list(collection.waiting):
            self._give_up(collection, child)

    async def _answer(self, collection: _Collection) -> None:
        ask = collection.ask
        answer, _ = self._topics.get(ask.topic, (None, None))
        collection.missing += 1
        if answer is None:
            return
        try:
            part = await answer(ask.question)
        except Exception:
            # The question is a stranger's: what the application makes of it costs nobody else.
            logger.exception("no answer to %s", ask.topic)
            return
        answers = Answers(ask.question_id, (part,), 1, 0, is_last=False)
        if self._fits(ask.topic, answers):
            collection.missing -= 1
            self._add(collection, answers, cost_of(encode_cast(answers)), None)

    # --- answers --------------------------------------------------------------------------

    def _take_answers(self, link: CastLink, answers: Answers, size: int) -> None:
        is_above = link is self._casts.above
        collection = self._open.get(answers.question_id)
        if collection is None:
            passage = self._passages.get(answers.question_id)
            if is_above and passage is not None:
                self._pass_down(answers, passage)
            return
        source = ROOT if is_above else link.id
        if source not in collection.waiting:
            return
        self._add(collection, answers, size, link)
        if answers.is_last:
            del collection.waiting[source]
            self._check_done(collection)
        else:
            collection.waiting[source] -= answers.count + answers.missing

    def _add(
        self, collection: _Collection, answers: Answers, size: int, source: CastLink | None
    ) -> None:
        if collection.combine is None and collection.reply is not None:
            if answers.count or answers.missing:
                collection.reply(replace(answers, is_last=False), size, source)
            return
        # What a liar says may be wrong, but must not be more than can be passed on.
        collection.count = min(collection.count + answers.count, MAX_COUNT // 4)
        collection.missing = min(collection.missing + answers.missing, MAX_COUNT // 4)
        try:
            for part in answers.parts:
                self._add_part(collection, part, size)
        except Exception:
            logger.exception("answers to %s cannot be combined", collection.ask.topic)
            lost = min(collection.count, answers.count)
            collection.count -= lost
            collection.missing += lost

    def _add_part(self, collection: _Collection, part: JSON, size: int) -> None:
        if collection.combine is None:
            collection.size += size
            if collection.size > MAX_GATHERED:
                raise MessageTooLarge(f"more than {MAX_GATHERED} bytes")
            collection.parts.append(part)
        elif collection.parts:
            collection.parts[0] = collection.combine(collection.parts[0], part)
        else:
            collection.parts.append(part)

    def _pass_down(self, answers: Answers, passage: _Passage) -> None:
        """To a child that asked all. One that reads too slowly misses some, and learns how many."""
        asker = self._casts.below.get(passage.child)
        if asker is None:
            return
        answers = replace(answers, question_id=passage.question_id)
        if answers.is_last:
            answers = replace(answers, missing=min(answers.missing + passage.lost, MAX_COUNT // 2))
        if not asker.put_nowait(answers):
            passage.lost += answers.count + answers.missing

    def _lose_child(self, child: str) -> None:
        for collection in self._open.values():
            if child in collection.waiting:
                self._give_up(collection, child)
                self._check_done(collection)

    def _give_up(self, collection: _Collection, child: str) -> None:
        collection.missing += max(0, collection.waiting.pop(child))

    def _check_done(self, collection: _Collection) -> None:
        if not collection.waiting:
            collection.is_done.set()

    def _reply_up(self, answers: Answers, size: int, source: CastLink | None) -> None:
        self._casts.push_up(answers, size or cost_of(encode_cast(answers)), source)

    def _combine_of(self, topic: str) -> Combine | None:
        return self._topics.get(topic, (None, None))[1]

    def _make_id(self) -> str:
        return f"{self._rng.getrandbits(64):016x}"


def _shorten(ask: Ask) -> Ask:
    """The question as it is passed on: what comes back must be here before our own time is over."""
    return replace(ask, timeout=ask.timeout - min(MAX_HOP_DELAY, ask.timeout / 8))


def _remember(known: OrderedDict[str, T], key: str, value: T) -> None:
    known[key] = value
    while len(known) > MAX_REMEMBERED:
        known.popitem(last=False)
