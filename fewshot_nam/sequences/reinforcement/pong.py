"""Atari Pong in grey images of 80 x 80, as in the reinforcement learning of the STM paper.

The playing field, 160 x 160 pixels, is halved in size; an action is repeated for ``frame_skip`` frames, and the image is the
largest of up to the last three of them, pixel by pixel. The emulator and its games come with ``ale-py``.

Departures: images are scaled to 0 to 1 by a constant, where the published code scales by a running mean and deviation; and an
episode begins with up to 30 frames without an action, so that episodes differ (Mnih et al., 2015).
"""

from __future__ import annotations

from typing import Any

import ale_py
import gymnasium
import numpy as np
from numpy.typing import NDArray

Observation = NDArray[np.float32]

_FIELD = slice(34, 194)  # rows of the playing field
_MOST_WAITED = 30


class Pong(gymnasium.Env[Observation, int]):
    """Pong to 21 points: a reward of 1 for a point, of -1 for a point of the other side; the emulator adds no chance of its own.

    Args:
        frame_skip: frames for which an action is repeated. Published: 4, 16, 32, and 0, which is 1 here.

    Raises:
        ValueError: a frame skip below 1.
    """

    metadata = {"render_modes": []}  # noqa: RUF012  (Gymnasium's own word for it)

    def __init__(self, frame_skip: int = 4) -> None:
        if frame_skip < 1:
            raise ValueError(f"pong: frame_skip must be at least 1, got {frame_skip}")
        ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)  # type: ignore[attr-defined]  # it would greet
        gymnasium.register_envs(ale_py)
        options: dict[str, Any] = {"obs_type": "grayscale", "frameskip": 1, "repeat_action_probability": 0.0}
        # Without the wrappers that check every call, and with the six actions that mean anything in Pong.
        self._atari = gymnasium.make("ALE/Pong-v5", disable_env_checker=True, **options).unwrapped
        self._frame_skip = frame_skip
        self.observation_space = gymnasium.spaces.Box(0.0, 1.0, (1, 80, 80), np.float32)
        self.action_space = self._atari.action_space

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin a new game."""
        super().reset(seed=seed)
        frame, _ = self._atari.reset(seed=seed)
        for _ in range(int(self.np_random.integers(_MOST_WAITED + 1))):
            frame, *_ = self._atari.step(0)
        return _field(frame), {}

    def step(self, action: int) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Repeat an action for ``frame_skip`` frames."""
        total, frames = 0.0, []
        terminated = truncated = False
        for number in range(self._frame_skip):
            frame, reward, terminated, truncated, _ = self._atari.step(action)
            total += float(reward)
            if number >= self._frame_skip - 3 or terminated or truncated:
                frames.append(frame)
            if terminated or truncated:
                break
        return _field(np.maximum.reduce(frames)), total, terminated, truncated, {}

    def close(self) -> None:
        """Close the emulator."""
        self._atari.close()


def _field(frame: NDArray[np.uint8]) -> Observation:
    """Return the playing field of a frame ``(210, 160)``, ``(1, 80, 80)`` from 0 to 1."""
    field = frame[_FIELD].astype(np.float32).reshape(80, 2, 80, 2).mean(axis=(1, 3))
    return field[None] / np.float32(255)
