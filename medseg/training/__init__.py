"""MONAI pipelines that turn a data list into a model folder."""
