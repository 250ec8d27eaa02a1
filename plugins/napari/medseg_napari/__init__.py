"""medseg in napari: open studies, keep their geometry, save results on it."""
