"""The recall corridor: rooms show which button opens doors of a colour, then the doors come, in another order.

A small task of our own that cannot be solved without a memory, for machines that cannot play millions of frames. It asks for
bindings of two things, as associative retrieval does. Answers are rewarded at once, so nothing else is hard about it.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

Observation = NDArray[np.float32]


class RecallCorridor(gymnasium.Env[Observation, int]):
    """Walk past ``rooms`` rooms, then open a door of the colour of each.

    The buttons of rooms are drawn with replacement, the colours and the order of doors without. What is done in a room or in the
    empty part of the corridor changes nothing. At a door, the button of its colour gives ``1 / rooms``, any other gives 0, and the
    corridor goes on: the best return is 1, and without a memory it is ``1 / buttons`` on average.

    An observation has ``colours + buttons + 1`` numbers: the colour and the button of a room, or the colour of a door and a 1 at
    the end; one-hot. In the empty part all are 0.

    Args:
        rooms: how many there are, and how many doors.
        colours: different colours, at least as many as rooms.
        buttons: different buttons, which are the actions.
        wait: steps of the empty part between the last room and the first door.

    Raises:
        ValueError: sizes that do not fit.

    Example:
        >>> corridor = RecallCorridor(rooms=2, colours=3, buttons=2)
        >>> room, _ = corridor.reset(seed=0)
        >>> room  # colour 2, button 0
        array([0., 0., 1., 1., 0., 0.], dtype=float32)
        >>> for _ in range(2):  # the other room, then the first door
        ...     door, *_ = corridor.step(0)
        >>> door  # colour 2
        array([0., 0., 1., 0., 0., 1.], dtype=float32)
        >>> corridor.step(0)[1]
        0.5
    """

    metadata = {"render_modes": []}  # noqa: RUF012  (Gymnasium's own word for it)

    def __init__(self, rooms: int = 4, colours: int = 6, buttons: int = 4, wait: int = 0) -> None:
        if not 1 <= rooms <= colours or buttons < 2 or wait < 0:
            raise ValueError(
                "recall: needs 1 <= rooms <= colours, at least 2 buttons and a wait of at least 0, got "
                f"rooms {rooms}, colours {colours}, buttons {buttons}, wait {wait}"
            )
        self.rooms, self.colours, self.buttons, self.wait = rooms, colours, buttons, wait
        self.observation_space = gymnasium.spaces.Box(0.0, 1.0, (colours + buttons + 1,), np.float32)
        self.action_space = gymnasium.spaces.Discrete(buttons)  # type: ignore[assignment]  # its integers are numpy's
        self._place = 2 * rooms + wait  # behind the last door: reset comes first

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin in the first room of a new corridor."""
        super().reset(seed=seed)
        self._shown = self.np_random.permutation(self.colours)[: self.rooms]
        self._right = self.np_random.integers(self.buttons, size=self.rooms)
        self._doors = self.np_random.permutation(self.rooms)
        self._place = 0
        return self._seen(), {}

    def step(self, action: int) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Press a button, and walk on.

        Raises:
            RuntimeError: the corridor has ended: call ``reset``.
            ValueError: no such button.
        """
        if self._place == 2 * self.rooms + self.wait:
            raise RuntimeError("recall: the corridor has ended: call reset()")
        if not 0 <= action < self.buttons:
            raise ValueError(f"recall: there are buttons 0 to {self.buttons - 1}, got {action}")
        door = self._place - self.rooms - self.wait
        right = door >= 0 and action == self._right[self._doors[door]]
        self._place += 1
        ended = self._place == 2 * self.rooms + self.wait
        return self._seen(), float(right) / self.rooms, ended, False, {}

    def _seen(self) -> Observation:
        seen = np.zeros(self.colours + self.buttons + 1, np.float32)
        door = self._place - self.rooms - self.wait
        if self._place < self.rooms:
            seen[self._shown[self._place]] = seen[self.colours + self._right[self._place]] = 1.0
        elif 0 <= door < self.rooms:
            seen[self._shown[self._doors[door]]] = seen[-1] = 1.0
        return seen
