"""XLA flags for quick CPU compilation, for programs that run once or twice."""

# Without LLVM's optimizer and MLIR emitters a program compiles in about a fifth of the time. By
# default it is split into 32 modules that threads compile: so little is left of their work that the
# splitting takes up to a third of it. XLA versions without the older emitters ignore the last flag
# (jaxlib 0.12, and libtpu).
FLAGS = (
  "--xla_cpu_parallel_codegen_split_count=1",
  "--xla_backend_optimization_level=0",
  "--xla_llvm_disable_expensive_passes=true",
  "--xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters",
)
