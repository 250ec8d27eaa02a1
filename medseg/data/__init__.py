"""Dataset layouts, splits and the preparation of images for a network."""
