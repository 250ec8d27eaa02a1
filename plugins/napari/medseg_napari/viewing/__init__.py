"""Looking at images and labels. Free of Qt, and of napari but for what a layer reports.

``windows``: brightness presets, and the mouse as a knob for centre and width.
``comparison``: two label maps against each other, kept up to date slice by slice.
``doubt``: the slices to look at first.
``surfaces``: labels as triangles in millimetres.
``edits``: which part of a labels layer was changed.
``keys``: the keyboard shortcuts, in one table.
"""
