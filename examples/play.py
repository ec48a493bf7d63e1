"""Plays a trained agent in a plain PettingZoo loop, without Ray.

    python -m examples.play pretrained:battle-mfq

`load` keeps what agents act on beside their observations: mean actions and, where the network has
a memory, its state. Give it the environment that the loop steps.
"""

import argparse

from magent2.environments import battle_v4

import rllib_mfq


def play(agent: str, map_size: int, max_cycles: int) -> dict[str, float]:
    """Plays both sides of one battle; returns what each side earned."""
    env = battle_v4.parallel_env(map_size=map_size, max_cycles=max_cycles)
    earned = {"red": 0.0, "blue": 0.0}

    agents = rllib_mfq.load(agent, env)  # the three lines: load,
    observations, _ = env.reset(seed=0)
    # MAgent2 counts the teams before it places them: all would play red's first actions.
    core = env.unwrapped
    core.team_sizes = [core.env.get_num(handle) for handle in core.handles]
    while env.agents:
        actions = agents.act(observations)  # act, and, before another episode, `agents.reset()`
        observations, rewards, _, _, _ = env.step(actions)
        for name, reward in rewards.items():
            earned[name.split("_")[0]] += reward
    return earned


def main() -> None:
    """Prints what both sides earn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("agent", nargs="?", default="pretrained:battle-mfq")
    parser.add_argument("--map-size", type=int, default=40)
    parser.add_argument("--max-cycles", type=int, default=400)
    given = parser.parse_args()
    print(play(given.agent, given.map_size, given.max_cycles))


if __name__ == "__main__":
    main()
