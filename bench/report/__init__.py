"""The records of all benchmarks as one page, and the README's figures."""
