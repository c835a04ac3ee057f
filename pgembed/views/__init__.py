"""Views of a space: directions learnt from two sets of rows or captions, kept by name, taken out or added at query
time, and probed for what is left of them."""
