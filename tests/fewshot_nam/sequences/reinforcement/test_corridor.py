"""The recall corridor: what it shows and rewards, on corridors that the test re-reads by itself."""

import numpy as np
import pytest

pytest.importorskip("gymnasium", reason="needs the extra rl")

import gymnasium
from gymnasium.utils.env_checker import check_env

from fewshot_nam.sequences.reinforcement.corridor import RecallCorridor


def walk(corridor, seed, choose):
    """Walk one corridor; return all observations, rewards and whether the episode ended at each step."""
    observation, _ = corridor.reset(seed=seed)
    seen, rewards, ends = [observation], [], []
    while not ends or not ends[-1]:
        observation, reward, terminated, truncated, _ = corridor.step(choose(seen))
        assert not truncated
        seen.append(observation)
        rewards.append(reward)
        ends.append(terminated)
    return np.stack(seen), rewards, ends


def read(observation, corridor):
    """Return colour, button and whether it is a door, as a person would read it; None where nothing is shown."""
    colour, button, door = np.split(observation, [corridor.colours, corridor.colours + corridor.buttons])
    return [int(part.argmax()) if part.any() else None for part in (colour, button)], bool(door[0])


def remember(corridor):
    """Return a player that remembers what rooms showed."""

    def choose(seen):
        (colour, _), door = read(seen[-1], corridor)
        rooms = dict(place for place, is_door in (read(one, corridor) for one in seen) if not is_door)
        return rooms[colour] if door else 0

    return choose


@pytest.mark.parametrize(("rooms", "wait"), [(1, 0), (3, 0), (4, 2)])
def test_who_remembers_opens_every_door(rooms, wait):
    corridor = RecallCorridor(rooms=rooms, wait=wait)
    for seed in range(20):
        seen, rewards, ends = walk(corridor, seed, remember(corridor))
        assert sum(rewards) == pytest.approx(1.0)
        assert rewards == pytest.approx([0.0] * (rooms + wait) + [1 / rooms] * rooms)
        assert ends == [False] * (2 * rooms + wait - 1) + [True]
        kinds = [read(one, corridor) for one in seen[:-1]]
        shown = [place for place, door in kinds[:rooms] if not door]
        assert len({colour for colour, _ in shown}) == rooms
        assert all(place == [None, None] and not door for place, door in kinds[rooms : rooms + wait])
        doors = [place for place, door in kinds[rooms + wait :] if door]
        assert {colour for colour, _ in doors} == {colour for colour, _ in shown}
        assert all(button is None for _, button in doors)
        assert not seen[-1].any()


def test_one_button_for_all_doors_opens_as_many_as_chance():
    corridor = RecallCorridor(rooms=4, buttons=4)
    returns = [sum(walk(corridor, seed, lambda seen: 1)[1]) for seed in range(1000)]
    assert np.mean(returns) == pytest.approx(0.25, abs=0.03)


def test_doors_come_in_another_order_than_rooms():
    corridor = RecallCorridor(rooms=4)
    same = 0
    for seed in range(200):
        seen, _, _ = walk(corridor, seed, lambda seen: 0)
        same += [read(one, corridor)[0][0] for one in seen[:4]] == [read(one, corridor)[0][0] for one in seen[4:8]]
    assert same < 30  # of 200, one in 24 by chance


def test_the_same_seed_gives_the_same_corridor_and_another_seed_another():
    first, second = RecallCorridor(), RecallCorridor(wait=0)
    one, two, other = (walk(c, s, lambda seen: 2) for c, s in ((first, 5), (second, 5), (second, 6)))
    assert np.array_equal(one[0], two[0])
    assert one[1] == two[1]
    assert not np.array_equal(one[0], other[0])


def test_it_has_the_interface_of_gymnasium():
    check_env(RecallCorridor(), skip_render_check=True)
    assert isinstance(RecallCorridor(), gymnasium.Env)


@pytest.mark.parametrize("options", [{"rooms": 0}, {"rooms": 7, "colours": 6}, {"buttons": 1}, {"wait": -1}])
def test_sizes_that_do_not_fit_are_refused(options):
    with pytest.raises(ValueError, match="rooms <= colours"):
        RecallCorridor(**options)


def test_a_button_that_is_not_there_and_a_step_behind_the_end_are_refused():
    corridor = RecallCorridor(rooms=1)
    with pytest.raises(RuntimeError, match="call reset"):
        corridor.step(0)
    corridor.reset(seed=0)
    with pytest.raises(ValueError, match="buttons 0 to 3"):
        corridor.step(4)
    corridor.step(0)
    corridor.step(0)
    with pytest.raises(RuntimeError, match="call reset"):
        corridor.step(0)
