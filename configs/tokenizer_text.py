"""The text tokenizer: seconds, from every training text of the embedded data set."""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    c = ml_collections.ConfigDict()
    c.kind = "tokenizer"
    c.modality = "text"
    c.workdir = "runs/tokenizer_text"
    c.output = ""  # where the model goes; default: the workdir
    c.data_dir = "runs/tiny/data"  # what `anygpt build-data` built
    c.seed = 0
    c.vocab_size = 768  # at most; 256 of them are bytes
    c.instruction_copies = 20  # instructions are few but read in every example
    return c
