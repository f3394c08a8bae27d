"""What an operator does meanwhile: changes entries, resets cells, erases clients, takes snapshots and restores them.

Rules:

* What was not confirmed, or may have been lost, is asked for again. An erasure that a restored snapshot undoes is asked for again, too.
* A snapshot is taken cell by cell, each as of its own moment, with everything going on meanwhile. To restore one is to put another
  store in the place of this one, in one step; processes, their late writes and the receivers know nothing of it. (The documents say
  to stop the service first: a process that is stopped too late, or a write that is still on its way, is what this adds.)
* Entries are read and changed; that none is lost is not judged: they cannot be rebuilt from the log.
"""

from __future__ import annotations

import contextlib
import random
from typing import TYPE_CHECKING

from simulation import scene
from simulation.cells import Place
from simulation.model import Saved
from simulation.processes import Port, Process

from consumers import store as port
from consumers.errors import Rewound, Unavailable
from consumers.store import Entry, Operation

if TYPE_CHECKING:
    from simulation.world import World

DEEDS = ("operate", "reset", "erase")
SNAPSHOTS = ("snapshot", "restore")
EPISODES = 8
"""More than a client can have."""


class Operator:
    """One life of the operator's process. What it has to remember (`World.erased`, `World.snapshot`) outlives it."""

    def __init__(self, world: World, process: Process) -> None:
        self._world, self._process = world, process
        self._rng = random.Random(f"{world.seed}/{process.identity}")
        self._own = Port(process)
        self._deeds = world.workload.deeds or (DEEDS + SNAPSHOTS if world.with_snapshots else DEEDS)

    def run(self) -> None:
        world, rng = self._world, self._rng
        while not world.healed:
            self._process.pause(rng.choice(world.workload.pauses))
            deed = rng.choice(self._deeds)
            if self._settled() or (deed == "restore" and world.snapshot is None):
                continue
            # to take a snapshot is no fault
            if deed == "snapshot" or world.faults.numbered(f"operator: {deed}") is not None:
                with contextlib.suppress(Unavailable):
                    self._do(deed)
        # An erasure whose answer was lost may take effect late, and then no decision is erased after it: confirm when it has.
        while world.late:
            self._process.pause(0.5)
        for client in sorted(world.erased):
            self._erase(client)
        world.confirmed = True
        while True:
            self._process.pause(5.0)

    def _settled(self) -> bool:
        return self._world.healed or self._world.faults.spent

    def _do(self, deed: str) -> None:
        world, rng = self._world, self._rng
        if deed == "operate":
            self._change()
        elif deed == "reset":
            self._own.reset(rng.choice(world.script.cells), rng.choice([None, 0]))
        elif deed == "erase":
            self._erase(rng.choice(world.script.clients))
        elif deed == "snapshot":
            self._take()
        elif world.snapshot is not None:
            self._own.restore_saved(world.snapshot)

    def _change(self) -> None:
        row = f"audit {self._rng.random()}".encode()
        revision = 0
        for _ in range(4):
            entry = Entry("default", "note", f"n{self._rng.randrange(3)}", row)
            try:
                self._own.operate(revision, Operation([entry], audit=[row]))
            except Rewound as error:
                revision = 0 if error.offset is None else error.offset
            else:
                return

    def _erase(self, client: str) -> None:
        """Profiles first, then what was decided on them, as the command does."""
        self._world.erased.add(client)
        key = scene.key_of(client)
        for cell in self._world.script.cells:
            self._own.erase(cell, [key])
        self._own.erase_decisions(
            port.decision_cell(key, self._own.decision_cells), [key], scene.alert_ids(key, EPISODES)
        )

    def _take(self) -> None:
        """Whole or not at all: a snapshot that breaks off replaces nothing."""
        places: list[Place] = [("profiles", cell) for cell in self._own.cells()]
        places += [("decisions", v) for v in range(self._own.decision_cells)]
        self._world.snapshot = Saved({place: self._own.saved(place) for place in [*places, ("operators", "")]})
