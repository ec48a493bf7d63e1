"""The objective of mean field Q-learning: policy, value, target, loss.

Symbols (Yang et al., 2018): an agent sees s, plays a, and its neighbours' one-hot actions
average to the mean action m.  Q(s, a, m) is learned; everything else here is derived from it.

Axes: B rows, A actions.  `[...]` stands for any leading axes.
Units: the temperature T > 0 and rewards share the unit of Q; `gamma` and m are dimensionless.
Masks: `[..., A]` bool, true on legal actions, at least one per row; None where all are legal.
"""

import itertools
from typing import Literal, get_args

import torch
from torch import Tensor

Target = Literal["mean_field", "double_q", "max"]
TARGETS: tuple[Target, ...] = get_args(Target)


def _masked(q: Tensor, mask: Tensor | None) -> Tensor:
    return q if mask is None else q.masked_fill(~mask, -torch.inf)


def boltzmann(q: Tensor, temperature: float | Tensor, mask: Tensor | None = None) -> Tensor:
    """Turns action values `q` `[..., A]` into the "Boltzmann policy", softmax(Q / T).

    The symbols, also of `temperature` and `mask`, are explained above.

    The paper prints exp(-beta Q), beta = 1 / T. With rewards to be maximised that would prefer
    the worst action, so the sign is positive here (as in every published implementation).

    Returns:
        `[..., A]` probabilities; exactly zero on illegal actions.

    Raises:
        ValueError: the temperature is not positive.
    """
    return _logits(q, temperature, mask).softmax(-1)


def _logits(q: Tensor, temperature: float | Tensor, mask: Tensor | None) -> Tensor:
    """`[..., A]`: Q / T less its largest value in each row, -inf where illegal; see `boltzmann`."""
    if not temperature > 0:
        raise ValueError(f"temperature is {float(temperature)}; it must be positive.")
    legal = _masked(q, mask)
    # The best value is subtracted first: Q / T of a large Q overflows to infinity, softmax makes
    # NaN of it, and NaN would let an illegal action be chosen.
    return (legal - legal.max(-1, keepdim=True).values) / temperature


def sample_actions(
    q: Tensor,
    temperature: float | Tensor,
    mask: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draws one action per row of `q`, `[..., A]`, from the Boltzmann policy, all rows at once.

    For `temperature` and `mask` see `boltzmann`; `generator` is the source of the draws.

    A uniform number is drawn for each row, and the first action is taken whose cumulative
    weight, exp of its logit, exceeds this share of the sum. Drawing a number for each action
    instead (Gumbel noise) costs as much as the network's dense layers; dividing by the sum first,
    as softmax does, doubles the cost of the draw.

    Returns:
        `[...]` int64 actions, always legal ones.
    """
    weights = _logits(q, temperature, mask).exp()
    cumulative = weights.cumsum(-1, dtype=torch.float64)
    uniform = torch.rand(q.shape[:-1], generator=generator, device=q.device).double()
    # Float64 keeps every action legal: a float32 number below 1 times the sum of a row is below
    # this sum, because float64 does not round the product up. So the search never goes beyond
    # the last action that has any weight.
    drawn = (uniform * cumulative[..., -1])[..., None]
    return torch.searchsorted(cumulative, drawn, right=True).squeeze(-1)


def greedy_actions(q: Tensor, mask: Tensor | None = None) -> Tensor:
    """The limit T -> 0 of `sample_actions`: `q` `[..., A]` to `[...]` int64, first of equals.

    What `mask` excludes is never chosen.
    """
    return _masked(q, mask).argmax(-1)


def mean_field_value(q: Tensor, temperature: float | Tensor, mask: Tensor | None = None) -> Tensor:
    """The "mean field value": a state's worth under its own Boltzmann policy.

        v(s) = sum over a of pi(a | s, m) * Q(s, a, m)

    The expectation over m is taken at the one mean action that `q`, `[..., A]` values of the target
    network, was evaluated at. `temperature` is the one that the agents act with, and `mask` says
    what is legal at s.

    Returns:
        `[...]`: tends to the legal maximum of q as T -> 0, and to its legal mean as T -> infinity.
    """
    return (boltzmann(q, temperature, mask) * q).sum(-1)


def next_value(
    target: str,
    q_target: Tensor,
    temperature: float | Tensor,
    q_online: Tensor | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """Values `[...]` of the next state, by the chosen `target`.

    Args:
        target: `mean_field`, the paper's value; `double_q`, the target network's value of the
            online network's best action; `max`, the target network's best value.
        q_target: `[..., A]` target network at (s', m').
        temperature: read by `mean_field`.
        q_online: `[..., A]` online network at (s', m'); read by `double_q`.
        mask: of the actions at s'.

    Raises:
        ValueError: an unknown `target`, or `double_q` without `q_online`.
    """
    if target == "mean_field":
        return mean_field_value(q_target, temperature, mask)
    if target == "max":
        return _masked(q_target, mask).amax(-1)
    if target != "double_q":
        raise ValueError(f"target is {target!r}; legal are {', '.join(TARGETS)}.")
    if q_online is None:
        raise ValueError("target 'double_q' needs q_online, the online network's values.")
    return q_target.gather(-1, greedy_actions(q_online, mask)[..., None]).squeeze(-1)


def mfq_loss(
    q: Tensor,
    actions: Tensor,
    rewards: Tensor,
    terminated: Tensor,
    value_next: Tensor,
    gamma: float | Tensor,
    weights: Tensor | None = None,
    importance: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Mean squared one-step error of Q(s, a, m) (the loss of "Algorithm 1").

        y = r + gamma * (1 - terminated) * v(s')       no gradient flows into y
        L = mean over rows of (y - Q(s, a, m))^2

    Args:
        q: `[B, A]` online values at (s, m).
        actions: `[B]` integers, the actions executed.
        rewards: `[B]` float.
        terminated: `[B]` bool. A truncated episode is not terminated: it bootstraps.
        value_next: `[B]`, `next_value` at (s', m'); ignored where terminated.
        gamma: discount in `[0, 1]`, one or `[B]`.
        weights: `[B]` float; if given, L is the sum of weights times squared errors (the
            tabular form needs it, see `QTable.weights`).
        importance: `[B]` float, by which each row's squared error is multiplied, of rows that were
            drawn by priorities.

    Returns:
        L, `[]`, and the errors y - Q, `[B]`, detached.

    Raises:
        ValueError: shapes that would broadcast instead of matching row by row.
    """
    rows = tuple(actions.shape)
    parts = {"q": q, "rewards": rewards, "terminated": terminated, "value_next": value_next}
    for name, factor in (("weights", weights), ("importance", importance)):
        if factor is not None:
            parts[name] = factor
    for name, part in parts.items():
        # `gather` would ignore the further rows of a longer q; [B] against [B, 1] would become
        # [B, B] unnoticed.
        expected = (*rows, q.shape[-1]) if name == "q" else rows
        if part.shape != expected:
            raise ValueError(f"{name} has shape {tuple(part.shape)}, expected {expected}.")
    taken = q.gather(-1, actions.long()[..., None]).squeeze(-1)  # [B]
    future = torch.where(terminated, torch.zeros_like(value_next), value_next)
    td_error = (rewards + gamma * future).detach() - taken
    squared = td_error.square() if importance is None else importance * td_error.square()
    loss = squared.mean() if weights is None else (weights * squared).sum()
    return loss, td_error.detach()


def n_step_return(
    rewards: Tensor, num_steps: Tensor | None, gamma: float
) -> tuple[Tensor, float | Tensor]:
    """What some steps in a row have paid, and the discount of what comes after them.

        R = sum over i < k of gamma^i r_i,        discount = gamma^k

    `rewards` are `[B, n]`, zero behind the last of k steps, and `num_steps` `[B]` integers k; both
    results are `[B]`. Where `num_steps` is None, each row is one step: the rewards `[B]` and
    `gamma`, the discount of one step in `[0, 1]`, are returned as they are.
    """
    if num_steps is None:
        return rewards, gamma
    powers = gamma ** torch.arange(rewards.shape[-1], device=rewards.device)
    return (rewards * powers).sum(-1), gamma ** num_steps.float()


def schedule_value(schedule: float | list[list[float]], agent_steps: float) -> float:
    """Reads a schedule where `agent_steps` rows have been sampled.

    The `schedule` is a number, or piecewise linear: `[[agent_steps, value], ...]` with increasing
    steps. Before the first point and after the last one the value is constant.
    """
    if isinstance(schedule, int | float):
        return float(schedule)
    for (left, low), (right, high) in itertools.pairwise(schedule):
        if left <= agent_steps < right:
            return low + (high - low) * (agent_steps - left) / (right - left)
    return float(schedule[0][1] if agent_steps < schedule[0][0] else schedule[-1][1])
