"""Objects that are entered and left as an ``async with`` block, written as one."""

from __future__ import annotations

import abc
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Self


class BlockContext(abc.ABC):
    """An async context manager that is itself what its block gets; it can be entered once."""

    @abc.abstractmethod
    def _hold_open(self) -> AbstractAsyncContextManager[None]:
        """What is around the block: an `asynccontextmanager`, in most cases."""

    async def __aenter__(self) -> Self:
        self._around = self._hold_open()
        await self._around.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool | None:
        return await self._around.__aexit__(kind, error, trace)
