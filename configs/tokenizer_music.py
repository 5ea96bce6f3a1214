"""The music tokenizer: four minutes on two CPU cores, from the embedded data set."""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    c = ml_collections.ConfigDict()
    c.kind = "tokenizer"
    c.modality = "music"
    c.workdir = "runs/tokenizer_music"
    c.output = ""  # where the weights go; default: the workdir
    c.data_dir = "runs/tiny/data"  # what `anygpt build-data` built
    c.seed = 0

    c.mel = m = ml_collections.ConfigDict()
    m.n_fft = 1280  # samples at 16 kHz
    m.hop = 320
    m.n_mels = 128

    c.codec = m = ml_collections.ConfigDict()
    m.n_mels = 128
    m.stack = 4  # mel frames a latent: 12.5 latents a second
    m.width = 192
    m.latent = 64
    m.codebooks = 2
    m.codebook_size = 1024
    c.max_frames = 50  # 4 s

    c.steps = 2000
    c.warmup_steps = 150  # without quantization, before k-means
    c.batch_size = 16
    c.crop = 32  # latents
    c.learning_rate = 1.5e-3
    c.first_only = 0.15  # share of the items that are decoded from the first codebook alone
    c.warp = 0.0  # pitch is what music is about
    c.commitment = 0.1
    c.log_every = 100
    c.measure_splits = ("test", "validation")
    c.measure = 96
    return c
