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
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

WorldT = TypeVar("WorldT")

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


class BadSetting(ValueError):
    """The world of a story has no setting of this *name*, or none with that value."""

    def __init__(self, name: str, complaint: str, line: int | None = None) -> None:
        super().__init__(complaint if line is None else f"line {line}: {complaint}")
        self.name = name
        self.complaint = complaint


class Story:
    """Steps in the order of their moments, and the settings of the world they happen in."""

    def __init__(
        self, settings: Mapping[str, object] | None = None, steps: Iterable[Step] = ()
    ) -> None:
        self.settings: dict[str, str] = {k: str(v) for k, v in (settings or {}).items()}
        self.steps: list[Step] = []
        self._lines: dict[str, int] = {}
        """Where the text that was parsed has each setting, from 1."""
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

    def open_world(self, open_world: Callable[[Mapping[str, str]], WorldT]) -> WorldT:
        """The world that *open_world* makes of the settings.

        BadSetting: it is not such a world; the message has the line of a story that was parsed.
        """
        try:
            return open_world(self.settings)
        except BadSetting as error:
            raise BadSetting(error.name, error.complaint, self._lines.get(error.name)) from None

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
                    story._add_part(part.strip(), number)
                except ValueError as error:
                    raise ValueError(f"line {number}: {error}") from None
        return story

    def _add_part(self, part: str, line: int) -> None:
        if not part:
            return
        settings = [_SETTING.fullmatch(word) for word in part.split()]
        if not self.steps and all(settings):
            for setting in filter(None, settings):
                self.settings[setting[1]] = setting[2]
                self._lines[setting[1]] = line
        else:
            self.add(Step.parse(part))


def read_settings(settings: Mapping[str, str], defaults: Mapping[str, float]) -> dict[str, float]:
    """The values of *settings*, of which all that there are have *defaults* of the same types.

    BadSetting: there is no such setting, or its value is no number of that type.
    """
    values: dict[str, float] = {}
    for name, text in settings.items():
        if name not in defaults:
            known = ", ".join(sorted(defaults))
            raise BadSetting(name, f"{name} is no setting here; there are {known}")
        kind = type(defaults[name])
        try:
            values[name] = kind(text)
        except ValueError:
            wanted = "a whole number" if kind is int else "a number"
            raise BadSetting(name, f"{name} is {wanted}, not {text!r}") from None
    return values
