"""What a config says of its modules' networks: `model_config` and RLlib's module specs."""

from collections.abc import Mapping
from typing import Any

from ray.rllib.core.models.catalog import Catalog
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.rllib.core.rl_module.multi_rl_module import MultiRLModule, MultiRLModuleSpec
from ray.rllib.core.rl_module.rl_module import RLModuleSpec

from rllib_mfq.algorithm.networks import check_model_config, own_class
from rllib_mfq.algorithm.rl_module import MFQTorchRLModule
from rllib_mfq.algorithm.roster import check_exist, modules_of_groups
from rllib_mfq.algorithm.settings import TO_PLAY
from rllib_mfq.mean_field.legal import class_of


def check_module_specs(config: Any) -> None:
    """Raises a ValueError if `model_config` or a module spec has what would not be used."""
    given, multi = config._rl_module_spec, MultiRLModuleSpec
    if not isinstance(given, RLModuleSpec | multi | None):
        legal = "an RLModuleSpec or a MultiRLModuleSpec"
        raise ValueError(f"rl_module_spec is {given!r}; it must be {legal}.")
    if isinstance(given, multi):
        shared = {"observation_space", "action_space"}
        if given.multi_rl_module_class is MultiRLModule:
            shared.add("model_config")
        for key in sorted(shared):
            if getattr(given, key) is not None:
                each = f"give it to the specs in rl_module_specs, where it is {key}, too"
                raise ValueError(f"rl_module_spec has {key}, which has no effect on MFQ; {each}.")
    model_configs = [config._model_config]
    for spec in _specs(config).values():
        if spec.module_class is not None:
            class_of("module_class", spec.module_class, MFQTorchRLModule)
        if spec.catalog_class is not None:
            class_of("catalog_class", spec.catalog_class, Catalog)
        if spec.learner_only:
            raise ValueError("learner_only is True; it must be False, for every module plays.")
        if spec.model_config is not None:
            model_configs.append(spec.model_config)
    for model_config in model_configs:
        for key in check_model_config(model_config):
            if key in TO_PLAY:
                instead = f"use training() or the key {key} of the config itself"
                raise ValueError(f"model_config has {key!r}, which MFQ sets; {instead}.")


def check_networks(config: Any) -> None:
    """Raises a ValueError if what is said of the networks does not fit the config's groups."""
    specs = _specs(config)
    check_exist(config, "rl_module_spec has", [m for m in specs if m is not None])
    groups = {group: tuple(spaces) for group, spaces in config.groups.items()}
    images: set[bool] = set()
    remembers = False
    told: dict[str, Any] = {}
    for group, module_id in modules_of_groups(config).items():
        spec = specs.get(module_id, specs.get(None, RLModuleSpec()))
        for name, mine in zip(("observation_space", "action_space"), groups[group], strict=True):
            if getattr(spec, name) not in (None, mine):
                raise ValueError(
                    f"rl_module_spec has the {name} {getattr(spec, name)}, but group {group!r} "
                    f"has {mine}; leave it out, and the environment's own is used."
                )
        both = config._model_config, spec.model_config or {}
        network = check_model_config(
            {k: v for part in map(check_model_config, both) for k, v in part.items()}
        )
        _check_own(config, network, spec)
        shape = groups[group][0].shape
        if len(shape) not in (1, 3) and not own_class(network):
            raise ValueError(
                f"group {group!r} has observations of shape {shape}; MFQ needs [n] or [height, "
                "width, channels], or an encoder of your own."
            )
        images.add(len(shape) == 3)
        remembers |= bool(network.get("use_lstm"))
        told |= network
    if config.burn_in_len and not remembers:
        raise ValueError(
            f"burn_in_len is {config.burn_in_len}, which has no effect without use_lstm in the "
            "model_config."
        )
    default, other = DefaultModelConfig(), {"fcnet": "conv_filters", "conv": "fcnet_hiddens"}
    for key, value in told.items():
        kind = key.partition("_")[0]
        if kind in other and value != getattr(default, key) and (kind == "conv") not in images:
            shape = next(iter(groups.values()))[0].shape
            raise ValueError(
                f"model_config has {key!r}, which has no effect on observations of shape "
                f"{shape}; set {other[kind]}."
            )


def _specs(config: Any) -> dict[str | None, RLModuleSpec]:
    """The specs of a config by module; that of all modules stands under None."""
    spec = config._rl_module_spec
    if isinstance(spec, MultiRLModuleSpec):
        return dict(spec.rl_module_specs)
    return {} if spec is None else {None: spec}


def _check_own(config: Any, network: Mapping[str, Any], spec: RLModuleSpec) -> None:
    """Raises a ValueError if a setting has no effect, since a class of the user's is in its way."""
    own = own_class(network)
    if network.get("use_lstm") and config.table_levels is not None:
        raise ValueError("use_lstm is True, which has no effect with table_levels; leave one out.")
    if own and config.table_levels is not None:
        raise ValueError(f"{own} is {network[own]!r}, which has no effect with table_levels.")
    if own == "q_network" and config.dueling:
        raise ValueError(f"dueling is True, which has no effect on q_network {network[own]!r}.")
    if spec.catalog_class is not None and (own or config.table_levels is not None):
        stronger = own or "table_levels"
        raise ValueError(
            f"catalog_class is {spec.catalog_class!r}, which has no effect with {stronger}."
        )
