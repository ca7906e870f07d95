"""How fast things run beside their alternatives: ``python -m benchmarks.step`` and so on, see docs/performance.md."""
