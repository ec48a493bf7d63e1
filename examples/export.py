"""Exports a trained agent: a plain torch module, and ONNX, with a check that both act alike.

    pip install onnx onnxruntime onnxscript && python -m examples.export pretrained:battle-mfq

What is exported is Q(s, ., m): observations `[B, *obs]` and mean actions `[B, width]` go in,
values `[B, A]` come out. The greedy action is the largest; leave illegal actions out yourself.
"""

import argparse
from pathlib import Path

import numpy as np
import onnxruntime
import torch

from rllib_mfq.algorithm.checkpoint import load_modules


def export(agent: str, folder: Path, group: str | None = None) -> int:
    """Writes `q.pt2` and `q.onnx`; returns how many of 256 random inputs were compared.

    Args:
        agent: a checkpoint's folder, or `pretrained:NAME`.
        folder: where the two files go.
        group: which module, where the checkpoint has several.

    Raises:
        ValueError: the exported networks and the agent do not choose the same actions.
    """
    modules = load_modules(agent)
    module = modules[group] if group else next(iter(modules.values()))
    network = module.unwrapped().q_net.eval()
    generator = torch.Generator().manual_seed(0)
    obs = torch.rand((256, *module.observation_space.shape), generator=generator)
    means = torch.rand((256, module.unwrapped().mean_action_dim), generator=generator)
    names = {"input_names": ["obs", "mean_actions"], "output_names": ["q"]}
    batch = torch.export.Dim("batch")
    with torch.inference_mode():
        expected = network(obs, means).argmax(-1).numpy()
    program = torch.export.export(
        network, (obs, means), dynamic_shapes={"obs": {0: batch}, "mean_actions": {0: batch}}
    )
    torch.export.save(program, folder / "q.pt2")  # `torch.export.load` needs neither Ray nor us
    torch.onnx.export(program, (), folder / "q.onnx", dynamo=True, verbose=False, **names)
    plain = torch.export.load(folder / "q.pt2").module()(obs, means).argmax(-1).numpy()
    session = onnxruntime.InferenceSession(folder / "q.onnx")
    (values,) = session.run(None, {"obs": obs.numpy(), "mean_actions": means.numpy()})
    for name, actions in (("torch", plain), ("ONNX", values.argmax(-1))):
        if not np.array_equal(actions, expected):
            raise ValueError(f"the exported {name} network chooses other actions.")
    return len(expected)


def main() -> None:
    """Exports the agent that is named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("agent")
    parser.add_argument("--folder", type=Path, default=Path("."))
    parser.add_argument("--group")
    given = parser.parse_args()
    count = export(given.agent, given.folder, given.group)
    print(f"{given.folder}/q.pt2 and q.onnx choose the same actions on {count} random inputs")


if __name__ == "__main__":
    main()
