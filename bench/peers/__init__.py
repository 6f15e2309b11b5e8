"""Teguh beside other job queues and durable execution on PostgreSQL: `python -m bench.peers`."""
