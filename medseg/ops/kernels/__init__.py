"""Fast implementations of operators: Triton for GPUs, numba for CPUs. Plain torch does the rest."""
