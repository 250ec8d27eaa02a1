"""How public datasets lie on disk: one module per layout, each of which lists cases."""

from medseg.data.layouts.listing import Listing, Problem
from medseg.data.layouts.table import LAYOUTS, Layout, detect_layout, list_cases

__all__ = ["LAYOUTS", "Layout", "Listing", "Problem", "detect_layout", "list_cases"]
