"""The image tokenizer: three minutes on two CPU cores, from the embedded data set."""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    c = ml_collections.ConfigDict()
    c.kind = "tokenizer"
    c.modality = "image"
    c.workdir = "runs/tokenizer_image"
    c.output = ""  # where the weights go; default: the workdir
    c.data_dir = "runs/tiny/data"  # what `anygpt build-data` built
    c.seed = 0

    c.codec = m = ml_collections.ConfigDict()
    m.size = 72  # px
    m.patch = 12
    m.grounds = 8  # codes of the flat ground
    # Of patches. The 128 drawings in two sizes have about 2,500: fewer codes than patches keep two grounds from
    # getting two codes.
    m.codes = 2048
    m.latent = 128
    m.width = 256

    c.steps = 2400
    c.warmup_steps = 600  # without quantization, before k-means
    c.batch_size = 256  # pairs of patches
    c.learning_rate = 1e-3
    c.log_every = 200
    c.measure_splits = ("test", "test_openmoji")
    c.measure = 512  # scenes of each split
    return c
