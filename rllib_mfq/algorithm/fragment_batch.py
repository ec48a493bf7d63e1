"""The batch that an env runner's `sample()` returns."""

from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch
from ray.rllib.utils.annotations import override

from rllib_mfq.population.fragment import Fragment


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
        self.steps_of_groups = fragment.agent_steps
        self.episodes = fragment.episodes
        self.links = fragment.links
        self.weights_seq_no = weights_seq_no
        self.mine = mine

    @override(MultiAgentBatch)
    def agent_steps(self) -> int:
        """The rows with `loss_mask`."""
        return sum(self.steps_of_groups.values())
