"""Schedulers of a sweep, by the names of Tune."""

from __future__ import annotations

import inspect
from typing import Any

from ray.tune.schedulers import SCHEDULER_IMPORT, TrialScheduler, create_scheduler

from rllib_cli.experiments import BadInput
from rllib_cli.reported import Run
from rllib_cli.search_space import with_spaces
from rllib_mfq.mean_field.neighborhood import did_you_mean

SHORT = {"asha": "async_hyperband"}


def make_scheduler(
    name: str, scheduler: str, settings: dict[str, Any], metric: str, run: Run
) -> TrialScheduler:
    """Makes a scheduler.

    Args:
        name: of the experiment.
        scheduler: its name, such as `fifo`, `async_hyperband` (or `asha`) and `pbt`.
        settings: its arguments. `metric` and `mode` have defaults; `hyperparam_mutations` holds
            search spaces.
        metric: what to maximise unless the settings name something else.
        run: tells which metrics will be reported.

    Raises:
        BadInput: an unknown scheduler or setting, or a metric that will not be reported.
    """
    known = SHORT.get(scheduler.lower(), scheduler.lower())
    if known not in SCHEDULER_IMPORT:
        names = [*SHORT, *SCHEDULER_IMPORT]
        raise BadInput(
            f"{name}: scheduler is {scheduler!r}{did_you_mean(scheduler.lower(), names)}; legal "
            f"are {', '.join(names)}."
        )
    kind = SCHEDULER_IMPORT[known]
    legal = inspect.signature(kind() if inspect.isfunction(kind) else kind).parameters
    for key in settings:
        if key not in legal:
            raise BadInput(
                f"{name}: the scheduler {known} has no setting {key!r}{did_you_mean(key, legal)}."
            )
    settings = with_spaces(settings, f"{name}: scheduler_config")
    if "metric" in legal:
        settings = {"metric": metric, "mode": "max", **settings}
        if not run.reports(settings["metric"]):
            raise BadInput(
                f"{name}: the scheduler's metric is {settings['metric']!r}, which this run "
                f"never reports{did_you_mean(settings['metric'], run.names())}."
            )
    if "require_attrs" in legal:  # before the first evaluation there is no win rate
        settings.setdefault("require_attrs", False)
    try:
        made: TrialScheduler = create_scheduler(known, **settings)
    except Exception as error:
        message = " ".join(str(error).split())
        raise BadInput(f"{name}: the scheduler {known} says: {message}") from error
    return made
