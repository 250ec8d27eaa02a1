"""Correcting labels: edits, undo, label table, effort, autosave. Free of Qt.

``brush``, ``fill``, ``islands``, ``morphology``, ``between``, ``logic``, ``repair``: the edits;
    each is a function of labels, millimetres and rules that returns a :class:`~.change.Change`.
``rules``: locks, what may be painted over, a range of intensities.
``change``, ``history``: what an edit changed in few bytes, and how it becomes an undo step.
``table``, ``effort``: names, colours, volumes; how much was corrected.
``controller``: all of it for one layer.
``binding``: a layer of napari.
``autosave``: journal in the background, recovery after a crash.
"""
