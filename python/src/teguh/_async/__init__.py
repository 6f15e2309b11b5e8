"""The sources from which tools/make_sync.py generates teguh._sync."""
