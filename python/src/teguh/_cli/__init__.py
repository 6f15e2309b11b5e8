"""The command line beyond its core, made of the client's methods: the extra `cli`."""
