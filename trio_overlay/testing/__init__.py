"""What users import in their own tests: a network in one process, with faults, under a clock of
its own, and what is needed to trust it.

| module | what is in it |
|---|---|
| `network` | `VirtualNetwork`: hosts, servers, peer connections, latency and faults |
| `faults` | the rules of a virtual network: selectors and actions |
| `signaling` | `open_signaling`: the signaling server, on a virtual network |
| `store` | `VirtualStore`: what the servers of a cluster share, in memory |
| `history` | `History`: what happened, line by line |
| `determinism` | `virtual_test`, `run_virtual`, `SteppedRun`: runs that go the same way each time |
| `fixtures` | pytest fixtures: a network, a server and a clock, for tests that are async |
| `cancellation` | `cancel_at_every_checkpoint`: nothing is left, wherever it was cancelled |
| `story` | `Story`: steps as text that people read and `replay` lives through |
| `world`, `tree_world` | what a story happens to: real nodes, and what must hold at any time |
| `neighbours_world`, `sampling_world`, `broker_world`, `relay_world` | the same for the others |
| `strategies` | Hypothesis strategies: ids, signals, frames, fault plans, valid and hostile |
| `machine` | `StoryMachine`: what the state machines of all overlays share |
| `tree` | `TreeMachine`: the ready Hypothesis state machine for the tree |
| `neighbours`, `sampling`, `broker`, `relay` | those for the others |
| `fuzz` | `fuzz`: stories of a machine until one fails, as `trio-overlay fuzz` does |

From `strategies` on they need Hypothesis (``trio-overlay[testing]``), and `fixtures` needs pytest:
these are imported by their modules' names; everything else is here.
"""

from trio_overlay.testing.broker_world import BrokerWorld
from trio_overlay.testing.cancellation import Scenario, Trial, cancel_at_every_checkpoint
from trio_overlay.testing.determinism import (
    NothingWillHappen,
    SteppedRun,
    TimeStandsStill,
    deterministic_trio,
    run_virtual,
    virtual_test,
)
from trio_overlay.testing.faults import (
    Action,
    Cut,
    DelaySignals,
    FailHandshakes,
    Latency,
    LoseSignals,
    Rule,
    Selector,
    SlowReader,
)
from trio_overlay.testing.history import History
from trio_overlay.testing.neighbours_world import NeighboursWorld
from trio_overlay.testing.network import VirtualHost, VirtualNetwork, VirtualServer
from trio_overlay.testing.relay_world import RelayWorld
from trio_overlay.testing.sampling_world import SamplingWorld
from trio_overlay.testing.signaling import SignalingHost, open_signaling
from trio_overlay.testing.store import VirtualStore
from trio_overlay.testing.story import BadSetting, Step, Story, UnknownStep
from trio_overlay.testing.tree_world import TreeWorld, replay
from trio_overlay.testing.world import Life, VirtualWorld

__all__ = [
    "Action",
    "BadSetting",
    "BrokerWorld",
    "Cut",
    "DelaySignals",
    "FailHandshakes",
    "History",
    "Latency",
    "Life",
    "LoseSignals",
    "NeighboursWorld",
    "NothingWillHappen",
    "RelayWorld",
    "Rule",
    "SamplingWorld",
    "Scenario",
    "Selector",
    "SignalingHost",
    "SlowReader",
    "Step",
    "SteppedRun",
    "Story",
    "TimeStandsStill",
    "TreeWorld",
    "Trial",
    "UnknownStep",
    "VirtualHost",
    "VirtualNetwork",
    "VirtualServer",
    "VirtualStore",
    "VirtualWorld",
    "cancel_at_every_checkpoint",
    "deterministic_trio",
    "open_signaling",
    "replay",
    "run_virtual",
    "virtual_test",
]
