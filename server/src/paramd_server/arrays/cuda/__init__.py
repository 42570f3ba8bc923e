"""Arrays on NVIDIA GPUs, and in host memory that they reach directly."""
