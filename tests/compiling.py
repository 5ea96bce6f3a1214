"""How XLA compiles for tests: most of their time would go into code that runs once.

The train step of a tiny model takes 2.1 s of CPU instead of 4.7, its initialization 1.3 instead of 5.5; what runs long takes
as long as before. Without LLVM's optimizations altogether it would take three times as long.
"""

# The options of `jax.jit` for two programs that are to give the same bits: XLA's older fusions round apart what is the same.
AS_RUNS = {"xla_cpu_use_fusion_emitters": True, "xla_backend_optimization_level": 3}
QUICK = "--xla_backend_optimization_level=1 --xla_cpu_use_fusion_emitters=false"
