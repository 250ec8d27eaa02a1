"""Image files in and out; the only package that opens them, and the place where LPS becomes RAS."""
