"""One module per verb of the command line; `pipelines.cli` imports them all."""
