# shellcheck shell=bash
# Environment of a training process, sourced by train.sh: where compiled programs are kept, and XLA's flags, each with
# its reason. POKEVLA_ACCELERATOR says which: tpu, cuda or cpu (default: tpu where libtpu is installed, else cpu).
# What is set already stays: LIBTPU_INIT_ARGS, XLA_FLAGS and JAX_COMPILATION_CACHE_DIR can be given from outside.
#
# The TPU flags are those that MaxText's public recipes use for sharded training. Without a TPU only their spelling can be
# checked; `pokevla-plan` compiles with libtpu's defaults, so measure before and after when you change one.

POKEVLA_TPU_FLAGS=(
  # Collectives start early and end late, and the compiler moves independent work between: without it every gathering of
  # weights stalls the matrix units.
  --xla_tpu_enable_latency_hiding_scheduler=true
  # Gathering a layer's weights (fsdp) runs beside the layer before.
  --xla_enable_async_all_gather=true
  # Async collectives are fused with the arithmetic that hides them, over several steps of a loop.
  --xla_tpu_enable_async_collective_fusion=true
  --xla_tpu_enable_async_collective_fusion_fuse_all_gather=true
  --xla_tpu_enable_async_collective_fusion_multiple_steps=true
  # Lets that overlap happen on the tensor core itself.
  --xla_tpu_overlap_compute_collective_tc=true
  # Gradients of small and large parameters are summed in one all-reduce, of whatever sizes.
  --xla_tpu_enable_data_parallel_all_reduce_opt=true
  --xla_tpu_data_parallel_opt_different_sized_ops=true
)

POKEVLA_CUDA_FLAGS=(
  # As on TPU: overlap of collectives and arithmetic.
  --xla_gpu_enable_latency_hiding_scheduler=true
)

POKEVLA_CPU_FLAGS=()

if [[ -z "${POKEVLA_ACCELERATOR:-}" ]]; then
  POKEVLA_ACCELERATOR=cpu
  if [[ -e /dev/accel0 || -e /dev/vfio/0 ]] && "${POKEVLA_PYTHON:-python3}" -c 'import libtpu' 2>/dev/null; then
    POKEVLA_ACCELERATOR=tpu
  fi
fi
case "$POKEVLA_ACCELERATOR" in
  tpu) export LIBTPU_INIT_ARGS="${LIBTPU_INIT_ARGS-${POKEVLA_TPU_FLAGS[*]}}" ;;
  cuda) export XLA_FLAGS="${XLA_FLAGS-${POKEVLA_CUDA_FLAGS[*]}}" ;;
  cpu) export XLA_FLAGS="${XLA_FLAGS-${POKEVLA_CPU_FLAGS[*]}}" ;;
  *)
    echo "env.sh: POKEVLA_ACCELERATOR is '$POKEVLA_ACCELERATOR'; it is tpu, cuda or cpu" >&2
    exit 2
    ;;
esac
export POKEVLA_ACCELERATOR
# A restart takes the compiled step from here instead of compiling it again; a folder in a bucket (gs://…) serves all
# hosts. Unset, pokevla-train keeps one in the home folder.
if [[ -n "${POKEVLA_COMPILE_CACHE:-}" ]]; then
  export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR-$POKEVLA_COMPILE_CACHE}"
fi
