"""How fast things run beside their alternatives: ``python -m benchmarks.step`` and so on.

docs/findings/performance.md has what they found.
"""
