"""The reader of scheduled programs."""

import pytest

from pokevla_jax.plan import hlo
from tests.plan import programs


def instruction(program, name):
    return next(c.by_name[name] for c in program.computations.values() if name in c.by_name)


def test_instructions_are_read_whole():
    program = hlo.parse(programs.SCAN)
    fusion = instruction(program, "fusion.1")
    assert program.entry == "main"
    assert (fusion.opcode, fusion.operands, fusion.cycles) == ("fusion", ("x",), 1500)
    assert fusion.called == {"calls": "fused_matmul"}
    assert fusion.op_name.endswith("checkpoint/mlp/dot_general")
    assert fusion.bytes == 8 * 128 * 2
    # A tuple's type has parentheses and comments of its own.
    loop = instruction(program, "while.1")
    assert loop.operands == ("tuple.1",)
    assert loop.bytes == 4 + 8 * 128 * 2
    assert program.computations["main"].root.name == "y"


def test_quoted_parentheses_do_not_end_an_instruction():
    kernel = instruction(hlo.parse(programs.KERNEL), "attention")
    assert kernel.operands == ("q", "k", "k")
    assert kernel.custom_call_target == "tpu_custom_call"
    assert kernel.op_name.endswith("pallas_call")


def test_a_text_that_is_cut_off_is_refused():
    with pytest.raises(hlo.HloError, match="ends inside of computation main"):
        hlo.parse(programs.SCAN.rstrip().removesuffix("}"))
    without = programs.SCAN.replace("ROOT %y =", "%y =")
    with pytest.raises(hlo.HloError, match="Computation main has no end"):
        hlo.parse(without)


def test_trip_counts_of_scans_and_collective_matmuls():
    assert trips(programs.SCAN, "while.1") == 24
    assert trips(programs.WINDOWED, "while.3") == 3
    # 16 shards, two of them each turn.
    assert trips(programs.WINDOWED, "while.2") == 8


def trips(text, name):
    program = hlo.parse(text)
    return program.trip_count(instruction(program, name))


def test_the_start_of_a_counter_and_its_comparison_count():
    text = programs.SCAN
    assert (
        trips(text.replace("%zero = s32[]{:T(128)} constant(0)", "%zero = s32[]{:T(128)} constant(4)"), "while.1") == 20
    )
    assert trips(text.replace("direction=LT", "direction=LE"), "while.1") == 25


def test_a_loop_without_a_constant_end_is_an_error():
    text = programs.SCAN.replace("%limit = s32[]{:T(128)} constant(24)", "%limit = s32[]{:T(128)} copy(%counter.1)")
    with pytest.raises(hlo.HloError, match=r"trip count of loop while\.1"):
        trips(text, "while.1")


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ("bf16[24,896]{1,0:T(8,128)(2,1)}", 24 * 896 * 2),
        ("(s32[], f32[3,5]{1,0}, /*index=2*/u8[7])", 4 + 60 + 7),
        ("s4[9]", 5),
        ("pred[]", 1),
        ("f8e4m3fn[10]", 10),
        ("token[]", 0),
    ],
)
def test_sizes(shape, size):
    assert hlo.shape_bytes(shape) == size


@pytest.mark.parametrize(
    ("attributes", "groups"),
    [
        ("replica_groups=[2,4]<=[8]", [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ("replica_groups=[4,2]<=[2,4]T(1,0), dimensions={0}", [[0, 4], [1, 5], [2, 6], [3, 7]]),
        ("replica_groups={{0,2},{1,3}}", [[0, 2], [1, 3]]),
        ("source_target_pairs={{0,1},{1,0}}", [[0, 1], [1, 0]]),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}, x", [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_0'}, x", [[0, 4], [1, 5], [2, 6], [3, 7]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a','b'}, x", [[0, 1, 2, 3]]),
        ("replica_groups=mesh['a'=2,'b'=4] {'b':(2)2}, x", [[0, 1], [2, 3], [4, 5], [6, 7]]),
        ("replica_groups={}", [[0, 1, 2]]),
    ],
)
def test_replica_groups(attributes, groups):
    assert hlo.replica_groups(attributes, 3) == groups


def test_other_text_is_refused():
    with pytest.raises(hlo.HloError, match="no ENTRY"):
        hlo.parse("module @jit_step { }")
