"""Composition roots: settings in, run folder or result out; and the command line."""
