"""The mean-action postprocessor: adds the mean-action columns to a columnar sample batch."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any

import numpy as np

from rllib_mfq.mean_field.neighborhood import Array, GroupActions, Neighborhood


def postprocess_mean_actions(
    batch: MutableMapping[str, Any],
    neighborhood: Neighborhood,
    num_actions: Mapping[str, int],
) -> MutableMapping[str, Any]:
    """Adds `mean_actions` and `next_mean_actions` from the actions that were executed.

    At its step t an agent acts on the mean action of step t - 1 (all zero at the first step
    of an episode, or where the batch does not hold the agent's previous step); the step
    itself produces the mean action of t, over every neighbour that acted at t, including one
    that died of it. With one mean-action iteration these are the sampler's own columns.

    Args:
        batch: columns over n rows: `actions` (integers), `eps_id`, `t`, `group` (index into
            `num_actions`), `agent_index`; `positions` `[n, d]` for the spatial
            neighbourhoods. Rows may come in any order. Rows whose `loss_mask`, if there is
            such a column, is false carry a closing observation: they did not act.
        neighborhood: whom to average over. `graph` has no meaning here, as a batch does not
            hold the edges.
        num_actions: every group's number of actions, in the environment's order.

    Returns:
        The same batch with the two columns, `[n, width]` float32, `width` the widest group's.

    Raises:
        ValueError: `graph`, or a spatial neighbourhood without `positions`.
    """
    groups = list(num_actions)
    width = max(neighborhood.width(group, num_actions) for group in groups)
    rows = len(batch["actions"])
    after = np.zeros((rows, width), np.float32)
    before = np.zeros((rows, width), np.float32)
    batch["mean_actions"], batch["next_mean_actions"] = before, after

    acted = np.flatnonzero(np.asarray(batch.get("loss_mask", np.ones(rows, bool))))
    eps_id, t, agent = (np.asarray(batch[key]) for key in ("eps_id", "t", "agent_index"))
    group = np.asarray(batch["group"])
    # All rows of one (episode, step) form one population.
    order = acted[np.lexsort((agent[acted], group[acted], t[acted], eps_id[acted]))]
    if not len(order):
        return batch
    moment = np.stack([eps_id[order], t[order]], axis=1)
    population = np.cumsum((np.diff(moment, axis=0, prepend=moment[:1]) != 0).any(axis=1))
    played: dict[str, GroupActions] = {}
    where: dict[str, Array] = {}
    for index, name in enumerate(groups):
        mine = group[order] == index
        where[name] = order[mine]
        positions = batch.get("positions")
        played[name] = GroupActions(
            actions=np.asarray(batch["actions"])[where[name]],
            num_actions=num_actions[name],
            population=population[mine],
            positions=None if positions is None else np.asarray(positions)[where[name]],
        )
    for name in groups:
        others = [played[other] for other in groups if other != name]
        mean = neighborhood.mean_actions(played[name], others)
        after[where[name], : mean.shape[1]] = mean

    # An agent's rows, in time order: each acts on what its previous one produced.
    chain = order[np.lexsort((t[order], agent[order], group[order], eps_id[order]))]
    same = np.ones(len(chain) - 1, bool)
    for key, step in ((eps_id, 0), (group, 0), (agent, 0), (t, 1)):
        same &= key[chain[1:]] - key[chain[:-1]] == step
    before[chain[1:][same]] = after[chain[:-1][same]]
    return batch
