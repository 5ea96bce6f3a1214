"""Official checkpoints of modality tokenizers: how each is laid out, and `anygpt convert tokenizer`."""
