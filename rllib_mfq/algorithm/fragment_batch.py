"""The batch that an env runner's `sample()` returns."""

import copy
from typing import Any

import ray
from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch
from ray.rllib.utils.annotations import override

from rllib_mfq.population.fragment import Fragment
from rllib_mfq.replay.memory import WRITTEN


class FragmentBatch(MultiAgentBatch):
    """What `sample()` returns: the columns of every module, and the episodes that ended.

    The columns are views of memory that the runner's next `sample()` overwrites.

    Attributes:
        mine: the one group that the learner played, and whose rows these are, where `self_play`
            has an opponent; None if the learner played all groups.
    """

    def __init__(self, fragment: Fragment, weights_seq_no: int, mine: str | None = None) -> None:
        batches = {name: SampleBatch(columns) for name, columns in fragment.columns.items()}
        super().__init__(batches, fragment.env_steps)
        self._reference: ray.ObjectRef | None = None
        self.steps_of_groups = fragment.agent_steps
        self.episodes = fragment.episodes
        self.links = fragment.links
        self.weights_seq_no = weights_seq_no
        self.mine = mine

    @override(MultiAgentBatch)
    def agent_steps(self) -> int:
        """The rows with `loss_mask`."""
        return sum(self.steps_of_groups.values())

    @property
    def columns(self) -> Any:
        """The columns of every module; of a batch that was `put`, the reference to them."""
        return self.policy_batches if self._reference is None else self._reference

    def put(self) -> "FragmentBatch":
        """This batch, with the columns that a memory keeps in Ray's object store.

        They are lost when the process that puts them there dies. A batch that was put stays so.
        """
        if self._reference is not None:
            return self
        light = copy.copy(self)
        light.policy_batches = {}
        light._reference = ray.put(
            {
                module_id: {name: batch[name] for name in WRITTEN if name in batch}
                for module_id, batch in self.policy_batches.items()
            }
        )
        return light
