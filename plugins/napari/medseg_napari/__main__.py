"""``python -m medseg_napari``: what ``medseg napari`` starts."""

from medseg_napari._start import main

if __name__ == "__main__":
    main()
