# The part of the Makefile that PostgreSQL's own build rules do; see `make install`.
EXTENSION = build/extension/teguh
DATA      = $(wildcard build/extension/teguh--*.sql)

PG_CONFIG ?= pg_config
PGXS := $(shell $(PG_CONFIG) --pgxs)
include $(PGXS)
