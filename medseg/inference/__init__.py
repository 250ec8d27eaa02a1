"""From a volume and a model folder to a label map."""
