"""Rewards that run in environments of their own, by rewards/worker.py: they import nothing of ours."""
