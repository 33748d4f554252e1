"""``--benchmark libero_plus``: episodes, samples, what is not run, and the whole way through the simulator."""

from collections import Counter
from pathlib import Path

import pytest

from eval import __main__ as cli
from eval.benchmarks import build_manifest
from eval.benchmarks import libero_plus
from eval.benchmarks.sampling import stratified
from eval.errors import EvaluationError
from eval.manifest import EpisodeSpec
from eval.presets import PRESETS
from eval.results import RunFolder
from eval.run import Options
from tests import plus_metadata

BANNER = (
    "6,983 of 10,030 LIBERO-Plus episodes are run; "
    "3,047 need LIBERO-Plus's assets: light 1,142, background 1,076, layout 829; give --plus-assets"
)


@pytest.fixture(scope="module")
def metadata(tmp_path_factory):
    return plus_metadata.write_metadata(tmp_path_factory.mktemp("plus") / "plus")


def options(metadata, **more):
    return Options(policy="random", run_dir=Path("run"), benchmark="libero_plus", plus=str(metadata), **more)


def test_an_episode_says_what_is_perturbed(metadata):
    specs = build_manifest(options(metadata))
    assert [spec.perturbation for spec in specs] == [
        suffix for _, suffix, _, _ in plus_metadata.TASKS if not suffix.startswith(("table", "add", "light"))
    ]
    camera, robot = specs[:2]
    assert (camera.category, camera.level, camera.init_state, camera.max_steps) == ("camera", 5, None, 280)
    assert camera.task_name == "pick_up_the_alphabet_soup_and_place_it_in_the_basket"
    assert camera.prompt == "pick up the alphabet soup and place it in the basket"
    assert EpisodeSpec.from_dict(camera.to_dict()) == camera
    assert camera.start == "camera view_30_15_120_4_356_initstate_0"
    # One compiled scene for all that leave it as it is.
    assert camera.scene == robot.scene == "libero_object/0"
    (layout,) = (spec for spec in specs if spec.category == "layout")
    assert layout.scene == "libero_object/0/level1_sample2"
    assert len({spec.id for spec in specs}) == len(specs)
    # Two policies see the same noise on the same episode.
    assert camera.random_seed() == EpisodeSpec.from_dict(camera.to_dict()).random_seed()


def test_the_prompt_is_a_choice(metadata):
    clean, official = (build_manifest(options(metadata, prompt=mode)) for mode in ("clean", "official"))
    changed = [(a.category, b.prompt) for a, b in zip(clean, official, strict=True) if a.prompt != b.prompt]
    assert {category for category, _ in changed} == {"camera", "robot", "noise", "layout"}
    assert changed[0][1].endswith("in the basket view 30 15 120 4 356 initstate 0")
    rewritten = [spec.prompt for spec in official if spec.category == "language"]
    assert rewritten == [plus_metadata.REWRITTEN]


def test_suites_tasks_and_categories_are_chosen(metadata):
    def chosen(**more):
        return [(spec.task, spec.category) for spec in build_manifest(options(metadata, **more))]

    assert chosen(category="noise") == [(0, "noise"), (1, "noise")]
    assert chosen(category="noise,camera", tasks="0") == [(0, "camera"), (0, "noise")]
    assert chosen(suite="all", tasks="1") == [(1, "noise")]
    for wrong, words in (
        ({"category": "colour"}, "LIBERO-Plus has camera, robot"),
        ({"category": "noise,noise"}, "names a category twice"),
        ({"category": "light"}, "All 1 episodes asked for need LIBERO-Plus's assets"),
        ({"suite": "libero_goal"}, "No episode to run"),
        ({"layouts": 2}, "--layouts goes with --benchmark libero_moved"),
        ({"protocol": "lerobot"}, "fog covers pictures of up to 256 pixels, and these have 360"),
    ):
        with pytest.raises(EvaluationError, match=words):
            chosen(**wrong)
    # Its own options say which benchmark is meant.
    assert build_manifest(Options("random", Path("run"), plus=str(metadata), category="robot"))[0].category == "robot"


def test_what_is_not_run_is_counted(metadata):
    few = libero_plus.coverage(options(metadata, sample=2))
    assert few == {
        "benchmark": "LIBERO-Plus",
        "episodes": 9,
        "run": 2,
        "need_assets": {"light": 1, "background": 1, "layout": 1},
    }
    assert libero_plus.banner(few).endswith("4 are left out by --sample")
    everything = libero_plus.coverage(options(metadata, plus_assets="assets"))
    assert libero_plus.banner(everything) == "9 of 9 LIBERO-Plus episodes are run"


def test_the_real_benchmark_is_counted_and_sampled():
    real = plus_metadata.real_metadata().root
    everything = options(real, suite="all")
    specs = build_manifest(everything)
    assert len(specs) == 6983
    assert libero_plus.banner(libero_plus.coverage(everything)) == BANNER
    sample = build_manifest(options(real, suite="all", sample=300))
    assert len(sample) == 300
    counts, drawn = (Counter((s.suite, s.category, s.level) for s in some) for some in (specs, sample))
    assert all(abs(drawn[key] - 300 * counts[key] / 6983) < 2 for key in counts)


def test_samples_are_balanced_nested_and_steady():
    items = [f"{stratum}{index}" for stratum, size in (("a", 100), ("b", 50), ("c", 7)) for index in range(size)]

    def draw(count, seed=0, of=tuple(items)):
        return stratified(of, count, name=str, stratum=lambda item: item[0], seed=seed)

    sizes = {"a": 100, "b": 50, "c": 7}
    previous = set()
    for count in range(0, len(items) + 1, 13):
        sample = draw(count)
        assert len(sample) == count and sample == [item for item in items if item in sample]
        assert previous <= set(sample)
        previous = set(sample)
        drawn = Counter(item[0] for item in sample)
        assert all(abs(drawn[key] - count * size / len(items)) < 2 for key, size in sizes.items())
    assert draw(40) != draw(40, seed=1)
    assert set(draw(40, of=tuple(reversed(items)))) == set(draw(40))
    assert draw(1000) == items
    # Every item has its chance.
    hits = Counter(item for seed in range(300) for item in draw(20, seed))
    assert min(hits[item] for item in items) >= 10 and max(hits.values()) <= 90


@pytest.mark.sim
@pytest.mark.slow
def test_a_run_says_what_it_left_out_and_keeps_its_choices_apart(metadata, tmp_path, capsys):
    from pokevla_jax.sim.assets import resolve_assets

    command = ["run", "--policy", "random", "--plus", str(metadata), "--benchmark", "libero_plus", "--tasks", "0"]
    command += ["--assets", str(resolve_assets().root), "--max-steps", "8", "--workers", "1"]
    command += ["--run-dir", str(tmp_path / "run"), "--videos", "all"]
    assert cli.main(command) == 0
    shown = capsys.readouterr()
    assert "5 of 8 LIBERO-Plus episodes are run; 3 need LIBERO-Plus's assets" in shown.err
    assert "COVERAGE: 5 of 8" in shown.out
    folder = RunFolder(tmp_path / "run")
    records = list(folder.records().values())
    assert Counter(r["category"] for r in records) == dict.fromkeys(
        ("camera", "robot", "noise", "language", "layout"), 1
    )
    assert all((r["outcome"], r["steps"]) == ("failure", 8) for r in records)
    assert all(folder.video(r["id"]).stat().st_size > 5_000 for r in records)
    simulation = folder.protocol().simulation
    assert simulation["prompt"] == "clean" and simulation["libero_plus"]["robot"] == "official"
    assert simulation["libero_plus"]["metadata"] == "changed" and not simulation["published"]
    for more in (["--robot", "strict"], ["--prompt", "official"]):
        assert cli.main([*command, *more]) == 2
        assert "another protocol" in capsys.readouterr().err


@pytest.mark.sim
@pytest.mark.slow
@pytest.mark.parametrize("suite", ["libero_spatial", "libero_object", "libero_goal", "libero_10"])
def test_every_runnable_category_is_played_in_every_suite(suite, tmp_path):
    """The benchmark's own tasks, with an agent that looks."""
    from eval.agents import RandomAgent
    from eval.scenes import LiberoScenes
    from eval.workers import Simulator
    from pokevla_jax.sim.assets import resolve_assets

    real = plus_metadata.real_metadata().root
    specs = build_manifest(options(real, suite=suite, tasks="0", max_steps=4))
    scenes = LiberoScenes(resolve_assets(), PRESETS["pokevla"], libero_plus.Choices.of(options(real)))
    simulator = Simulator(scenes, LookingAgent(RandomAgent()))
    try:
        for category in ("camera", "robot", "language", "noise", "layout"):
            spec = next(spec for spec in specs if spec.category == category)
            record = simulator.run(spec)
            assert record["outcome"] in ("success", "failure"), record.get("error")
            assert (record["steps"], record["looks"]) == (4, 1)
    finally:
        simulator.close()


class LookingAgent:
    """Another agent's actions, by one who has to be shown the scene."""

    needs_images = True

    def __init__(self, agent):
        self._agent = agent

    def begin(self, environment, spec):
        self._agent.begin(environment, spec)

    def act(self, observation):
        assert observation["images"].shape == (2, 128, 128, 3)
        assert observation["images"][0].std() > 5
        return self._agent.act(None)
