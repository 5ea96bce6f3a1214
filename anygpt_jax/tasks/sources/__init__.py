"""Data on disk as SeqIO sources: folders, metadata files, WebDataset tars, Hugging Face, TFDS, released layouts."""
