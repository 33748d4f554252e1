"""Time and collectives of programs whose sums can be done by hand."""

import pytest

from pokevla_jax.plan import cost
from pokevla_jax.plan import hlo
from pokevla_jax.plan import kernels
from pokevla_jax.plan import topologies
from tests.plan import programs

V5E = topologies.parse("v5e:4x4")
GRID = [(x, y, 0) for x in range(4) for y in range(4)]
CLOCK = 1.5e9
LINK = V5E.chip.link_bytes_per_second


def analyze(text, topology=V5E, coordinates=GRID):
    return cost.analyze(hlo.parse(text), topology, coordinates)


def test_cycles_are_multiplied_by_trip_counts():
    tally = analyze(programs.SCAN)
    assert tally.compute == pytest.approx(24 * 1500 / CLOCK)
    assert tally.seconds == tally.compute
    assert not tally.counts


def test_loops_within_loops_and_their_collectives():
    tally = analyze(programs.WINDOWED)
    # 3 layers x 8 turns; each turn's additions of the counters have no estimate and move a few bytes.
    assert tally.compute - tally.by_bytes == pytest.approx(3 * 8 * 1000 / CLOCK)
    assert tally.counts == {"collective-permute": 24}
    assert tally.bytes["collective-permute"] == 24 * 8 * 128 * 2
    # The longest of the permutes crosses three links, because a line of four does not close to a ring.
    assert tally.wire["collective-permute"] == pytest.approx(24 * (3 * 2048 / LINK + 3e-6))


def test_what_the_schedule_overlaps_is_hidden_and_the_rest_is_not():
    tally = analyze(programs.COLLECTIVES)
    full = 1024 * 1024 * 2
    # Groups of four neighbours along one open dimension: one link's bandwidth.
    gather = scatter = 0.75 * full / LINK
    reduce = 1e-6 * (3 + 3) / 2  # a scalar over the whole slice costs the hops alone
    assert tally.wire["all-gather"] == pytest.approx(gather)
    assert tally.wire["reduce-scatter"] == pytest.approx(scatter)
    assert tally.wire["all-reduce"] == pytest.approx(reduce)
    beside = 15000 / CLOCK
    assert 0 < beside < gather
    fused = tally.by_bytes  # the fused reduce-scatter has no estimate of its own
    assert tally.exposed == pytest.approx(gather - beside + reduce + scatter)
    assert tally.seconds == pytest.approx(gather + reduce + scatter + fused)
    assert tally.waits["jit(train_step)/grad_norm"] == pytest.approx(reduce)


def test_a_sum_of_which_a_slice_is_kept_is_a_reduce_scatter():
    text = programs.COLLECTIVES.replace(
        "ROOT %reduce-scatter.1 = bf16[256,1024]{1,0} reduce-scatter(%g)",
        "ROOT %all-reduce.9 = bf16[1024,1024]{1,0} all-reduce(%g)",
    )
    assert analyze(text).bytes == analyze(programs.COLLECTIVES).bytes
    elsewhere = analyze(text.replace("%all-reduce-scatter.1", "%fused_computation.1"))
    assert elsewhere.bytes["all-reduce"] > 1.9 * analyze(text).bytes["reduce-scatter"]


def test_compute_behind_the_end_hides_nothing():
    lines = programs.COLLECTIVES.splitlines()
    done = next(i for i, line in enumerate(lines) if "all-gather-done.1 =" in line)
    lines[done - 1], lines[done] = lines[done], lines[done - 1]
    earlier, later = analyze(programs.COLLECTIVES), analyze("\n".join(lines))
    assert later.seconds - earlier.seconds == pytest.approx(15000 / CLOCK)


def test_a_collective_in_pieces_counts_once_and_is_hidden_by_what_it_is_fused_with():
    tally = analyze(programs.CHAIN)
    gather = 0.75 * 1024 * 1024 * 2 / LINK
    assert tally.counts == {"all-gather": 1}
    assert tally.wire["all-gather"] == pytest.approx(gather)
    assert tally.compute == pytest.approx(15000 / CLOCK)
    assert tally.exposed == pytest.approx(gather - 15000 / CLOCK)


def test_a_ring_has_twice_the_bandwidth_of_a_line_and_dimensions_add_up():
    pod = topologies.parse("v5e:16x16")
    everyone = [(x, y, 0) for x in range(16) for y in range(16)]
    assert pod.bandwidth(everyone) == 4 * LINK
    assert pod.bandwidth([(x, 3, 0) for x in range(16)]) == 2 * LINK
    assert pod.bandwidth([(x, 3, 0) for x in range(8)]) == LINK
    assert V5E.bandwidth(GRID) == 2 * LINK
    cube = topologies.parse("v5p:4x4x8")
    everyone = [(x, y, z) for x in range(4) for y in range(4) for z in range(8)]
    assert cube.bandwidth(everyone) == 6 * cube.chip.link_bytes_per_second


def test_kernels_are_never_free():
    tally = analyze(programs.KERNEL)
    flops = 2 * 2 * 8 * 14 * 1024 * 1024 * 64
    assert tally.kernels == pytest.approx(flops / (197e12 * kernels.SPLASH_EFFICIENCY / 2))
    # What stands behind the kernel's line breaks is not lost.
    assert tally.seconds == pytest.approx(tally.kernels + 3000 / CLOCK)
    # A causal mask of four by four blocks leaves ten.
    causal = analyze(programs.KERNEL.replace("body/splash", "body/blocks_10_of_16/static_sparsity/splash"))
    assert causal.kernels == pytest.approx(tally.kernels * 10 / 16)
    unknown = analyze(programs.KERNEL.replace("splash_mha_fwd", "mystery"))
    assert unknown.kernels == pytest.approx((2 * 8 * 14 + 2 * 8 * 2) * 1024 * 64 * 2 / (8.2e11 / 4))


def test_peaks_follow_from_the_clocks():
    """Clock x cores x units x 2 x side^2 is the published peak: the clocks are not free parameters."""
    units = {"v4": 8 * 128**2, "v5e": 4 * 128**2, "v5p": 8 * 128**2, "v6e": 4 * 256**2}
    for name, chip in topologies.CHIPS.items():
        assert chip.clock_hz * 2 * units[name] == pytest.approx(chip.peak_flops, rel=0.005)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v7x:2x2", "no chip 'v7x' here; known: v4, v5e, v5p, v6e"),
        ("v5e", "give the slice's sizes, such as v5e:"),
        ("v5e:3x5", "not a slice of v5e; nearest: v5e:4x4"),
        ("v5e:256", "not a slice of v5e; nearest: v5e:16x16"),
        ("v5p:4x4", "not a slice of v5p"),
    ],
)
def test_an_unknown_slice_names_the_nearest(name, message):
    with pytest.raises(topologies.ConfigError, match=message) as error:
        topologies.parse(name)
    assert "\n" not in str(error.value)


def test_whole_cubes_are_slices():
    assert topologies.parse("v5p:4x4x12").num_chips == 192
    assert topologies.parse("v6e:16x16").name == "v6e:16x16"
