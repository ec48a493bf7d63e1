"""The mean-action postprocessor: adds the mean-action columns to a columnar sample batch."""

from collections.abc import Mapping, MutableMapping
from typing import Any

import numpy as np

from rllib_mfq.mean_field.neighborhood import GroupActions, Neighborhood


def postprocess_mean_actions(
    batch: MutableMapping[str, Any], neighborhood: Neighborhood, num_actions: Mapping[str, int]
) -> MutableMapping[str, Any]:
    """Adds `mean_actions` and `next_mean_actions` from the actions that were executed.

    At step t an agent acts on the mean action of step t - 1 (all zero at the first step of an
    episode, or where the batch does not hold the agent's previous step). Step t produces the mean
    action of t over every neighbour that acted at t, including one that died of it. With one
    mean-action iteration these are the sampler's own columns.

    Args:
        batch: columns over n rows in any order: `actions` (integers), `eps_id`, `t`, `group`
            (index into `num_actions`), `agent_index`; `positions` `[n, d]` for the spatial
            neighbourhoods. Rows whose `loss_mask`, if there is one, is false did not act.
        neighborhood: whom to average over; not `graph`, as a batch does not hold the edges.
        num_actions: every group's number of actions, in the environment's order.

    Returns:
        The same batch with the two columns, `[n, width]` float32, `width` the widest group's.

    Raises:
        ValueError: `graph`, or a spatial neighbourhood without `positions`.
    """
    width = max(neighborhood.width(group, num_actions) for group in num_actions)
    rows = len(batch["actions"])
    before, after = np.zeros((2, rows, width), np.float32)
    batch["mean_actions"], batch["next_mean_actions"] = before, after

    acted = np.flatnonzero(np.asarray(batch.get("loss_mask", np.ones(rows, bool))))
    columns = (batch[key] for key in ("actions", "eps_id", "t", "agent_index", "group"))
    actions, eps_id, t, agent, group = map(np.asarray, columns)
    # All rows of one (episode, step) form one population.
    order = acted[np.lexsort((agent[acted], group[acted], t[acted], eps_id[acted]))]
    if not len(order):
        return batch
    moment = np.stack([eps_id[order], t[order]], axis=1)
    population = np.zeros(rows, np.int64)
    population[order] = (np.diff(moment, axis=0, prepend=moment[:1]) != 0).any(axis=1).cumsum()
    positions = batch.get("positions")
    where = {name: order[group[order] == index] for index, name in enumerate(num_actions)}
    played = {
        name: GroupActions(
            actions=actions[mine],
            num_actions=num_actions[name],
            population=population[mine],
            positions=None if positions is None else np.asarray(positions)[mine],
        )
        for name, mine in where.items()
    }
    for name, own in played.items():
        others = [other for other in played.values() if other is not own]
        mean = neighborhood.mean_actions(own, others)
        after[where[name], : mean.shape[1]] = mean

    # An agent's rows, in time order: each acts on what its previous one produced.
    chain = order[np.lexsort((t[order], agent[order], group[order], eps_id[order]))]
    same = np.ones(len(chain) - 1, bool)
    for key, step in ((eps_id, 0), (group, 0), (agent, 0), (t, 1)):
        same &= key[chain[1:]] - key[chain[:-1]] == step
    before[chain[1:][same]] = after[chain[:-1][same]]
    return batch
