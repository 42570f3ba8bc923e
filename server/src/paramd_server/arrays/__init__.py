"""Memory of parameters: who allocates it, counts it, and computes in it."""
