"""Flags under which XLA compiles for the CPU quickly, for programs that run once or twice."""

# No optimizer of LLVM, and the emitters that need no MLIR: a program compiles in about a fifth of
# the time. A release of XLA that has no older emitters ignores the last (jaxlib 0.12, and libtpu).
FLAGS = (
  "--xla_backend_optimization_level=0",
  "--xla_llvm_disable_expensive_passes=true",
  "--xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters",
)
