"""Old names: the words of RLlib 1.x and 2.x, and today's."""

EXPERIMENT = {
    "local_dir": "storage_path",
    "upload_dir": "storage_path",
    "checkpoint_freq": "checkpoint_config/checkpoint_frequency",
    "checkpoint_at_end": "checkpoint_config/checkpoint_at_end",
    "keep_checkpoints_num": "checkpoint_config/num_to_keep",
    "checkpoint_score_attr": "checkpoint_config/checkpoint_score_attribute",
}
"""Keys of an experiment. A slash leads into a nested mapping, as in all tables here."""

CONFIG = {
    "num_workers": "num_env_runners",
    "num_rollout_workers": "num_env_runners",
    "num_envs_per_worker": "num_envs_per_env_runner",
    "num_cpus_per_worker": "num_cpus_per_env_runner",
    "num_gpus_per_worker": "num_gpus_per_env_runner",
    "custom_resources_per_worker": "custom_resources_per_env_runner",
    "num_cpus_for_driver": "num_cpus_for_main_process",
    "num_cpus_for_local_worker": "num_cpus_for_main_process",
    "num_learner_workers": "num_learners",
    "num_cpus_per_learner_worker": "num_cpus_per_learner",
    "num_gpus_per_learner_worker": "num_gpus_per_learner",
    "evaluation_num_workers": "evaluation_num_env_runners",
    "evaluation_num_episodes": "evaluation_duration",
    "ignore_worker_failures": "ignore_env_runner_failures",
    "recreate_failed_workers": "restart_failed_env_runners",
    "recreate_failed_env_runners": "restart_failed_env_runners",
    "create_env_on_driver": "create_env_on_local_worker",
    "metrics_smoothing_episodes": "metrics_num_episodes_for_smoothing",
    "min_iter_time_s": "min_time_s_per_iteration",
    "min_time_s_per_reporting": "min_time_s_per_iteration",
    "timesteps_per_iteration": "min_sample_timesteps_per_iteration",
    "min_sample_timesteps_per_reporting": "min_sample_timesteps_per_iteration",
    "min_train_timesteps_per_reporting": "min_train_timesteps_per_iteration",
    "sgd_minibatch_size": "minibatch_size",
    "num_sgd_iter": "num_epochs",
    "learning_starts": "num_steps_sampled_before_learning_starts",
    "vf_share_layers": "model/vf_share_layers",
}

DQN_CONFIG = {
    "buffer_size": "replay_buffer_config/capacity",
    "prioritized_replay_alpha": "replay_buffer_config/alpha",
    "prioritized_replay_beta": "replay_buffer_config/beta",
    "replay_buffer_config/prioritized_replay_alpha": "replay_buffer_config/alpha",
    "replay_buffer_config/prioritized_replay_beta": "replay_buffer_config/beta",
    "replay_buffer_config/learning_starts": "num_steps_sampled_before_learning_starts",
}
"""Of the algorithms with RLlib's replay buffers."""

MFQ_CONFIG = {
    "buffer_size": "replay_capacity",
    "replay_buffer_config/capacity": "replay_capacity",
    "train_batch_size": "train_batch_size_per_learner",
}

BUFFERS = {
    "ReplayBuffer": "EpisodeReplayBuffer",
    "MultiAgentReplayBuffer": "EpisodeReplayBuffer",
    "PrioritizedReplayBuffer": "PrioritizedEpisodeReplayBuffer",
    "MultiAgentPrioritizedReplayBuffer": "PrioritizedEpisodeReplayBuffer",
}

METRICS = {
    "timesteps_total": "num_env_steps_sampled_lifetime",
    "num_env_steps_sampled": "num_env_steps_sampled_lifetime",
    "num_env_steps_trained": "learners/__all_modules__/num_env_steps_trained_lifetime",
    "episode_reward_mean": "env_runners/episode_return_mean",
    "episode_reward_min": "env_runners/episode_return_min",
    "episode_reward_max": "env_runners/episode_return_max",
    "episode_len_mean": "env_runners/episode_len_mean",
    "episodes_total": "env_runners/num_episodes_lifetime",
    "episodes_this_iter": "env_runners/num_episodes",
}
"""Keys of results, in `stop`, `checkpoint_score_attr` and `metric`."""

WITHOUT_MEANING = {
    "export_formats": "RLlib exports no models; a checkpoint holds them",
    "sync_config": "storage_path alone says where results go",
    "pass_criteria": "give --as-test and name the goal in stop",
    "_enable_new_api_stack": "the new API stack is the default",
    "simple_optimizer": "the learners decide",
    "sample_async": "env runners always run beside the learner",
    "num_multi_gpu_tower_stacks": "set num_learners",
    "num_data_loader_buffers": "set num_learners",
    "replay_buffer_config/prioritized_replay": "the buffer's type says so",
    "replay_buffer_config/prioritized_replay_eps": "the buffer needs none",
    "replay_buffer_config/storage_unit": "the buffer keeps episodes",
    "replay_buffer_config/replay_sequence_length": "the buffer keeps episodes",
    "replay_buffer_config/_enable_replay_buffer_api": "it is the only one",
}
"""Keys of an experiment or its config that are left out, and why."""

REFUSED = {
    "resources_per_trial": "RLlib sums them up from num_env_runners, num_learners and their "
    "num_cpus_per_... and num_gpus_per_...; set those",
    "horizon": "wrap the environment in gymnasium's TimeLimit, or set env_config's max_cycles",
    "soft_horizon": "an episode ends when the environment truncates it",
    "no_done_at_end": "environments tell truncated from terminated now",
    "model/custom_model": "write an RLModule and set rl_module_spec in Python",
    "model/use_attention": "write an RLModule and set rl_module_spec in Python",
}
"""Keys without which the run would be another one, and what to do instead."""
