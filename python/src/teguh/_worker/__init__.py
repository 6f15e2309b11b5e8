"""The worker's parts: engine (claims and outcomes), calls, pulse (leases), listener, threads."""
