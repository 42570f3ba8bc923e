"""What a user would take instead of paramd, on the same work: each program in its own environment.

They import nothing of paramd, and of the benchmarks what needs NumPy alone.
"""
