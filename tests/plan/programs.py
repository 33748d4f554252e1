"""Scheduled programs as text, cut down from what the TPU compiler writes."""

# ruff: noqa: E501

SCAN = """HloModule jit_step, is_scheduled=true, entry_computation_layout={(bf16[24,128,128]{2,1,0:T(8,128)(2,1)})->f32[]}

%fused_add (param_0.1: s32[], param_1.2: s32[]) -> s32[] {
  %param_0.1 = s32[]{:T(128)} parameter(0)
  %param_1.2 = s32[]{:T(128)} parameter(1)
  ROOT %add.3 = s32[]{:T(128)} add(%param_0.1, %param_1.2)
}

%layer (p: (s32[], bf16[8,128])) -> (s32[], bf16[8,128]) {
  %p = (s32[]{:T(128)}, /*index=1*/bf16[8,128]{1,0:T(8,128)(2,1)}) parameter(0)
  %counter = s32[]{:T(128)} get-tuple-element(%p), index=0
  %one = s32[]{:T(128)} constant(1)
  %x = bf16[8,128]{1,0:T(8,128)(2,1)} get-tuple-element(%p), index=1
  %fusion.1 = bf16[8,128]{1,0:T(8,128)(2,1)} fusion(%x), kind=kOutput, calls=%fused_matmul, metadata={op_name="jit(train_step)/transpose(jvp(language))/while/body/closed_call/checkpoint/mlp/dot_general" source_file="a (b).py" source_line=3}, backend_config={"window_config":{"kernel_window_bounds":["1"]},"estimated_cycles":"1500","flag":")"}
  %next = s32[]{:T(128)} fusion(%counter, %one), kind=kLoop, calls=%fused_add, backend_config={"estimated_cycles":"0"}
  ROOT %out = (s32[]{:T(128)}, bf16[8,128]{1,0:T(8,128)(2,1)}) tuple(%next, %fusion.1)
}

%fused_matmul (param_0.5: bf16[8,128]) -> bf16[8,128] {
  ROOT %param_0.5 = bf16[8,128]{1,0:T(8,128)(2,1)} parameter(0)
}

%until (p.1: (s32[], bf16[8,128])) -> pred[] {
  %p.1 = (s32[]{:T(128)}, bf16[8,128]{1,0:T(8,128)(2,1)}) parameter(0)
  %counter.1 = s32[]{:T(128)} get-tuple-element(%p.1), index=0
  %limit = s32[]{:T(128)} constant(24)
  ROOT %compare.1 = pred[]{:T(512)} compare(%counter.1, %limit), direction=LT
}

ENTRY %main (x.1: bf16[8,128]) -> bf16[8,128] {
  %x.1 = bf16[8,128]{1,0:T(8,128)(2,1)} parameter(0)
  %zero = s32[]{:T(128)} constant(0)
  %tuple.1 = (s32[]{:T(128)}, bf16[8,128]{1,0:T(8,128)(2,1)}) tuple(%zero, %x.1)
  %while.1 = (s32[]{:T(128)}, bf16[8,128]{1,0:T(8,128)(2,1)}) while(%tuple.1), condition=%until, body=%layer
  ROOT %y = bf16[8,128]{1,0:T(8,128)(2,1)} get-tuple-element(%while.1), index=1
}
"""

# The loop of a collective matmul: u32, two shards a turn, nested in a scan of three layers.
WINDOWED = """HloModule jit_step, is_scheduled=true

%windowed_dot_general_cond (w: (bf16[8,128], u32[])) -> pred[] {
  %w = (bf16[8,128]{1,0}, u32[]{:T(128)}) parameter(0)
  %turn = u32[]{:T(128)} get-tuple-element(%w), index=1
  %turns = u32[]{:T(128)} constant(16)
  ROOT %compare.2 = pred[]{:T(512)} compare(%turn, %turns), direction=LT
}

%windowed_dot_general_body_ag (w.1: (bf16[8,128], u32[])) -> (bf16[8,128], u32[]) {
  %w.1 = (bf16[8,128]{1,0}, u32[]{:T(128)}) parameter(0)
  %shard = bf16[8,128]{1,0} get-tuple-element(%w.1), index=0
  %turn.1 = u32[]{:T(128)} get-tuple-element(%w.1), index=1
  %permute-start = (bf16[8,128]{1,0}, bf16[8,128]{1,0}, u32[], u32[]) collective-permute-start(%shard), channel_id=7, source_target_pairs={{0,1},{1,2},{2,3},{3,0}}
  %fusion.2 = bf16[8,128]{1,0} fusion(%shard), kind=kOutput, calls=%inner, backend_config={"estimated_cycles":"1000"}
  %permute-done = bf16[8,128]{1,0} collective-permute-done(%permute-start)
  %two = u32[]{:T(128)} constant(2)
  %turn.2 = u32[]{:T(128)} add(%turn.1, %two)
  ROOT %tuple.2 = (bf16[8,128]{1,0}, u32[]{:T(128)}) tuple(%permute-done, %turn.2)
}

%inner (q: bf16[8,128]) -> bf16[8,128] {
  ROOT %q = bf16[8,128]{1,0} parameter(0)
}

%scan_cond (s: (s32[], bf16[8,128])) -> pred[] {
  %s = (s32[], bf16[8,128]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %n = s32[] constant(3)
  ROOT %compare.3 = pred[] fusion(%i, %n), kind=kLoop, calls=%less
}

%less (l: s32[], r: s32[]) -> pred[] {
  %l = s32[] parameter(0)
  %r = s32[] parameter(1)
  ROOT %compare.4 = pred[] compare(%l, %r), direction=LT
}

%scan_body (s.1: (s32[], bf16[8,128])) -> (s32[], bf16[8,128]) {
  %s.1 = (s32[], bf16[8,128]{1,0}) parameter(0)
  %i.1 = s32[] get-tuple-element(%s.1), index=0
  %y.1 = bf16[8,128]{1,0} get-tuple-element(%s.1), index=1
  %zero.1 = u32[]{:T(128)} constant(0)
  %tuple.3 = (bf16[8,128]{1,0}, u32[]{:T(128)}) tuple(%y.1, %zero.1)
  %while.2 = (bf16[8,128]{1,0}, u32[]{:T(128)}) while(%tuple.3), condition=%windowed_dot_general_cond, body=%windowed_dot_general_body_ag
  %y.2 = bf16[8,128]{1,0} get-tuple-element(%while.2), index=0
  %one.1 = s32[] constant(1)
  %i.2 = s32[] add(%i.1, %one.1)
  ROOT %tuple.4 = (s32[], bf16[8,128]{1,0}) tuple(%i.2, %y.2)
}

ENTRY %main.2 (x.2: bf16[8,128]) -> (s32[], bf16[8,128]) {
  %x.2 = bf16[8,128]{1,0} parameter(0)
  %zero.2 = s32[] constant(0)
  %tuple.5 = (s32[], bf16[8,128]{1,0}) tuple(%zero.2, %x.2)
  ROOT %while.3 = (s32[], bf16[8,128]{1,0}) while(%tuple.5), condition=%scan_cond, body=%scan_body
}
"""

# One asynchronous all-gather with compute beside it, one synchronous all-reduce, one reduce-scatter inside a fusion.
COLLECTIVES = """HloModule jit_step, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%all-reduce-scatter.1 (g: bf16[1024,1024]) -> bf16[256,1024] {
  %g = bf16[1024,1024]{1,0} parameter(0)
  ROOT %reduce-scatter.1 = bf16[256,1024]{1,0} reduce-scatter(%g), channel_id=3, replica_groups=[4,4]<=[16], dimensions={0}, to_apply=%add
}

ENTRY %main (w: bf16[256,1024], g.1: bf16[1024,1024], n: f32[]) -> bf16[256,1024] {
  %w = bf16[256,1024]{1,0} parameter(0)
  %g.1 = bf16[1024,1024]{1,0} parameter(1)
  %n = f32[] parameter(2)
  %all-gather-start.1 = (bf16[256,1024]{1,0}, bf16[1024,1024]{1,0}) all-gather-start(%w), channel_id=1, replica_groups=[4,4]<=[16], dimensions={0}, use_global_device_ids=true
  %fusion.3 = bf16[1024,1024]{1,0} fusion(%g.1), kind=kLoop, calls=%copy_of, backend_config={"estimated_cycles":"15000"}
  %all-gather-done.1 = bf16[1024,1024]{1,0} all-gather-done(%all-gather-start.1)
  %all-reduce.1 = f32[] all-reduce(%n), channel_id=2, replica_groups=[1,16]<=[16], to_apply=%add, metadata={op_name="jit(train_step)/grad_norm"}
  ROOT %fusion.4 = bf16[256,1024]{1,0} fusion(%fusion.3), kind=kCustom, calls=%all-reduce-scatter.1
}

%copy_of (c: bf16[1024,1024]) -> bf16[1024,1024] {
  ROOT %c = bf16[1024,1024]{1,0} parameter(0)
}
"""

KERNEL = """HloModule jit_step, is_scheduled=true

ENTRY %main (q: bf16[8,14,1024,64], k: bf16[8,2,1024,64]) -> bf16[8,14,1024,64] {
  %q = bf16[8,14,1024,64]{3,2,1,0} parameter(0)
  %k = bf16[8,2,1024,64]{3,2,1,0} parameter(1)
  %attention = bf16[8,14,1024,64]{3,2,1,0} custom-call(%q, %k, %k), custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
"xprof_metadata":"{\\"block_q\\": 256}"
}}, metadata={op_name="jit(train_step)/jvp(language)/while/body/splash_mha_fwd_residuals/pallas_call"}, backend_config={"custom_call_config":{"body":"TUzvUgJNTElS)(\\"","serialization_format":1}}
  ROOT %fusion.9 = bf16[8,14,1024,64]{3,2,1,0} fusion(%attention), kind=kLoop, calls=%same, backend_config={"estimated_cycles":"3000"}
}

%same (c: bf16[8,14,1024,64]) -> bf16[8,14,1024,64] {
  ROOT %c = bf16[8,14,1024,64]{3,2,1,0} parameter(0)
}
"""

# An all-gather that is fused with compute, in three pieces: its start, a step inside of a matrix product, its end.
CHAIN = """HloModule jit_step, is_scheduled=true

%piece (w: bf16[256,1024]) -> bf16[1024,1024] {
  %w = bf16[256,1024]{1,0} parameter(0)
  ROOT %all-gather.1 = bf16[1024,1024]{1,0} all-gather(%w), channel_id=149, replica_groups=mesh['axis_0'=4,'axis_1'=4] {'axis_1'}, dimensions={0}, frontend_attributes={chain_id="9"}
}

%async_collective_fusion.1 (w.1: bf16[256,1024], x: bf16[8,8]) -> bf16[1024,1024] {
  %w.1 = bf16[256,1024]{1,0} parameter(0)
  %x = bf16[8,8]{1,0} parameter(1)
  ROOT %all-gather.2 = bf16[1024,1024]{1,0} all-gather(%w.1), channel_id=149, replica_groups=mesh['axis_0'=4,'axis_1'=4] {'axis_1'}, dimensions={0}, frontend_attributes={chain_id="9"}
}

ENTRY %main (w.2: bf16[256,1024], x.1: bf16[8,8]) -> bf16[1024,1024] {
  %w.2 = bf16[256,1024]{1,0} parameter(0)
  %x.1 = bf16[8,8]{1,0} parameter(1)
  %async-collective-start.8 = (bf16[256,1024]{1,0}, u32[]{:S(2)}) fusion(%w.2), kind=kCustom, calls=%piece, backend_config={"estimated_cycles":"0"}
  %state = u32[]{:S(2)} get-tuple-element(%async-collective-start.8), index=1
  %fusion.1 = (bf16[256,1024]{1,0}, u32[]{:S(2)}) fusion(%w.2, %x.1), kind=kOutput, calls=%async_collective_fusion.1, backend_config={"estimated_cycles":"15000"}
  %state.1 = u32[]{:S(2)} get-tuple-element(%fusion.1), index=1
  ROOT %async-collective-done.8 = bf16[1024,1024]{1,0} fusion(%w.2, %state.1), kind=kCustom, calls=%piece
}
"""
