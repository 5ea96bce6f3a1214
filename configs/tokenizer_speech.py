"""The speech tokenizer: four minutes on two CPU cores, from the embedded data set."""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    c = ml_collections.ConfigDict()
    c.kind = "tokenizer"
    c.modality = "speech"
    c.workdir = "runs/tokenizer_speech"
    c.output = ""  # where the weights go; default: the workdir
    c.data_dir = "runs/tiny/data"  # what `anygpt build-data` built
    c.seed = 0

    c.mel = m = ml_collections.ConfigDict()
    m.n_fft = 640  # samples at 16 kHz
    m.hop = 160
    m.n_mels = 80

    c.codec = m = ml_collections.ConfigDict()
    m.n_mels = 80
    m.stack = 4  # mel frames a latent: 25 latents a second
    m.width = 160
    m.latent = 64
    m.codebooks = 4  # the first is semantic and the language model's, the others are the acoustic stage's
    m.codebook_size = 256
    m.voice = 16  # numbers that tell the decoder who speaks
    m.phones = 39  # of ARPABET, which supervise the semantic codebook
    c.min_codes = 8
    c.max_codes = 150  # 6 s
    c.longest_samples = 64 * 640  # 2.6 s; utterances beyond are left out of training
    c.default_voice = "ada"

    c.steps = 1400
    c.warmup_steps = 150  # without quantization, before k-means
    c.batch_size = 16
    c.crop = 0  # whole utterances: their phones are known, not where they are
    c.learning_rate = 1.5e-3
    c.first_only = 0.5  # share of the items that are decoded from the first codebook alone
    c.warp = 0.22  # those hear their frequencies multiplied by exp(-0.22) to exp(0.22), as another voice's
    c.commitment = 0.1
    c.ctc = 0.3  # weight of the phones' loss, in nats a phone
    c.log_every = 100

    c.keep_codec = False  # train the second stage alone, over the codec that is in the folder of the weights
    c.acoustic = a = ml_collections.ConfigDict()
    a.seed = 1
    a.width = 160
    a.dilations = (1, 2, 4, 1, 2)
    a.steps = 400
    a.batch_size = 16
    a.learning_rate = 2e-3
    a.cross_entropy = 0.1  # weight of the codes' loss (nats a code) beside the decoder's L1
    a.log_every = 100

    c.measure_splits = ("test", "test_voice")
    c.measure = 96
    return c
