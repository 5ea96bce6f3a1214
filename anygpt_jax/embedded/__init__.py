"""The embedded data set: a small world of pictures, speech and tunes made from media inside PyPI packages."""
