"""Stories read as they are written."""

from __future__ import annotations

import pytest

from trio_overlay.testing.story import Step, Story, read_settings

TEXT = """\
seed=7 max_degree=2
n1 joins at 0 s
n2 joins at 0.35 s
n1 crashes at 4.2 s
n1 loses n2 at 10 s"""


def test_a_story_reads_as_it_is_written() -> None:
    story = Story.parse(TEXT)
    assert str(story) == TEXT
    assert story.settings == {"seed": "7", "max_degree": "2"}
    assert story.steps[1:] == [
        Step(0.35, "n2", "joins"),
        Step(4.2, "n1", "crashes"),
        Step(10, "n1", "loses", "n2"),
    ]
    assert Story(story.settings, story.steps) == story


def test_semicolons_comments_and_empty_lines_are_allowed() -> None:
    text = TEXT.replace("\n", "; ", 2) + "\n\n  # the end\n"
    assert Story.parse(text) == Story.parse(TEXT)


def test_settings_are_numbers_of_the_types_of_their_defaults() -> None:
    defaults = {"seed": 0, "loss": 0.0, "interval": 20.0}
    settings = read_settings({"seed": "7", "loss": "1"}, defaults)
    assert settings == {"seed": 7, "loss": 1.0}
    assert [type(value) for value in settings.values()] == [int, float]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("seed=7\nn1 joins", "line 2: a step is like"),
        ("n1 joins at 3 s\nn2 joins at 2 s", "line 2: n2 joins at 2 s comes after n1 joins at 3"),
        ("n1 joins at 3 s\nseed=7", "line 2: a step is like"),
        ("n1 joins at -1 s", "line 1: a step is like"),
        ("n1 JOINS at 1 s", "line 1: a step is like"),
    ],
)
def test_what_is_no_story_is_refused_with_its_line(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Story.parse(text)
