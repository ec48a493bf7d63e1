"""The network of a module: RLlib's encoder, or the user's own encoder or whole Q network.

`docs/networks.md` shows how to write one's own.
"""

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.models.base import ENCODER_OUT
from ray.rllib.core.models.catalog import Catalog
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.rllib.models.utils import get_filter_config
from torch import Tensor, nn

from rllib_mfq.algorithm.settings import TO_PLAY
from rllib_mfq.mean_field.legal import class_of, did_you_mean
from rllib_mfq.mean_field.network import MeanFieldQNetwork, OwnQNetwork
from rllib_mfq.mean_field.observations import Observations
from rllib_mfq.mean_field.recurrent import RecurrentQNetwork
from rllib_mfq.mean_field.table import QTable

logger = logging.getLogger(__name__)

LSTM = ("lstm_cell_size", "max_seq_len", "lstm_use_prev_action", "lstm_use_prev_reward")
"""Keys of a model config that act where `use_lstm` is True."""

OWN = ("encoder", "q_network")
"""Keys of a model config that name a class of the user's; `<key>_config` has its arguments."""

LARGE_LAYER = 2_000_000  # parameters


def check_model_config(model_config: Any) -> dict[str, Any]:
    """A copy of a model config as a dict.

    Raises a ValueError if it is no dict, or if a key is unknown or has no effect here.
    """
    if isinstance(model_config, DefaultModelConfig):
        model_config = dataclasses.asdict(model_config)
    if not isinstance(model_config, Mapping):
        raise ValueError(f"model_config is {model_config!r}; it must be a dict.")
    default, own = DefaultModelConfig(), [*OWN, *(f"{key}_config" for key in OWN)]
    legal = {field.name for field in dataclasses.fields(DefaultModelConfig)} | {*TO_PLAY, *own}
    given = own_class(model_config)
    _check_lstm(model_config)
    for key, value in model_config.items():
        if key not in legal:
            raise ValueError(f"model_config has no key {key!r}{did_you_mean(str(key), legal)}.")
        if key in (*own, *TO_PLAY, *LSTM, "use_lstm") or value == getattr(default, key):
            continue
        if not key.startswith(("fcnet_", "conv_")):
            raise ValueError(
                f"model_config has {key!r}, which has no effect on MFQ; of RLlib's networks it "
                "uses the encoder: set fcnet_..., conv_... or use_lstm."
            )
        if given:
            raise ValueError(
                f"model_config has {key!r}, which has no effect on {given} {model_config[given]!r};"
                f" put what it needs into {given}_config."
            )
    return dict(model_config)


def _check_lstm(model_config: Mapping[str, Any]) -> None:
    default, recurrent = vars(DefaultModelConfig()), model_config.get("use_lstm", False)
    for key in ("use_lstm", *LSTM):
        value = model_config.get(key, default[key])
        if isinstance(default[key], bool):
            if not isinstance(value, bool):
                raise ValueError(f"{key} is {value!r}; it must be True or False.")
        elif not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{key} is {value!r}; it must be an integer of at least 1.")
        if value != default[key] and not recurrent:
            raise ValueError(f"model_config has {key!r}, which has no effect without use_lstm.")
    if recurrent and model_config.get("q_network") is not None:
        raise ValueError(
            f"use_lstm is True, which has no effect on q_network {model_config['q_network']!r}; "
            "name an encoder instead, whose features the LSTM reads."
        )


def lstm_cells(model_config: Mapping[str, Any]) -> int:
    """The cells of the LSTM that a model config asks for, 0 for none."""
    default = DefaultModelConfig.lstm_cell_size
    return model_config.get("lstm_cell_size", default) if model_config.get("use_lstm") else 0


def own_class(model_config: Mapping[str, Any]) -> str | None:
    """The key of `OWN` by which a model config names a class of the user's, if it does.

    Raises a ValueError if it is no class of networks, or if it has two or lacks its arguments'.
    """
    given = [key for key in OWN if model_config.get(key) is not None]
    if len(given) > 1:
        raise ValueError("model_config has an encoder and a q_network; it must have one of them.")
    for key in OWN:
        arguments = model_config.get(f"{key}_config")
        if arguments is not None and not isinstance(arguments, Mapping):
            raise ValueError(f"{key}_config is {arguments!r}; it must be a dict.")
        if arguments and key not in given:
            raise ValueError(f"model_config has {key}_config, which has no effect without {key}.")
    for key in given:
        class_of(key, model_config[key], nn.Module)
    return given[0] if given else None


def make_network(
    space: gym.spaces.Box,
    action_space: gym.spaces.Discrete[Any],
    config: Mapping[str, Any],
    known: Mapping[str, Any],
    catalog: Catalog | None,
) -> MeanFieldQNetwork | RecurrentQNetwork | OwnQNetwork | QTable:
    """The network of a module: Q(s, ., m) of `[B, *obs]` and `[B, mean_action_dim]`.

    Args:
        space: the module's observations.
        action_space: its actions.
        config: a checked model config.
        known: the entries of `TO_PLAY`, of which `mean_action_dim` is a number.
        catalog: makes the encoder; None if the model config names an own class.

    Raises:
        ValueError: what a class of the user's returns has the wrong shape or type.
    """
    num_actions, width = int(action_space.n), int(known["mean_action_dim"])
    if known["table_levels"]:
        first, last = int(space.low[0]), int(space.high[0])
        return QTable(first, last - first + 1, known["table_levels"], width, num_actions)
    normalise = known["observation_filter"] == "MeanStdFilter"
    observations = Observations(space.shape, obs_scale(space), normalise)
    obs = torch.zeros(2, *space.shape)
    if config.get("q_network") is not None:
        own = class_of("q_network", config["q_network"], nn.Module)
        arguments = config.get("q_network_config") or {}
        network = OwnQNetwork(own(space, action_space, width, **arguments), observations)
        _check_output(own, network, (obs, torch.zeros(2, width)), num_actions)
        return network
    encoder = make_encoder(space, config, catalog)
    features = _check_output(type(encoder), encoder, (observations(obs),), None)
    sizes, rest = (width, num_actions), (known["dueling"], observations)
    if config.get("use_lstm"):
        default = vars(DefaultModelConfig())
        cells, _, *previous = (config.get(key, default[key]) for key in LSTM)
        return RecurrentQNetwork(encoder, features, cells, *sizes, *rest, *previous)
    return MeanFieldQNetwork(encoder, features, *sizes, *rest)


def make_encoder(
    space: gym.spaces.Box, config: Mapping[str, Any], catalog: Catalog | None
) -> nn.Module:
    """Maps observations `[B, *obs]`, float32, to features `[B, n]`; see `make_network`."""
    if config.get("encoder") is not None:
        own = class_of("encoder", config["encoder"], nn.Module)
        encoder: nn.Module = own(space, **config.get("encoder_config") or {})
        return encoder
    assert catalog is not None
    return CatalogEncoder(catalog, has_channels_first(space.shape))


def make_catalog(
    space: gym.spaces.Box,
    action_space: gym.spaces.Discrete[Any],
    config: Mapping[str, Any],
    catalog_class: type[Catalog] | None,
) -> Catalog:
    """RLlib's catalog, or the user's, which gets images with their channels last."""
    config = {**config, "use_lstm": False}  # the catalog makes what is before the LSTM
    if has_channels_first(space.shape):
        low, high = (np.moveaxis(bound, 0, -1) for bound in (space.low, space.high))
        space = gym.spaces.Box(low, high, dtype=low.dtype.type)
    if not config.get("conv_filters") and len(space.shape) == 3:
        config["conv_filters"] = default_conv_filters(space.shape)
    return (catalog_class or Catalog)(space, action_space, config)


class CatalogEncoder(nn.Module):
    """A catalog's encoder, from a tensor of observations to a tensor of features."""

    def __init__(self, catalog: Catalog, channels_first: bool = False) -> None:
        super().__init__()
        self.encoder = catalog.build_encoder(framework="torch")
        self._channels_first = channels_first

    def forward(self, obs: Tensor) -> Tensor:
        """Features `[B, n]` of observations `[B, *obs]`."""
        obs = obs.movedim(1, -1) if self._channels_first else obs
        features: Tensor = self.encoder({Columns.OBS: obs})[ENCODER_OUT]
        return features


def obs_scale(space: gym.spaces.Box) -> float | None:
    """What observations are multiplied by: `uint8` ones, such as images, become 0 to 1."""
    return 1 / max(1, int(space.high.max())) if space.dtype == np.uint8 else None


def has_channels_first(shape: tuple[int, ...]) -> bool:
    """Whether observations are images `[channels, height, width]`.

    Gymnasium's `FrameStackObservation` gives such. Read as `[height, width, channels]` they would
    have as many channels as they are wide, or, where they are not square, more than images have.
    """
    if len(shape) != 3:
        return False
    square = shape[0] < shape[1] == shape[2]
    return square or (shape[0] <= 16 and min(shape[1:]) >= max(20, 2 * shape[0]))


def default_conv_filters(shape: tuple[int, ...]) -> list[list[Any]]:
    """RLlib's `conv_filters` for observations `[height, width, channels]`.

    Small ones get one or two layers, without padding, which would double the time they take. Where
    a kernel of 3 cells with stride 2 would leave out the last row or column, it has 4.
    Sizes for which RLlib has filters get those. (Its last one of 11 x 11 then covers what is left
    of the image, as in RLlib's old networks: with the padding that its encoder adds by default it
    would return 30,976 features instead of 256.) Others are halved until little is left.
    """
    height, width = shape[:2]
    if max(height, width) < 42:
        if min(height, width) >= 7:
            layers: list[list[Any]] = []
            sides = [height, width]
            for channels in (16, 32):
                layers.append([channels, [3 if side % 2 else 4 for side in sides], 2, "valid"])
                sides = [(side - 1) // 2 for side in sides]
            return layers
        return [[32, min(3, height, width), 1, "valid"]]
    if height == width and height in (42, 64, 84, 96):
        known: list[list[Any]] = [list(layer) for layer in get_filter_config(list(shape))]
        return [[*layer, "valid"] if layer[1] == [11, 11] else layer for layer in known]
    filters: list[list[Any]] = [[16, 8, 4], [32, 4, 2]]
    left = -(-height // 8) * -(-width // 8)
    while left > 64:
        filters.append([64, 4, 2])
        left //= 4
    return filters


def warn_of_large_layers(module_id: str, shape: tuple[int, ...], network: nn.Module) -> None:
    """Logs what to do about a layer of more than `LARGE_LAYER` parameters, if there is one."""
    name, layer = max(network.named_parameters(), key=lambda named: named[1].numel())
    if layer.numel() > LARGE_LAYER:
        smaller = "set smaller fcnet_hiddens"
        if len(shape) == 3:
            smaller = "shrink the images in the environment, as by gymnasium's ResizeObservation, "
            smaller += "or set conv_filters with more layers of stride 2 or larger"
        logger.warning(
            f"module {module_id!r}: {name} has {layer.numel():,} parameters for observations of "
            f"shape {shape}, which makes every update slow; {smaller}."
        )


def _check_output(
    own: type, network: nn.Module, inputs: tuple[Tensor, ...], width: int | None
) -> int:
    """The width of what a network returns for two rows.

    Raises a ValueError unless it is a float tensor `[2, width]`, None for any width.
    """
    learning = network.training
    with torch.no_grad():
        out = network.eval()(*inputs)
    network.train(learning)
    legal = f"a float tensor of shape [2, {width or 'features'}] for 2 observations"
    if not isinstance(out, Tensor):
        raise ValueError(f"{own.__name__} returns a {type(out).__name__}; it must return {legal}.")
    fits = out.dim() == 2 and len(out) == 2 and out.shape[1] == (width or max(1, out.shape[1]))
    if not (fits and out.is_floating_point()):
        found = f"shape {list(out.shape)} of {out.dtype}"
        raise ValueError(f"{own.__name__} returns {found}; it must return {legal}.")
    return int(out.shape[1])
