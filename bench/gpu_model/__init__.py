"""The kernels and a clip on GPUs, from the built library alone."""
