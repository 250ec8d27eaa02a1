"""Numbers that compare two segmentations."""
