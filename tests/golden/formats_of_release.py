"""Writes formats.json: prompts as AnyGPT's released code makes and tokenizes them, with a small SentencePiece model.

Needs Transformers 4.34.1, which the code pins, in an environment of its own, and a checkout of OpenMOSS/AnyGPT:

    python tests/golden/formats_of_release.py CHECKOUT tests/golden/formats.json
"""

import base64
import io
import json
import pathlib
import random
import sys
import tempfile

import sentencepiece
import transformers

sys.path[:0] = [sys.argv[1], str(pathlib.Path(sys.argv[1]) / "anygpt/src")]
from m_utils.anything2token import modal_special_str, modality_tokens_to_string  # noqa: E402
from m_utils.conversation import get_conv_template  # noqa: E402
from m_utils.prompter import Prompter, special_tokens, task_prompts  # noqa: E402

SIZES = {"image": 16, "speech": 8, "music": 8192}  # music's are layer × 2048 + code: too many to make fewer
CORPUS = [
    "You are an AI assistant named MMGPT who can understand and generate multimodal content.",
    "hello, how are you\n I am fine, thank you", "Please recognize the voice command and give reply and voice",
    "Please transcribe the given speech. Convert the speech into a written transcript.", "This is input: a red fox",
    "  two  spaces   and    more : a colon: and :another", "draw a red fox. What is in the picture?",
]  # fmt: skip

IMAGE, IMAGE2 = [modality_tokens_to_string(codes, "image") for codes in ([3, 0, 15], [7, 7])]
SPEECH, ANSWER = [modality_tokens_to_string(codes, "speech") for codes in ([1, 1, 5], [2, 0, 7, 7])]
MUSIC = modality_tokens_to_string([[1, 5], [0, 2], [3, 3], [2047, 4]], "music")


def turn(text: str, images=(), speech=(), music=()) -> str:
    return Prompter().generate_insturction_prompt("interleaved", text, images, speech, music).strip()


def chat(*messages: str, **force) -> str:
    conversation = get_conv_template("MMGPT")
    for i, message in enumerate(messages):
        conversation.append_message(conversation.roles[i % 2], message)
    return conversation.get_prompt(**force)


def task(name: str, instruction: str = "", images=(), speech=(), music=()) -> str:
    return chat(Prompter().generate_insturction_prompt(name, instruction, images, speech, music).strip())


def base(source: str, target: str, content: str, instruction: str) -> str:
    def choose(pool: list) -> str:
        assert instruction in pool, f"{instruction} is not one of theirs"
        return instruction

    random.choice = choose
    return Prompter().generate_prompt_input(content, source, target)


def prompts() -> dict[str, str]:
    spoken = task_prompts["Speech-Response"].format(instruction="hello, how are you", response=f"I am fine {ANSWER}")
    return {
        "text": chat(turn("hello, how are you")),
        "image": chat(turn("What is in the picture?", images=[IMAGE])),
        "image alone": chat(turn("", images=[IMAGE])),
        "two images": chat(turn("draw both", images=[IMAGE, IMAGE2])),
        "all media": chat(turn("draw  this", images=[IMAGE], speech=[SPEECH], music=[MUSIC])),
        "speech alone": chat(turn("", speech=[SPEECH])),
        "forced image": chat(turn("draw a red fox"), force_image_generation=True),
        "forced speech": chat(turn("hello"), force_speech_generation=True),
        "forced music": chat(turn("hello", images=[IMAGE]), force_music_generation=True),
        "dialogue": chat(
            turn("", speech=[SPEECH]), spoken,
            turn("draw it", music=[MUSIC]), f"a red fox: {IMAGE}",
            turn("and now?", images=[IMAGE2]), MUSIC,
            turn("thank you"),
        ),
        "many images": task("Multi-Image Understanding", "What differs?", images=[IMAGE, IMAGE2]),
        "draw": task("Text-to-Image Generation", "a red fox"),
        "draw!": task("Text-to-Image Generation", "a red fox!"),
        "edit": task("Multimodal Prompt Image Generation", "make it blue", images=[IMAGE]),
        "speak": chat(task_prompts["Text-to-Speech"].format(caption="hello, how are you")),
        "compose": chat(task_prompts["Text-to-Music"].format(caption="a slow waltz")),
        "caption": chat(task_prompts["Image-to-Text Caption"].format(image=IMAGE)),
        "transcribe": chat(task_prompts["Speech-to-Text"].format(speech=SPEECH)),
        "describe music": chat(task_prompts["Music-to-Text"].format(music=MUSIC)),
        "base speech to text": base("speech", "text", SPEECH, "Convert the speech into a written transcript."),
        "base image to text": base("image", "text", IMAGE, "Write a caption for this image."),
        "base music to text": base("music", "text", MUSIC, "Describe the melody and rhythm of this music."),
        "base text to speech": base(
            "text", "speech", "hello, how are you", "Please give voice to this silent text by speaking the words."
        ),
        "base text to image": base("text", "image", "a red fox", "Transform these words into a picture."),
        "base text to music": base(
            "text", "music", "a slow waltz", "Create a musical piece that captures the essence of this caption."
        ),
    }  # fmt: skip


def train() -> bytes:
    """As LLaMA's: byte fallback, spaces as they are and one before the text."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS * 10), model_writer=model, vocab_size=640, hard_vocab_limit=False,
        model_type="bpe", byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True, split_digits=True, minloglevel=2,
    )  # fmt: skip
    return model.getvalue()


def tokenizer(model: str, legacy: bool) -> transformers.LlamaTokenizer:
    made = transformers.LlamaTokenizer(model, legacy=legacy)
    made.add_tokens([token for token in special_tokens if not token.startswith("<-")])
    for modality, about in modal_special_str.items():
        codes = [f"<{about['prefix']}{n}>" for n in range(SIZES[modality])]
        made.add_tokens([*codes, about["sos"], about["eos"]])
    made.add_tokens([token for token in special_tokens if token.startswith("<-")])
    return made


def main() -> None:
    model = train()
    with tempfile.NamedTemporaryFile(suffix=".model") as file:
        file.write(model)
        file.flush()
        legacy, other = tokenizer(file.name, True), tokenizer(file.name, False)
    found = {
        name: {"string": string, "legacy": legacy(string).input_ids, "not legacy": other(string).input_ids}
        for name, string in prompts().items()
    }
    golden = {"model": base64.b64encode(model).decode(), "transformers": transformers.__version__, "prompts": found}
    text = json.dumps(golden, ensure_ascii=False).replace('}, "', '},\n"')
    pathlib.Path(sys.argv[2]).write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
