"""The main job on the embedded data set: minutes on two CPU cores, the same code path as a pod."""

import ml_collections


def get_config(size: str = "full") -> ml_collections.ConfigDict:
    """`configs/quickstart.py` is the main job; `configs/quickstart.py:small` is its every stage in a few minutes."""
    c = full()
    if size == "small":
        c.data.update(scenes=400, sentences=60, espeak_sentences=20, clips=80, dialogues=60, held_out=24)
        c.train.update(steps=120, log_every=20, eval_every=60, eval_batches=2, save_every=60)
        c.evaluate.update(examples=8, dialogues=8, untrained_examples=4)
    elif size != "full":
        raise ValueError(f"the quickstart comes in the sizes full and small, not {size!r}")
    return c


def full() -> ml_collections.ConfigDict:
    c = ml_collections.ConfigDict()
    c.kind = "decoder"  # what `anygpt train` trains
    c.workdir = "runs/quickstart"
    c.seed = 0

    # The embedded data set (anygpt_jax/embedded): sizes of the training split, and of each held-out one.
    c.data = d = ml_collections.ConfigDict()
    d.objects = 40
    d.scenes = 6000
    d.two_objects = 0  # percent of the scenes
    d.sentences = 900  # distinct spoken sentences
    d.voices_a_sentence = 2  # pitches in which each is heard
    d.espeak_sentences = 300
    d.clips = 1500  # of music
    d.dialogues = 800
    d.held_out = 96  # examples of each held-out split

    # Registered modality tokenizers (entry points), in the order of their blocks in the vocabulary.
    c.modalities = ("image", "speech", "music")
    # Other tokenizers than the shipped ones of those names, for instance
    # {"music": {"entry": "encodec", "weights": "weights/encodec_32khz.safetensors", "seconds": 20.0}}
    c.tokenizers = ml_collections.ConfigDict()

    c.tokenize = t = ml_collections.ConfigDict()
    t.tasks = (
        "image_to_text", "text_to_image", "speech_to_text", "text_to_speech", "music_to_text", "text_to_music",
        "documents", "dialogues",
        "speech_to_image", "image_to_speech", "speech_to_music", "music_to_speech", "image_to_music", "music_to_image",
    )  # fmt: skip
    t.shards = 4  # of every task and split; small splits have fewer. 0: one a file of the source, so that data can grow
    t.modules = ()  # modules that register further tasks
    t.batch_size = 32  # media a call of a codec
    t.max_tokens = 512  # a longer record is rejected: it would not fit into train.seq_len
    t.max_reject_share = 0.1  # more rejects than this stop the job
    t.runner = "FnApiRunner"
    t.runner_options = ()  # passed to Beam as they are

    # Shares of the drawn records, by task.
    c.mixture = ml_collections.ConfigDict(
        {
            "image_to_text": 0.2, "text_to_image": 0.25, "speech_to_text": 0.22, "text_to_speech": 0.18,
            "music_to_text": 0.04, "text_to_music": 0.05, "documents": 0.02, "dialogues": 0.04,
        }
    )  # fmt: skip

    c.mixture_by = "weights"  # or "examples": as many as each task has
    c.mixture_temperature = 1.0  # flattens the shares: share^(1/temperature)
    # A run that goes on with another mixture says from which step.
    c.mixture_from_step = ml_collections.config_dict.placeholder(int)

    c.model = m = ml_collections.ConfigDict()
    m.d_model = 128
    m.n_layers = 4
    m.n_heads = 4
    m.n_kv_heads = 4
    m.head_dim = 32
    m.d_ff = 384
    m.rope_theta = 10_000.0
    m.norm_eps = 1e-5
    m.tied_embeddings = True
    m.qk_norm = True
    m.vocab_multiple = 128  # the embedding is padded to a multiple, so that it divides the mesh
    m.param_dtype = "float32"
    m.compute_dtype = "float32"
    m.remat = "none"
    m.lora_rank = 0  # of adapters beside the matrices of the layers; 0: none
    m.lora_alpha = 16.0
    m.lora_targets = "q,k,v,o,gate,up,down"

    c.mesh = ml_collections.ConfigDict({"data": 1, "fsdp": 1, "tensor": 1})
    # Join the other processes of a job, as jax finds them on TPU VMs, GKE and Slurm (docs/resuming.md).
    c.multihost = False
    c.heartbeat_seconds = 100  # after which a process that died is missed

    c.train = t = ml_collections.ConfigDict()
    t.batch_size = 2  # packed rows a step, over all hosts
    t.microbatches = 1  # parts of a step taken one after the other: less memory, the same result
    t.loss_chunks = 1  # parts of a row whose logits exist at a time: less memory, the same result
    t.seq_len = 512
    t.steps = 3500
    t.optimizer = "muon"  # for the hidden matrices, AdamW for the rest; or adamw
    t.learning_rate = 3e-3
    t.schedule = "linear"  # after the warm-up: linear or cosine to zero
    t.warmup_steps = 100
    t.start_from = ""  # another run's folder, whose parameters this one starts from (docs/finetuning.md)
    t.trainable = ()  # patterns of the parameters that change, such as "blocks/.*_lora_[ab]"; empty: all
    t.frozen = ()  # patterns of those that do not
    t.new_rows_only = False  # of embedding and head only the rows of ids past the text's
    t.ema_decay = 0.0  # of an average of the weights, kept beside them; 0: none
    t.loss_weights = ml_collections.ConfigDict({"text": 1.0, "image": 1.0, "speech": 1.0, "music": 1.0})
    t.weight_decay = 0.05
    t.beta1 = 0.9
    t.beta2 = 0.98
    t.clip_norm = 1.0
    t.z_loss = 0.0
    t.log_every = 50
    t.eval_every = 500
    t.eval_batches = 8
    t.eval_task_batches = 2  # of every task by itself, besides
    t.save_every = 500
    t.keep_checkpoints = 2  # the newest so many
    t.keep_every = 0  # and those whose step is a multiple of it
    t.keep_best = 0  # and so many with the smallest validation loss
    t.checkpoint_mirror = ""  # a second directory, often gs://…, that finished checkpoints are copied to
    t.verify_checkpoints = True  # read every byte of a checkpoint before going on from it
    t.compilation_cache = "run"  # compiled programs are kept in the workdir, or in the folder named here; "": nowhere
    # A step whose loss or gradient is not finite is always left out (docs/resuming.md).
    t.guard_factor = 0.0  # one whose gradient norm is above so many times its running mean, too; 0: let through
    t.guard_warmup = 100  # good steps before any norm is compared
    t.guard_patience = 10  # bad steps in a row that send the run back to its newest checkpoint
    t.check_hosts_every = 1000  # steps between comparisons of what the hosts read
    t.data_wait_warning = 0.1  # warn when more of the time than this is waiting for batches; 0: never
    t.profile_steps = 5  # steps a trace takes (kill -USR1 PID, or profile_at)
    t.profile_at = 0  # trace after this step; 0: only by signal
    t.pack_rows = 256  # rows that are planned together by the packer
    t.long_records = "drop"  # or split: records longer than seq_len, counted in logs/too_long.SPLIT.jsonl

    # Sampling, by the modality that is being written.
    c.format = "own"  # of prompts; of the released weights: anygpt-base or anygpt-chat (docs/formats.md)
    c.generate = g = ml_collections.ConfigDict()
    g.batch_size = 32  # answers that are written at the same time
    g.tensor_parallel = 1  # devices over which the model is cut
    g.weights = "float"  # or int8: a quarter of the bytes, which a token takes its time for
    g.cache = ""  # of keys and values: the model's own dtype, or int8
    g.text = ml_collections.ConfigDict({"temperature": 0.0, "top_p": 1.0, "max_tokens": 48})
    g.text.update(beams=1, length_penalty=1.0, round_trip=0.0)  # of the search for greedy text alone
    g.image = ml_collections.ConfigDict({"temperature": 0.5, "top_p": 0.95})
    g.speech = ml_collections.ConfigDict({"temperature": 0.5, "top_p": 0.9})
    g.music = ml_collections.ConfigDict({"temperature": 0.9, "top_p": 0.95})

    c.evaluate = e = ml_collections.ConfigDict()
    e.split = "test"
    e.examples = 64  # of every pair
    e.dialogues = 64  # held-out dialogues of which the last answer is asked for; those of several turns first
    e.untrained_examples = 16  # the same by a randomly initialised model
    e.hard_splits = True  # unheard voices and words, another artist's drawings, real speech
    return c
