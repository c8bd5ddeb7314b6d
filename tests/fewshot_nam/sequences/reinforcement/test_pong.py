"""Pong: what is seen, rewarded and repeated, against the emulator itself."""

import numpy as np
import pytest

pytest.importorskip("gymnasium", reason="needs the extra rl")
pytest.importorskip("ale_py", reason="needs the extra rl")

import ale_py
import gymnasium

from fewshot_nam.sequences.reinforcement.pong import Pong

MOVES = [3, 3, 2, 0, 4, 5, 1, 2] * 3


def emulator():
    gymnasium.register_envs(ale_py)
    return gymnasium.make("ALE/Pong-v5", obs_type="grayscale", frameskip=1, repeat_action_probability=0.0)


@pytest.mark.parametrize("skip", [1, 2, 4, 16])
def test_an_image_is_the_field_at_half_size_and_the_largest_of_the_last_frames(skip):
    pong, plain = Pong(frame_skip=skip), emulator()
    seen, _ = pong.reset(seed=3)
    frame, _ = plain.reset(seed=3)
    chance = np.random.Generator(np.random.PCG64(np.random.SeedSequence(3)))
    for _ in range(int(chance.integers(31))):
        frame, *_ = plain.step(0)
    frames = [frame]
    for action in [None, *MOVES]:
        if action is not None:
            seen, reward, *_ = pong.step(action)
            steps = [plain.step(action) for _ in range(skip)]
            frames = [step[0] for step in steps][-3:]
            assert reward == sum(step[1] for step in steps)
        largest = np.stack(frames).max(axis=0)[34:194].astype(np.float64) / 255
        halved = (largest[::2, ::2] + largest[1::2, ::2] + largest[::2, 1::2] + largest[1::2, 1::2]) / 4
        assert seen.shape == (1, 80, 80)
        assert seen.dtype == np.float32
        np.testing.assert_allclose(seen[0], halved, atol=1e-6)


def test_a_player_who_does_nothing_loses_21_to_0():
    pong = Pong(frame_skip=16)
    pong.reset(seed=0)
    rewards, ended = [], False
    while not ended:
        _, reward, ended, _, _ = pong.step(0)
        rewards.append(reward)
    assert sum(rewards) == -21
    assert set(rewards) == {0.0, -1.0}


def test_a_frame_skip_below_1_is_refused():
    with pytest.raises(ValueError, match="frame_skip must be at least 1"):
        Pong(frame_skip=0)
