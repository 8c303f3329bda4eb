"""The shared store of a cluster in a Redis (extra ``cluster``: coredis, which runs on Trio).

One connection a session, for questions and for messages: Redis answers questions in their order,
and a break is a break of both. Whatever must be one atomic step is a script.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager, contextmanager
from contextvars import ContextVar
from typing import Any, Final
from urllib.parse import urlsplit

import anyio
import trio
from coredis.connection import BaseConnection
from coredis.exceptions import RedisError
from coredis.pool import ConnectionPool

from trio_overlay.channels.scopes import open_background_nursery
from trio_overlay.errors import ClusterUnavailable, ConfigurationError
from trio_overlay.protocol.cluster import COMMON_CHANNEL, LINKUP_CHANNEL, server_channel
from trio_overlay.signaling.shared_store import (
    Answer,
    Entry,
    Outcome,
    Session,
    SharedStore,
    T,
    Verdict,
    Whereabouts,
)

CONNECT_TIMEOUT: Final = 3.0
ANSWER_TIMEOUT: Final = 4.0
"""Seconds after which a Redis that owes an answer is taken for gone."""

logger = logging.getLogger(__name__)

_is_ours: ContextVar[bool] = ContextVar("_is_ours", default=False)
"""Whether this task, or the one that started it, is a connection of ours."""

MAX_UNDER_WAY: Final = 2**24
"""Bytes of questions that wait for their answers, and for a Redis that does not read."""

_QUESTION_SIZE: Final = 200
"""What a question takes beside its words."""

_RUN: Final = "trio-overlay:run"
_QUARANTINE: Final = "trio-overlay:quarantine"
_KEYS: Final = f"""
local run, quarantine, linkup = '{_RUN}', '{_QUARANTINE}', '{LINKUP_CHANNEL}'
local function key(id) return 'trio-overlay:id:' .. id end
local function kept(id) return 'trio-overlay:kept:' .. id end
local function holder(id)
  local value = redis.call('GET', key(id))
  if value then return string.match(value, '^(%S+) ?(%S*)$') end
end
local function publish(message, token)
  message = string.sub(message, 1, -2) .. ',"claim":"' .. token .. '"}}'
  return redis.call('PUBLISH', 'trio-overlay:server:' .. string.sub(token, 1, 8), message)
end
local function hold(id, token, digest)
  redis.call('SET', key(id), token .. ' ' .. digest, 'PX', ARGV[2])
end
local function subscribers()
  local counts = redis.call('PUBSUB', 'NUMSUB', linkup, '{COMMON_CHANNEL}')
  return counts[2] - counts[4], counts[2]
end
"""

# The value of an id is the token of its claim, which begins with the tag of the server, and the
# digest under which it moves. `publish` does as `with_claim`.

# ARGV: the id of this run of Redis, and the lease in milliseconds. A Redis that was started anew
# has another id, whether it has read old data or none; one that was emptied has lost the key.
_ENTER: Final = """
if redis.call('GET', run) ~= ARGV[1] then
  redis.call('SET', quarantine, '', 'PX', ARGV[2])
  redis.call('SET', run, ARGV[1])
end
local time = redis.call('TIME')
return {redis.call('PTTL', quarantine), time[1], time[2]}
"""

# No id moves in quarantine: who renews is believed then, and what is read from old data is not.
_CLAIM: Final = """
if redis.call('GET', run) ~= ARGV[1] then return redis.error_reply('LOST its data') end
local id, token, digest = ARGV[3], ARGV[4], ARGV[5]
local former, its_digest = holder(id)
local is_move = former and former ~= token
if is_move and (digest == '' or digest ~= its_digest) then return {'taken'} end
if not former then
  local owner = redis.call('GET', kept(id))
  if owner and owner ~= digest then return {'taken'} end
end
local left = redis.call('PTTL', quarantine)
if left > 0 and former ~= token then return {'quarantined', left} end
if is_move then
  left = math.max(redis.call('PTTL', key(id)), redis.call('PTTL', kept(id)), 1)
  redis.call('SET', kept(id), digest, 'PX', left)
  publish(ARGV[6], former)
end
hold(id, token, digest)
return {'granted', subscribers()}
"""

# Not held back by the quarantine: whoever renews has held the id until now, so nobody else did.
_RENEW: Final = """
if redis.call('GET', run) ~= ARGV[1] then return redis.error_reply('LOST its data') end
local outcomes = {}
for i = 3, #ARGV, 3 do
  local id, token = ARGV[i], ARGV[i + 1]
  local now_held = holder(id)
  if now_held == token or not (now_held or redis.call('GET', kept(id))) then
    hold(id, token, ARGV[i + 2])
    outcomes[#outcomes + 1] = 1
  else
    outcomes[#outcomes + 1] = 0
  end
end
return outcomes
"""

_RELEASE: Final = """
local count = 0
for i = 3, #ARGV, 2 do
  if holder(ARGV[i]) == ARGV[i + 1] then
    count = count + redis.call('DEL', key(ARGV[i]))
  end
end
return count
"""

_LOOK_UP: Final = """
return {redis.call('EXISTS', key(ARGV[3])), subscribers()}
"""

_ROUTE: Final = """
local token = holder(ARGV[3])
if token then return publish(ARGV[4], token) end
local foreign = subscribers()
if foreign > 0 then redis.call('PUBLISH', linkup, ARGV[5]) end
return foreign
"""

_SCRIPTS: Final = (_ENTER, _CLAIM, _RENEW, _RELEASE, _LOOK_UP, _ROUTE)


class RedisStore(SharedStore):
    """The Redis at *url*: ``redis://[[USER]:PASSWORD@]HOST[:PORT][/DB]``, ``rediss://`` for TLS, or
    ``unix:///PATH``.

    ConfigurationError: *url* is no such URL.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        logging.getLogger("coredis").addFilter(_take_over)  # the same one again: nothing
        try:
            parts = urlsplit(url)
            is_unix = parts.scheme == "unix"
            if not (parts.path if is_unix else parts.hostname):
                raise ValueError("redis://HOST:PORT would be")
            if parts.scheme not in ("redis", "rediss", "unix"):
                raise ValueError("its scheme is redis, rediss or unix")
            if not is_unix and not (parts.path.strip("/") or "0").isdecimal():
                raise ValueError("after the slash stands the number of a database")
            self._name = (
                f"unix://{parts.path}"
                if is_unix
                else f"{parts.scheme}://{parts.hostname}:{parts.port or 6379}{parts.path}"
            )
            self._pool()
        except (ValueError, TypeError, OSError, RuntimeError) as error:
            # The URL may hold a password: it is not shown.
            raise ConfigurationError(f"redis: this is no URL of a Redis: {error}") from None

    def __str__(self) -> str:
        return self._name

    def _pool(self) -> ConnectionPool[Any]:
        return ConnectionPool.from_url(
            self._url,
            decode_components=True,
            max_connections=1,
            connect_timeout=CONNECT_TIMEOUT,
            stream_timeout=ANSWER_TIMEOUT,
        )

    def connect(self, tag: str, lease: float) -> AbstractAsyncContextManager[Session]:
        return self._connect(tag, lease)

    @asynccontextmanager
    async def _connect(self, tag: str, lease: float) -> AsyncIterator[Session]:
        with _errors_ungrouped():
            async with self._pool() as pool, open_background_nursery() as nursery:
                try:
                    # A connection of coredis's that cannot be made leaves streams unclosed: look
                    # first whether somebody is there.
                    assert pool.location is not None
                    with trio.fail_after(CONNECT_TIMEOUT):
                        if not await pool.location.check():
                            raise ClusterUnavailable(f"nobody listens at {self}")
                    with _ours():
                        connection = await pool.get_connection()
                    session = await _open_session(connection, tag, lease)
                except (RedisError, TimeoutError, trio.TooSlowError, OSError) as error:
                    raise ClusterUnavailable(f"no Redis at {self}: {error}") from error
                nursery.start_soon(session.collect)
                async with aclosing(session.messages):
                    yield session


@contextmanager
def _ours() -> Iterator[None]:
    """What is started in this block, for as long as it lives, is a connection of ours."""
    token = _is_ours.set(True)
    try:
        yield
    finally:
        _is_ours.reset(token)


def _take_over(record: logging.LogRecord) -> bool:
    """Whether a record of coredis's is left to it; of our connections, it is ours, at level debug.

    It logs tracebacks of what it raises as well, and we raise or log the same in a line.
    """
    if not _is_ours.get():
        return True
    logger.debug("coredis: %s", record.getMessage(), exc_info=record.exc_info)
    return False


@contextmanager
def _errors_ungrouped() -> Iterator[None]:
    """The one error of the block as itself: a pool has a nursery that makes a group of it."""
    try:
        yield
    except BaseExceptionGroup as group:
        _, failures = group.split(trio.Cancelled)
        if failures is None or len(failures.exceptions) != 1:
            raise
        error = failures.exceptions[0]
        raise error from error.__cause__


async def _open_session(connection: BaseConnection, tag: str, lease: float) -> _RedisSession:
    info = await connection.create_request(b"INFO", b"server")
    run_id = _run_id(info)
    hashes = [await connection.create_request(b"SCRIPT LOAD", _KEYS + each) for each in _SCRIPTS]
    connection.send_command(b"SUBSCRIBE", LINKUP_CHANNEL, COMMON_CHANNEL, server_channel(tag))
    return _RedisSession(connection, run_id, lease, dict(zip(_SCRIPTS, hashes, strict=True)))


def _run_id(info: Any) -> bytes:
    for line in bytes(info).splitlines():
        name, _, value = line.partition(b":")
        if name == b"run_id" and value:
            return value
    raise ClusterUnavailable("this Redis does not tell its run_id (INFO server)")


class _RedisSession(Session):
    def __init__(
        self, connection: BaseConnection, run_id: bytes, lease: float, hashes: dict[str, Any]
    ) -> None:
        self._connection = connection
        self._run_id = run_id
        self._lease = math.ceil(lease * 1000)
        self._hashes = hashes
        self.messages = connection.push_messages
        self._failure: str | None = None
        self._asked: deque[Callable[[], Awaitable[None]]] = deque()
        self._has_asked = trio.lowlevel.ParkingLot()
        self._under_way = 0

    def enter(self) -> Answer[Entry]:
        return self._run(_ENTER, [], _entry)

    def claim(
        self, identifier: str, token: str, digest: str = "", moved_message: str = ""
    ) -> Answer[Outcome]:
        return self._run(_CLAIM, [identifier, token, digest, moved_message], _outcome)

    def renew(self, claims: Sequence[tuple[str, str, str]]) -> Answer[list[bool]]:
        words = [word for claim in claims for word in claim]
        return self._run(_RENEW, words, lambda kept: [each == 1 for each in kept])

    def release(self, claims: Sequence[tuple[str, str]]) -> Answer[int]:
        return self._run(_RELEASE, [word for claim in claims for word in claim], int)

    def look_up(self, identifier: str) -> Answer[Whereabouts]:
        return self._run(
            _LOOK_UP, [identifier], lambda row: Whereabouts(row[0] == 1, row[1], row[2])
        )

    def pass_on(self, identifier: str, message: str, linkup_message: str) -> Answer[int]:
        return self._run(_ROUTE, [identifier, message, linkup_message], int)

    def publish(self, channel: str, message: str) -> Answer[int]:
        return self._ask(b"PUBLISH", [channel, message], int)

    async def receive(self) -> tuple[str, bytes]:
        while True:
            try:
                message: Any = await anext(self.messages)
            except (RedisError, TimeoutError, StopAsyncIteration) as error:
                raise ClusterUnavailable(self._failure or f"Redis is gone: {error}") from error
            if message[0] == b"message":
                return bytes(message[1]).decode(), bytes(message[2])

    async def collect(self) -> None:
        """Hear the answers, in the order of the questions, whether or not somebody waits."""
        while True:
            while not self._asked:
                await self._has_asked.park()
            await self._asked.popleft()()

    def _run(self, script: str, words: list[str], convert: Callable[[Any], T]) -> Answer[T]:
        return self._ask(
            b"EVALSHA", [self._hashes[script], 0, self._run_id, self._lease, *words], convert
        )

    def _ask(self, command: bytes, words: list[Any], convert: Callable[[Any], T]) -> Answer[T]:
        if self._failure is not None:
            raise ClusterUnavailable(self._failure)
        size = _QUESTION_SIZE + sum(len(word) for word in words if isinstance(word, str))
        if self._under_way + size > MAX_UNDER_WAY:
            raise ClusterUnavailable("Redis is slower than what it is asked")
        try:
            request = self._connection.create_request(command, *words)
        except (RedisError, anyio.ClosedResourceError, anyio.BrokenResourceError) as error:
            # The latter two while coredis closes a connection, which it still says is usable.
            raise ClusterUnavailable(f"Redis is gone: {error}") from error
        answer = Answer[T]()

        async def hear() -> None:
            try:
                answer.resolve(convert(await request))
            except (RedisError, TimeoutError) as error:
                # Also what Redis refuses: a session that was misunderstood is of no use.
                answer.fail(self._break(f"Redis is gone: {error}"))
            finally:
                self._under_way -= size

        self._under_way += size
        self._asked.append(hear)
        self._has_asked.unpark()
        return answer

    def _break(self, reason: str) -> str:
        """Let the session end, of which `receive` tells; the first reason is the one."""
        if self._failure is None:
            self._failure = reason
            self._connection.invalidate(reason)
        return self._failure


def _entry(row: Any) -> Entry:
    left, seconds, microseconds = row
    return Entry(int(seconds) + int(microseconds) / 1e6, max(0.0, left / 1000))


def _outcome(row: Any) -> Outcome:
    match row:
        case [b"granted", foreign, subscribers]:
            return Outcome(Verdict.GRANTED, 0.0, foreign, subscribers)
        case [b"quarantined", left]:
            return Outcome(Verdict.QUARANTINED, left / 1000)
        case _:
            return Outcome(Verdict.TAKEN)
