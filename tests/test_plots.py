"""Plots: the figures behind the curves, the cells and the markers."""

import csv
import json

import numpy as np
import pytest
from click.testing import CliRunner
from matplotlib.collections import PolyCollection
from scipy import stats

from rllib_cli.command import main
from rllib_mfq.arena import plots
from rllib_mfq.arena.statistics import win_rates

RATE = "evaluation/env_runners/win_rate/random"
TOURNAMENT = {
    "pairs": [
        {"a": "random", "b": "net", "win_rate": 0.125},
        {"a": "net", "b": "best", "win_rate": 0.3},
    ],
    "ratings": {"random": 0.0, "net": 300.0, "best": 500.0},
}


def write_run(folder, seed, points, rate=True, **config):
    """A trial as Tune leaves it: a line of JSON for each of `points`, `[n, 2]`."""
    trial = folder / f"MFQ_{seed}_{'_'.join(map(str, config.values()))}"
    trial.mkdir(parents=True)
    lines = []
    for steps, value in points:
        evaluated = {"win_rate": {"random": value}, "opponents": {"random": {"kills": 2 * value}}}
        row = {
            "agent_steps_sampled_lifetime": steps,
            "env_runners": {"episode_return_mean": 100 * value},
            "config": {"seed": seed, "env_config": {"map_size": 12}, **config},
        }
        lines.append(json.dumps(row | ({"evaluation": {"env_runners": evaluated}} if rate else {})))
    (trial / "result.json").write_text("\n".join(lines) + "\n")
    return folder


def write_json(path, content):
    path.write_text(json.dumps(content))
    return path


def write_phases(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([plots.PHASES, *rows])
    return path


def curves(figure):
    """`{label: (x, y)}` of the lines in the legend."""
    (axes,) = figure.axes
    return {line.get_label(): line.get_data() for line in axes.lines}


def refuse(*arguments):
    result = CliRunner().invoke(main, ["plot", *map(str, arguments)])
    assert result.exit_code == 2, result.output
    return " ".join(result.output.split())


def test_a_curve_is_the_mean_over_seeds_with_its_t_interval():
    ys = np.random.default_rng(0).normal(size=(4, 5))
    x = np.arange(5.0)
    at, mean, half = plots.mean_curve([(x, y) for y in ys])
    assert (at == x).all()
    for column in range(5):
        sample = [float(y[column]) for y in ys]
        interval = stats.ttest_1samp(sample, 0).confidence_interval(0.95)
        assert mean[column] == pytest.approx(sum(sample) / 4)
        assert mean[column] - half[column] == pytest.approx(interval.low)
        assert mean[column] + half[column] == pytest.approx(interval.high)


def test_seeds_that_report_at_different_steps_are_interpolated_where_all_have_begun():
    runs = [
        (np.array([0.0, 10.0, 20.0]), np.array([0.0, 1.0, 2.0])),
        (np.array([5.0, 15.0]), np.array([3.0, 5.0])),
    ]
    at, mean, half = plots.mean_curve(runs)
    assert at.tolist() == [5.0, 10.0, 15.0]
    assert mean == pytest.approx([(0.5 + 3) / 2, (1 + 4) / 2, (1.5 + 5) / 2])
    assert half[0] == pytest.approx(12.706 * np.std([0.5, 3], ddof=1) / np.sqrt(2), rel=1e-4)
    with pytest.raises(ValueError, match="no x in common"):
        plots.mean_curve([runs[0], (runs[1][0] + 100, runs[1][1])])


def test_runs_that_differ_in_the_seed_only_are_one_curve(tmp_path):
    for seed, lift in ((0, 0.0), (1, 0.2)):
        points = [(1000, 0.1 + lift), (2000, 0.5 + lift)]
        write_run(tmp_path / "mfq", seed, points, lr=1e-3)
        write_run(tmp_path / "iql", seed, [(1000, 0.0), (2000, 0.2)], lr=1e-3)
    figure = plots.plot([tmp_path])
    drawn = curves(figure)
    assert set(drawn) == {"mfq, 2 seeds", "iql, 2 seeds"}
    assert drawn["mfq, 2 seeds"][0].tolist() == [1000, 2000]
    assert drawn["mfq, 2 seeds"][1] == pytest.approx([0.2, 0.6])
    (axes,) = figure.axes
    assert sum(isinstance(item, PolyCollection) for item in axes.collections) == 2
    assert "agent steps" in axes.get_xlabel() and "win rate against random" in axes.get_ylabel()


def test_runs_that_differ_otherwise_are_told_apart(tmp_path):
    for lr in (0.1, 0.2):
        write_run(tmp_path / "a" / "mfq", 0, [(1, 0.5)], lr=lr)
    assert set(curves(plots.plot([tmp_path / "a"]))) == {"lr=0.1", "lr=0.2"}
    assert set(curves(plots.plot([tmp_path / "a"], labels=["low", "high"]))) == {"low", "high"}
    joined = curves(plots.plot([tmp_path / "a"], labels=["lr", "lr"]))
    assert set(joined) == {"lr, 2 seeds"}
    for version in ("before", "after"):
        write_run(tmp_path / version / "mfq", 0, [(1, 0.5)])
    both = [tmp_path / "before", tmp_path / "after"]
    assert set(curves(plots.plot(both))) == set(map(str, both))
    write_run(tmp_path / "a" / "iql", 0, [(1, 0.5)])
    several = {"mfq (lr=0.1)", "mfq (lr=0.2)", "iql"}
    assert set(curves(plots.plot([tmp_path / "a"]))) == several


def test_the_legend_is_outside_and_limited_and_says_what_tells_curves_apart(tmp_path):
    space = ("neighborhood=group", "temperature=[[0, 0.5], [1000000, 0.02]]")
    for number in range(30):
        write_run(tmp_path / "sweep", number, [(1, 0.5)], lr=1e-4 * number, tau=0.1 + number % 2)
    figure = plots.plot([tmp_path])
    (legend,) = figure.legends
    assert legend.get_title().get_text() == "sweep"
    texts = [text.get_text() for text in legend.get_texts()]
    assert len(texts) == 20 and texts[-1] == "and 11 more"
    assert {"lr=0, tau=0.1", "lr=0.0001, tau=1.1"} < set(texts)
    plots.save(figure, tmp_path / "sweep.png")
    (axes,) = figure.axes
    assert not legend.get_window_extent().overlaps(axes.get_window_extent())
    for line in axes.lines:  # each is one point
        assert line.get_marker() == "."
    names = [f"lr=0.000{number}, {', '.join(space)}" for number in range(1, 31)]
    (legend,) = plots.plot([tmp_path], labels=names).legends
    texts = [text.get_text() for text in legend.get_texts()]
    assert texts[0].count("\n") == 1 and texts[0].replace("\n", " ") == names[0]
    assert len(texts) == 10 and texts[-1] == "and 21 more"


def test_without_a_win_rate_the_return_is_drawn_and_any_other_metric_by_name(tmp_path):
    run = write_run(tmp_path / "mfq", 0, [(10, 0.25)], rate=False)
    assert curves(plots.plot([run]))["mfq"][1].tolist() == [25.0]
    run = write_run(tmp_path / "other", 0, [(10, 0.25)])
    kills = "evaluation/env_runners/opponents/random/kills"
    figure = plots.plot([run], metric=kills, x="env_runners/episode_return_mean")
    assert [values.tolist() for values in curves(figure)["other"]] == [[25.0], [0.5]]
    assert figure.axes[0].get_ylabel() == "evaluation, opponents, random, kills"


def test_what_lacks_the_metric_is_left_out_with_a_notice(tmp_path):
    """As after a name was used twice, or a run was killed while it wrote a row."""
    run = write_run(tmp_path / "mfq", 0, [(10, 0.25), (20, 0.5)])
    write_run(tmp_path / "mfq", 1, [(10, 0.5)], rate=False, lr=0.1)
    (tmp_path / "mfq" / "MFQ_2").mkdir()
    (tmp_path / "mfq" / "MFQ_2" / "result.json").write_text("")
    for path in (tmp_path / "mfq").glob("MFQ_0*/result.json"):
        with path.open("a") as file:
            file.write('{"agent_steps_sampled_lifetime": 30, "evalu')
    told = []
    drawn = curves(plots.plot([run], on_skip=told.append))
    assert [*drawn] == ["mfq"] and drawn["mfq"][0].tolist() == [10, 20]
    assert len(told) == 2 and all("a trial is left out: " in each for each in told)
    assert f"metric is '{RATE}'" in told[0] and "no results yet" in told[1]
    result = CliRunner().invoke(main, ["plot", str(run), "-o", str(tmp_path / "x.png")])
    assert result.exit_code == 0 and result.stderr.count("note: a trial is left out") == 2


def test_the_heat_map_has_both_triangles_and_the_best_first():
    figure = plots.plot_tournament(TOURNAMENT)
    axes = figure.axes[0]
    names = [label.get_text() for label in axes.get_xticklabels()]
    assert names == ["best", "net", "random"]
    rates = win_rates(names, TOURNAMENT["pairs"])
    assert rates[1, 2] == 0.875 and rates[2, 1] == 0.125 and rates[0, 1] == 0.7
    played = ~np.isnan(rates)
    assert played.sum() == 4 and not played[0, 2]  # best and random did not meet
    assert ((rates + rates.T)[played] == 1).all()
    assert np.array_equal(axes.images[0].get_array().filled(np.nan), rates, equal_nan=True)
    assert sorted(text.get_text() for text in axes.texts) == ["0.12", "0.30", "0.70", "0.88"]


def test_the_phase_diagram_has_the_exact_line_and_a_marker_per_temperature(tmp_path):
    ising = pytest.importorskip("rllib_mfq.envs.ising")
    rows = [(t, seed, m, 0.9 - 0.1 * seed) for t in (0.8, 1.4) for m in "ab" for seed in (0, 1)]
    figure = plots.plot([write_phases(tmp_path / "phases.csv", rows)])
    (axes,) = figure.axes
    exact = axes.lines[0]
    assert exact.get_ydata() == pytest.approx(ising.exact_magnetization(exact.get_xdata()))
    assert [bar.get_label() for bar in axes.containers] == ["a", "b"]
    for bar in axes.containers:
        assert bar.lines[0].get_xdata() == pytest.approx([0.8, 1.4])
        assert bar.lines[0].get_ydata() == pytest.approx([0.85, 0.85])
    low, high = axes.containers[0].lines[2][0].get_segments()[0][:, 1]
    sample = stats.ttest_1samp([0.9, 0.8], 0).confidence_interval(0.95)
    assert (low, high) == pytest.approx((sample.low, sample.high))


@pytest.mark.parametrize(
    ("suffix", "start"), [(".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF")]
)
def test_the_suffix_decides_on_the_format(tmp_path, suffix, start):
    out = tmp_path / f"map{suffix}"
    source = write_json(tmp_path / "t.json", TOURNAMENT)
    result = CliRunner().invoke(main, ["plot", str(source), "-o", str(out)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert out.read_bytes().startswith(start)


def test_what_cannot_be_drawn_is_one_sentence_and_leaves_nothing(tmp_path):
    run = write_run(tmp_path / "mfq", 0, [(10, 0.25)])
    match = write_json(tmp_path / "t.json", TOURNAMENT)
    phases = write_phases(tmp_path / "phases.csv", [(1.0, 0, "mfq", 0.5)])
    other = write_json(tmp_path / "x.json", {"episodes": []})
    empty = tmp_path / "empty"
    empty.mkdir()
    before = sorted(tmp_path.rglob("*"))
    out = ("-o", tmp_path / "x.png")
    assert "x.jpg must end in .png, .svg or .pdf" in refuse(run, "-o", tmp_path / "x.jpg")
    assert "the folder" in refuse(run, "-o", tmp_path / "no" / "x.png")
    assert "does not exist" in refuse(tmp_path / "nowhere", *out)
    assert "holds no result.json" in refuse(empty, *out)
    assert "is nothing that can be plotted" in refuse(other, *out)
    assert "several kinds" in refuse(run, match, *out)
    assert "several kinds" in refuse(phases, match, *out)
    assert "a second tournament" in refuse(match, match, *out)
    assert f"(did you mean '{RATE}'?)" in refuse(run, *out, "--metric", RATE.replace("rand", "ran"))
    assert "x is 'steps', which mfq never reports" in refuse(run, *out, "--x", "steps")
    assert "there are 2 labels for 1 curves: mfq" in refuse(run, *out, "--label", 1, "--label", 2)
    assert "metric is 'kills', which is for learning curves" in refuse(
        match, *out, "--metric", "kills"
    )
    assert sorted(tmp_path.rglob("*")) == before


def test_without_matplotlib_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "rllib_mfq.arena.plots", None)
    source = write_json(tmp_path / "t.json", TOURNAMENT)
    assert 'pip install "rllib_mfq[render]"' in refuse(source, "-o", tmp_path / "x.png")
