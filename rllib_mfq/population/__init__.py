"""Many agents as arrays: environments, sampler and memory. No Ray and no torch."""
