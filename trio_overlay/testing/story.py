"""A story: what happened to a network, step by step, as text that people read and tests replay.

    seed=7 max_degree=2
    n1 joins at 0 s
    n2 joins at 0.3 s
    n1 crashes at 4.2 s
    n1 loses n2 at 5 s

The first line holds the settings of the world it plays in, and may be missing. Each step is
*somebody does something*, or does it *to somebody*, at a moment since the story began.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

_STEP = re.compile(r"(?P<who>\S+) (?P<verb>[a-z_]+)(?: (?P<whom>\S+))? at (?P<at>\d+(?:\.\d+)?) s")
_SETTING = re.compile(r"([a-z_]+)=(\S+)")


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that happens; its text is ``"n1 loses n2 at 5 s"``."""

    at: float
    """Seconds since the story began; milliseconds are the finest that the text keeps."""
    who: str
    verb: str
    whom: str | None = None

    def __str__(self) -> str:
        whom = "" if self.whom is None else f" {self.whom}"
        moment = f"{self.at:.3f}".rstrip("0").rstrip(".")
        return f"{self.who} {self.verb}{whom} at {moment} s"

    @classmethod
    def parse(cls, text: str) -> Step:
        """The step that *text* tells; the reverse of `str`.

        ValueError: *text* tells none.
        """
        found = _STEP.fullmatch(text.strip())
        if found is None:
            raise ValueError(f'a step is like "n1 crashes at 4.2 s", not {text.strip()!r}')
        return cls(float(found["at"]), found["who"], found["verb"], found["whom"])


class UnknownStep(ValueError):
    """Nobody in the world of a story knows how to do this."""

    def __init__(self, step: Step) -> None:
        super().__init__(f"nobody knows how to do this: {step}")


class Story:
    """Steps in the order of their moments, and the settings of the world they happen in."""

    def __init__(
        self, settings: Mapping[str, object] | None = None, steps: Iterable[Step] = ()
    ) -> None:
        self.settings: dict[str, str] = {k: str(v) for k, v in (settings or {}).items()}
        self.steps: list[Step] = []
        for step in steps:
            self.add(step)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Story) and str(self) == str(other)

    __hash__ = None  # type: ignore[assignment]  # it grows

    def __str__(self) -> str:
        lines = [" ".join(f"{name}={value}" for name, value in self.settings.items())]
        lines += [str(step) for step in self.steps]
        return "\n".join(line for line in lines if line)

    def add(self, step: Step) -> None:
        """One more step, at the end.

        ValueError: it happens before the last one.
        """
        if self.steps and step.at < self.steps[-1].at:
            raise ValueError(f"{step} comes after {self.steps[-1]}")
        self.steps.append(step)

    @classmethod
    def parse(cls, text: str) -> Story:
        """The story that *text* tells; the reverse of `str`.

        Steps stand on lines of their own, or are parted by semicolons. Empty lines and what
        follows a ``#`` are passed over.

        ValueError: a line is neither a step nor settings, or a step happens too early; the
        message has the line's number.
        """
        story = cls()
        for number, line in enumerate(text.splitlines(), 1):
            for part in line.partition("#")[0].split(";"):
                try:
                    story._add_part(part.strip())
                except ValueError as error:
                    raise ValueError(f"line {number}: {error}") from None
        return story

    def _add_part(self, part: str) -> None:
        if not part:
            return
        words = part.split()
        if not self.steps and all(_SETTING.fullmatch(word) for word in words):
            self.settings.update(_SETTING.fullmatch(word).groups() for word in words)  # type: ignore[union-attr, misc]
        else:
            self.add(Step.parse(part))
