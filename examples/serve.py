"""Serves a trained agent over HTTP with Ray Serve, and plays it from a client.

    pip install "rllib_mfq[serve]"
    python -m examples.serve pretrained:battle-mfq --address 127.0.0.1:8000     # until Ctrl-C
    python -m examples.serve --play --address 127.0.0.1:8000                    # the client

A request is one step of one game: what the game's agents observe comes in, their actions go out.
The service keeps what agents remember from step to step, for each game by its name.
"""

import argparse
import json
import time
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
from magent2.environments import battle_v4
from ray import serve
from starlette.requests import Request as Received

import rllib_mfq


@serve.deployment  # one replica: the memory of a game is in one process
class Agents:
    """Answers `{"game": name, "observations": {agent: array}, "over": ...}` with actions."""

    def __init__(self, agent: str) -> None:
        self.agent, self.games = agent, {}

    async def __call__(self, received: Received) -> dict[str, int]:
        """One step; a name that is new starts a game, and `"over": true` ends it."""
        asked = await received.json()
        if asked.get("over"):
            self.games.pop(asked["game"], None)
            return {}
        if asked["game"] not in self.games:
            self.games[asked["game"]] = rllib_mfq.load(self.agent)
        seen = {name: np.array(each, np.float32) for name, each in asked["observations"].items()}
        return self.games[asked["game"]].act(seen)


def start(agent: str, host: str, port: int) -> None:
    """Starts the service in the Ray that runs, or in one of its own; `serve.shutdown()` ends it."""
    serve.start(http_options={"host": host, "port": port})
    serve.run(Agents.bind(agent), name="mfq", route_prefix="/act")


def ask(address: str, **asked: Any) -> dict[str, int]:
    """Sends one request; a client needs neither Ray nor this package."""
    data = json.dumps(asked).encode()
    head = {"Content-Type": "application/json"}
    with urlopen(Request(f"http://{address}/act", data, head), timeout=60) as answer:
        found: dict[str, int] = json.load(answer)
    return found


def play(address: str, map_size: int, max_cycles: int, seed: int = 0) -> list[dict[str, int]]:
    """Plays a battle by the service's actions, and returns them."""
    env, played = battle_v4.parallel_env(map_size=map_size, max_cycles=max_cycles), []
    observations, _ = env.reset(seed=seed)
    while env.agents:
        alive = {name: observations[name].tolist() for name in env.agents}
        played.append(ask(address, game="battle", observations=alive))
        observations, *_ = env.step(played[-1])
    ask(address, game="battle", over=True)
    return played


def main() -> None:
    """Serves until it is interrupted, or plays one battle as a client."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("agent", nargs="?", default="pretrained:battle-mfq")
    parser.add_argument("--address", default="127.0.0.1:8000")
    parser.add_argument("--play", action="store_true")
    given = parser.parse_args()
    if given.play:
        print(f"{len(play(given.address, 20, 100))} steps")
        return
    host, port = given.address.split(":")
    start(given.agent, host, int(port))
    try:
        while True:
            time.sleep(1)
    finally:
        serve.shutdown()


if __name__ == "__main__":
    main()
