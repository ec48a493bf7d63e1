"""The objective of mean field Q-learning: policy, value, target, loss.

Symbols (Yang et al., 2018): an agent sees s, plays a, and its neighbours' one-hot actions
average to the mean action m.  Q(s, a, m) is learned; everything else here is derived from it.

Axes: B rows, A actions.  `[...]` stands for any leading axes.
Units: `temperature` and rewards share the unit of Q; `gamma` and m are dimensionless.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

TARGETS = ("mean_field", "double_q", "max")


def _masked(q: Tensor, mask: Tensor | None) -> Tensor:
    return q if mask is None else q.masked_fill(~mask, -torch.inf)


def boltzmann(q: Tensor, temperature: float | Tensor, mask: Tensor | None = None) -> Tensor:
    """Turns action values into the "Boltzmann policy", softmax(Q / T).

    The paper prints exp(-beta Q); with rewards to be maximised that would prefer the worst
    action, so the sign is positive here (as in every published implementation).

    Args:
        q: `[..., A]` action values.
        temperature: T > 0. The paper's beta is 1 / T.
        mask: `[..., A]` bool, true where the action is legal; at least one per row.

    Returns:
        `[..., A]` probabilities; exactly zero on illegal actions.

    Raises:
        ValueError: the temperature is not positive.
    """
    if not temperature > 0:
        raise ValueError(f"temperature is {float(temperature)}; it must be positive.")
    legal = _masked(q, mask)
    # Less the best one first, for Q / T may overflow, and NaN would choose illegal actions.
    return ((legal - legal.amax(-1, keepdim=True)) / temperature).softmax(-1)


def sample_actions(
    q: Tensor,
    temperature: float | Tensor,
    mask: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draws one action per row from the Boltzmann policy, all rows at once.

    The first action whose cumulative probability exceeds a uniform number: one number per
    row, where a number per action would cost as much as the network's dense layers.

    Args:
        q: `[..., A]` action values.
        temperature: T > 0.
        mask: `[..., A]` bool, true where the action is legal.
        generator: source of the draws.

    Returns:
        `[...]` int64 actions, always legal ones.
    """
    cumulative = boltzmann(q, temperature, mask).cumsum(-1, dtype=torch.float64)
    uniform = torch.rand(q.shape[:-1], generator=generator, device=q.device).double()
    # A float32 below 1, times the sum, stays below the sum: in float64 nothing is rounded up,
    # so the last action with any probability is the last that can be drawn.
    return torch.searchsorted(cumulative, (uniform * cumulative[..., -1])[..., None], right=True)[
        ..., 0
    ]


def greedy_actions(q: Tensor, mask: Tensor | None = None) -> Tensor:
    """The limit T -> 0 of `sample_actions`: `[..., A]` to `[...]` int64, first of equals."""
    return _masked(q, mask).argmax(-1)


def mean_field_value(q: Tensor, temperature: float | Tensor, mask: Tensor | None = None) -> Tensor:
    """The "mean field value": a state's worth under its own Boltzmann policy.

        v(s) = sum over a of pi(a | s, m) * Q(s, a, m)

    The expectation over m is taken at the one mean action q was evaluated at.

    Args:
        q: `[..., A]` target network's values.
        temperature: T > 0, the one the agents act with.
        mask: `[..., A]` bool, true where the action is legal.

    Returns:
        `[...]`, between the legal mean and the legal maximum of q: tends to the maximum as
        T -> 0 and to the mean as T -> infinity.
    """
    return (boltzmann(q, temperature, mask) * q).sum(-1)


def next_value(
    target: str,
    q_target: Tensor,
    temperature: float | Tensor,
    q_online: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """Values the next state by the chosen `target`.

    Args:
        target: `mean_field`, the paper's value; `double_q`, the target network's value of the
            online network's best action; `max`, the target network's best value.
        q_target: `[..., A]` target network at (s', m').
        temperature: T > 0; read by `mean_field`.
        q_online: `[..., A]` online network at (s', m'); read by `double_q`.
        mask: `[..., A]` bool, legal actions at s'.

    Returns:
        `[...]` values.

    Raises:
        ValueError: an unknown `target`, or `double_q` without `q_online`.
    """
    if target == "mean_field":
        return mean_field_value(q_target, temperature, mask)
    if target == "max":
        return _masked(q_target, mask).amax(-1)
    if target == "double_q":
        if q_online is None:
            raise ValueError("target 'double_q' needs q_online, the online network's values.")
        best = greedy_actions(q_online, mask)
        return q_target.gather(-1, best[..., None]).squeeze(-1)
    raise ValueError(f"target is {target!r}; legal are {', '.join(TARGETS)}.")


def mfq_loss(
    q: Tensor,
    actions: Tensor,
    rewards: Tensor,
    terminated: Tensor,
    value_next: Tensor,
    gamma: float | Tensor,
    valid: Tensor | None = None,
    weights: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Mean squared one-step error of Q(s, a, m) (the loss of "Algorithm 1").

        y = r + gamma * (1 - terminated) * v(s')       no gradient flows into y
        L = mean over valid rows of (y - Q(s, a, m))^2

    Args:
        q: `[B, A]` online values at (s, m).
        actions: `[B]` integers, the actions executed.
        rewards: `[B]` float.
        terminated: `[B]` bool. A truncated episode is not terminated: it bootstraps.
        value_next: `[B]`, `next_value` at (s', m'); ignored where terminated.
        gamma: discount in `[0, 1]`, one or `[B]`.
        valid: `[B]` bool, false on padding. All true if omitted.
        weights: `[B]` float; if given, L is the sum of weights times squared errors (the
            tabular form needs it, see `QTable.weights`).

    Returns:
        loss: `[]`; zero if no row is valid.
        td_error: `[B]`, y - Q, detached; zero on padding.

    Raises:
        ValueError: shapes that would broadcast instead of matching row by row.
    """
    rows = actions.shape
    if q.shape[:-1] != rows:  # gather would read the first rows and ignore the others
        raise ValueError(f"q has shape {tuple(q.shape)}, expected {(*rows, q.shape[-1])}.")
    parts = {"rewards": rewards, "terminated": terminated, "value_next": value_next}
    optional = {"valid": valid, "weights": weights}
    parts |= {name: part for name, part in optional.items() if part is not None}
    for name, part in parts.items():
        if part.shape != rows:  # [B] against [B, 1] would become [B, B] unnoticed
            raise ValueError(f"{name} has shape {tuple(part.shape)}, expected {tuple(rows)}.")
    taken = q.gather(-1, actions.long()[..., None]).squeeze(-1)  # [B]
    future = torch.where(terminated, torch.zeros_like(value_next), value_next)
    td_error = (rewards + gamma * future).detach() - taken
    if valid is not None:
        td_error = torch.where(valid, td_error, torch.zeros_like(td_error))
    if weights is not None:
        return (weights * td_error.square()).sum(), td_error.detach()
    if valid is None:
        return td_error.square().mean(), td_error.detach()
    return td_error.square().sum() / valid.sum().clamp(min=1), td_error.detach()


def n_step_return(
    rewards: Tensor, num_steps: Tensor | None, gamma: float
) -> tuple[Tensor, float | Tensor]:
    """What some steps in a row have paid, and the discount of what comes after them.

        R = sum over i < k of gamma^i r_i,        discount = gamma^k

    Args:
        rewards: `[B]` of one step each, or `[B, n]`, zero behind the last of k steps.
        num_steps: `[B]` integers, k; None for one step each.
        gamma: discount of one step, in `[0, 1]`.

    Returns:
        `[B]` each; for one step each, the rewards and gamma as they are.
    """
    if num_steps is None:
        return rewards, gamma
    powers = gamma ** torch.arange(rewards.shape[-1], device=rewards.device)
    return (rewards * powers).sum(-1), gamma ** num_steps.float()


def schedule_value(schedule: float | list[list[float]], agent_steps: float) -> float:
    """Reads a number or a piecewise linear schedule at a point.

    Args:
        schedule: a number, or `[[agent_steps, value], ...]` with increasing steps; before the
            first point and after the last one the value is constant.
        agent_steps: rows sampled so far.

    Returns:
        The value there.
    """
    if isinstance(schedule, int | float):
        return float(schedule)
    for (left, low), (right, high) in itertools.pairwise(schedule):
        if left <= agent_steps < right:
            return low + (high - low) * (agent_steps - left) / (right - left)
    return float(schedule[0][1] if agent_steps < schedule[0][0] else schedule[-1][1])
