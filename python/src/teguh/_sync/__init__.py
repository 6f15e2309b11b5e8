"""Generated from teguh._async by tools/make_sync.py."""
