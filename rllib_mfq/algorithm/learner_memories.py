"""The learners' memories as the driver knows them.

Rows go by reference from the runner that played them to one learner. The driver sees how many
there are, and which learner has them.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import ObjectLostError, RayError
from ray.rllib.policy.sample_batch import MultiAgentBatch

from rllib_mfq.algorithm.fragment_batch import FragmentBatch
from rllib_mfq.population.population import Array
from rllib_mfq.replay.memories import pieces

LEAD = 4  # fragments that a learner may have been given more than another


@dataclass
class Held:
    """What one learner's memories hold, and what became of the fragments that it was given.

    Attributes:
        steps: rows to learn from, per module.
        added: rows with an action that were ever written, per module.
        arrived: for every runner's fragments, whether they could be read. They cannot if the
            runner, whose memory they lie in, has died.
        error: what was wrong with a fragment, if something was.
    """

    steps: dict[str, int]
    added: dict[str, int]
    arrived: list[bool]
    error: ValueError | None = None


def _write(learner: Any, dealt: Sequence[Sequence[list[Any]]]) -> Held:
    """Writes a learner's share of the fragments into its memories."""
    memories, arrived, error = learner.memories, [], None
    for fragments in dealt[learner._learner_index]:
        try:
            read = [(ray.get(c) if isinstance(c, ray.ObjectRef) else c, k) for c, k in fragments]
        except ObjectLostError:
            arrived.append(False)
            continue
        arrived.append(True)
        try:
            for columns, links in read:
                memories.add(columns, links)
        except ValueError as wrong:
            error = wrong  # one that is raised in a remote learner would only end the learner
    steps = {module_id: len(memory) for module_id, memory in memories.items()}
    added = {module_id: memory.num_steps_added for module_id, memory in memories.items()}
    return Held(steps, added, arrived, error)


class LearnerMemories:
    """The memories of all learners, as the driver knows them.

    Args:
        learner_group: RLlib's, or the old API stack's.
        modules: those that learn.
    """

    def __init__(self, learner_group: Any, modules: Iterable[str]) -> None:
        self.modules = set(modules)
        self._group = learner_group
        self._num_learners = max(1, len(learner_group))
        self._dealt = [0] * self._num_learners  # rows that each learner was given
        self._went: dict[str, int] = {}  # to which learner fragments went, by their names
        self._held = self._write([])

    def give(self, played: Sequence[list[FragmentBatch]]) -> list[list[FragmentBatch]]:
        """Gives every runner's fragments to one learner, such that all get as many rows.

        Fragments that follow each other go to the same learner, where lives go on from one to the
        next, unless it has been given too many more rows than another.

        Args:
            played: what each of some runners has played.

        Returns:
            What arrived: a runner's fragments are lost if it has died meanwhile.

        Raises:
            ValueError: a memory refuses a fragment; see `ReplayMemory.add`.
            LearnerError: a learner has died.
        """
        shares: list[list[list[FragmentBatch]]] = [[] for _ in self._dealt]
        for fragments in played:
            shares[self._choose(fragments)].append(fragments)
        self._held = self._write(shares)
        for held in self._held:
            if held.error is not None:
                raise held.error
        given = zip(shares, self._held, strict=True)
        arrived = {id(f) for share, held in given for f in itertools.compress(share, held.arrived)}
        return [fragments for fragments in played if id(fragments) in arrived]

    def _choose(self, fragments: list[FragmentBatch]) -> int:
        """The learner that is to have a runner's fragments."""
        rows = sum(batch.agent_steps() for batch in fragments)
        links = [link for batch in fragments for link in batch.links.values()]
        fewest = min(self._dealt)
        learner = next((self._went.pop(k.follows) for k in links if k.follows in self._went), -1)
        if learner < 0 or not fewest or self._dealt[learner] > fewest + LEAD * rows:
            learner = self._dealt.index(fewest)
        self._dealt[learner] += rows
        self._went |= {link.name: learner for link in links[:1]}
        return learner

    def ready(self, rows: int) -> list[str]:
        """The modules of which every learner has rows, and all together were given so many.

        What has been written counts, not what is held: a full memory of short fragments holds many
        closing rows, and may never hold so many others.
        """
        return [
            module_id
            for module_id in sorted(self.modules)
            if all(held.steps[module_id] for held in self._held)
            and sum(held.added[module_id] for held in self._held) >= rows
        ]

    def forget(self, modules: set[str]) -> None:
        """Drops the memories of modules that do not learn any more."""
        self.modules -= modules
        self._ask(_forget, modules=modules)

    def __len__(self) -> int:
        """Rows to learn from, of all modules and learners."""
        return sum(sum(held.steps.values()) for held in self._held)

    def states(self) -> Iterator[dict[str, Any]]:
        """The state of one learner's memories after the other."""
        for learner in range(self._num_learners):
            yield self._ask(lambda each: each.memories.get_state(), learner)[0]

    def set_states(self, states: Iterable[Mapping[str, Any]], count: int) -> None:
        """Restores `states`, which are `count`; other learners than theirs are dealt the rows.

        Raises:
            ValueError: the states are of memories of another capacity or `obs_dtype`.
        """
        if count == self._num_learners:
            for learner, state in enumerate(states):
                self._ask(_set_state, learner, state=state)
        else:
            self._deal(states)
        self._held = self._write([])

    def _deal(self, states: Iterable[Mapping[str, Any]]) -> None:
        """Deals the rows of some states to the learners, whose memories are new."""
        self._ask(lambda learner: learner.make_memories())
        longest = self._ask(_capacities, 0)[0]
        added = dict.fromkeys(self.modules, 0)
        for state in states:
            for module_id in self.modules & state.keys():
                added[module_id] += state[module_id]["num_steps_added"]
                dealt = [0] * self._num_learners
                for piece in pieces(state[module_id], longest[module_id]):
                    learner = dealt.index(min(dealt))
                    dealt[learner] += len(piece["actions"])
                    self._ask(_add, learner, columns={module_id: piece})
        self._ask(_count, added={m: rows // self._num_learners for m, rows in added.items()})

    def _write(self, shares: Sequence[Sequence[list[FragmentBatch]]]) -> list[Held]:
        dealt = [[[(b.columns, b.links) for b in f] for f in share] for share in shares]
        return self._ask(_write, dealt=dealt or [[]] * self._num_learners)

    def _ask(
        self, func: Callable[..., Any], learner: int | None = None, **kwargs: Any
    ) -> list[Any]:
        """Calls `func` on every learner, or on one; returns what it returns, in their order."""
        ids = None if learner is None else [learner]
        results = list(self._group.foreach_learner(func, remote_actor_ids=ids, **kwargs))
        for result in results:
            if not result.ok:
                raise LearnerError(result.get())
        if learner is None and len(results) != self._num_learners:
            raise LearnerError(f"only {len(results)} of {self._num_learners} are alive")
        return [result.get() for result in sorted(results, key=lambda r: r.actor_id or 0)]


class LearnerError(RuntimeError):
    """A learner has died, or failed in a way that it does not survive."""

    def __init__(self, cause: Any) -> None:
        reason = str(cause).strip().partition("\n")[0]
        super().__init__(
            f"a learner has died ({reason}), and its memory with it; resume from the last "
            "checkpoint, as Tune does by itself with max_failures."
        )


def _set_state(learner: Any, state: Mapping[str, Any]) -> None:
    learner.memories.set_state(state)


def _capacities(learner: Any) -> dict[str, int]:
    return {module_id: memory.capacity for module_id, memory in learner.memories.items()}


def _add(learner: Any, columns: Mapping[str, Mapping[str, Array]]) -> None:
    learner.memories.add(columns, {})


def _forget(learner: Any, modules: set[str]) -> None:
    for module_id in modules:
        del learner.memories[module_id]


def _count(learner: Any, added: Mapping[str, int]) -> None:
    for module_id, memory in learner.memories.items():
        memory.num_steps_added = max(memory.num_steps_added, added.get(module_id, 0))


def update(learner_group: Any, **kwargs: Any) -> list[Any]:
    """`LearnerGroup.update` with batches of the learners' own; returns the learners' results.

    Raises a LearnerError if a learner dies, and a Diverged if a network does.
    """
    empty = MultiAgentBatch({}, 0)
    data = [empty] * len(learner_group)
    given = {"batches": data} if data else {"batch": empty}
    try:
        results: list[Any] = learner_group.update(**given, **kwargs)
    except RayError as error:
        raise LearnerError(error) from error
    for result in results:
        if isinstance(result, Exception):
            raise result
    return results
