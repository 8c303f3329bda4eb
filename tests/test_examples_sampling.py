"""The example of sampling runs: six peers in one process, over real connections."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parent.parent / "examples" / "sampling.py"
PATIENCE = 300.0


@pytest.mark.webrtc
def test_peer_gets_to_know_each_of_the_others() -> None:
    command = [sys.executable, str(EXAMPLE)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "ann has met bob, cid, dan, eve, fay\n"
