"""What the small world's dialogues, topics and scenarios are told in, as plain data.

Templates are like those of the grammar, with the same slots and, nearly always, its words.
"""

from __future__ import annotations

from collections.abc import Mapping

from anygpt_jax.embedded.interleaved import ANSWERS, REQUESTS

# What is asked about a picture or a tune, and what may be answered; slots stand for what it shows.
Questions = Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]]
ABOUT_ONE: Questions = {
    "colour": (
        (*REQUESTS["colour"], "what color is behind the {object}", "tell me the color of the background"),
        (*(a.format("{colour}") for a in ANSWERS["colour"]), "the background of the picture is {colour}",
         "behind the {object} it is {colour}", "the {object} is on {a_colour} background"),
    ),
    "size": (
        (*REQUESTS["size"], "how big is the {object}", "is the {object} small or large", "what size is the {object}"),
        ("it is {size}", "the {object} is {size}", "it is a {size} {object}", "i see a {size} {object} {where}"),
    ),
    "place": (
        ("where is it", "where is the {object}", "where is the {object} in the picture", "tell me where it is"),
        ("it is {where}", "the {object} is {where}", "the {object} is {where} of the picture", "i see it {where}"),
    ),
}  # fmt: skip
WHAT: Questions = {
    "object": (
        ("what is it", "what do you see in the picture", "what is in this picture", "can you tell me what is here"),
        ("it is a picture of {a_object}", "it shows {a_object}", "i see {a_object} {where}",
         "that is {a_object} and it is {size}", "this is a {size} {object}"),
    ),
}  # fmt: skip
ABOUT_TWO: Questions = {
    "colour": (REQUESTS["colour"], ABOUT_ONE["colour"][1][:3]),
    "place": (
        ("where is the {object}", "where is the {object} and where is the {second}", "tell me where the {object} is"),
        ("the {object} is {relation} the {second}", "it is {relation} the {second}"),
    ),
}
WHAT_TWO: Questions = {
    "object": (
        WHAT["object"][0],
        ("it shows {a_object} {relation} {a_second}", "i see {a_object} {relation} {a_second}",
         "there is {a_object} {relation} {a_second}"),
    ),
}  # fmt: skip
ABOUT_TUNE: Questions = {
    "instrument": (
        ("which instrument plays here", "what plays here", "tell me which instrument you hear", "what do you hear"),
        ("it is the {instrument}", "i hear {a_instrument} and the music is {tempo}", "the {instrument} plays here",
         "the {instrument} plays a {tempo} {dance}"),
    ),
    "tempo": (
        ("how fast is the music", "is the music slow or fast", "is it slow or fast", "is this a fast {dance}"),
        ("the music is {tempo}", "it is a {tempo} {dance}", "this is a {tempo} {dance} on the {instrument}"),
    ),
    "dance": (
        ("which dance is it", "is it a reel or a jig or a hornpipe", "which tune is this", "what music is it"),
        ("it is a {dance}", "this is a {dance} played on the {instrument}", "it is a {tempo} {dance} in {key}"),
    ),
    "key": (
        ("in which key is the music", "in which key is it", "tell me the key of the {dance}"),
        ("it is in {key}", "the {dance} is in {key}", "the {instrument} plays it in {key}"),
    ),
}  # fmt: skip
CHANGES: Mapping[str, tuple[str, ...]] = {
    "colour": (
        "make the background {colour}", "now on {a_colour} background please", "can you draw it on {colour}",
        "i want it on {a_colour} background", "please draw the {object} on {colour}",
        "i would like {a_colour} background behind the {object}",
    ),
    "size": (
        "make it {size}", "please draw it {size}", "i want a {size} {object}", "can you make the {object} {size}",
        "i would like a {size} {object} please",
    ),
    "place": (
        "now {where} please", "please draw it {where}", "can you draw the {object} {where}", "i want it {where}",
        "i would like the {object} {where}",
    ),
    "object": (
        "now draw {a_object} like this", "can you draw {a_object} like that", "please make it {a_object}",
        "i would like to see {a_object} here", "the same picture with {a_object} please",
    ),
}  # fmt: skip
CHANGED = (
    "now the {object} is {size} and {where} on {colour}", "here is the {object} {where} on {colour}",
    "here it is a {size} {object} on {colour}", "now it is a {size} {object} {where}",
    "this is the {size} {object} on {a_colour} background",
)  # fmt: skip
DRAWN = ("here is {}", "this is {}", "here it is {}", "please look here is {}", "i can draw that here is {}")
PLAYED = ("here is {}", "this is {}", "here it is {}", "now you hear {}", "please listen this is {}")
SEEN = ("it is a picture of {a_object}", "i see {a_object} {where}", "that is a {size} {object}", "it shows {a_object}")
HEARD = ("i hear {a_instrument}", "that is {a_instrument}", "the {instrument} plays a {tempo} {dance}",
         "i hear {a_instrument} and the music is {tempo}")  # fmt: skip
PLAY_SHOWN = ("now play a tune on it", "play this for me", "what does it sound like", "can you play the {object}",
              "i want to hear the {object} now", "let me hear it")  # fmt: skip
DRAW_HEARD = ("now draw the instrument", "show me the instrument", "what plays here draw it", "paint what is playing",
              "i want a picture of what plays", "can you draw what plays here")  # fmt: skip
# Everyday talk, by what is said before: of the same slots the answer has the same words.
OPENINGS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("good {daytime} how are you", ("good {daytime} i am very well today", "good {daytime} i am happy and how are you")),
    ("good {daytime} i am {feeling}", ("good {daytime} do you want to see a picture", "good {daytime} what can i do")),
    ("it is {weather} {when}", ("yes it is {weather} what do you want to do",
                                "it is {weather} here and i like to draw {when}")),
    ("the weather is {weather} {when}", ("i like it do you want a picture or a song", "yes it is very {weather}")),
    ("{who} and i {do} {when}", ("that is very nice can i do something for you", "i like to {do}")),
    ("i am very {feeling} {when}", ("i have a picture and a song for you", "let us draw something or play music")),
    ("{who} has {number} {many}", ("{number} {many} that is very nice", "and how many {many} have you")),
    ("i like to {do} {when}", ("i like to {do} what do you want to see", "let us do it then")),
)  # fmt: skip
CLOSINGS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("thank you very much for the {work}", ("i am happy that you like the {work}", "i like the {work} very much")),
    ("thank you for the {work}", ("i am happy that you like it", "the {work} is for you good {daytime}")),
    ("do you like the {work}", ("yes i like the {work} very much", "yes i am happy with the {work}")),
    ("{who} likes the {work} very much", ("that is nice and do you like the {work}", "i am happy that {who} likes it")),
    ("thank you that is very nice", ("i am happy that you like it", "thank you and good {daytime}")),
    ("the {work} is for {who}", ("i am happy if {who} likes the {work}", "that is very nice of you")),
)  # fmt: skip

# Topics about an object, which may be an instrument, and about an instrument's music.
TOPICS_OF_OBJECTS = (
    "a picture of {a_object}", "a picture of {a_object} for {who}", "draw {a_object} {when}", "a {size} {object} {where}",
    "{a_object} for a book", "a story about {a_object} with a picture", "where is the {object} in the picture",
    "a {size} picture with {a_object}", "{who} likes a {size} {object}", "{a_object} on a {weather} {daytime}",
    "how to draw {a_object}", "{who} wants a picture of {a_object}", "the color behind the {object}",
    "is it {a_object} in the picture", "paint a {size} {object} for {who}", "a {size} {object} to look at {when}",
    "a good {daytime} picture with {a_object}",
)  # fmt: skip
TOPICS_OF_MUSIC = (
    "a {dance} on the {instrument}", "a {tempo} {dance} for {who}", "music for the {instrument} {when}",
    "a {tempo} tune on the {instrument}", "what does {a_instrument} sound like", "a picture of {a_instrument} and a {dance}",
    "who plays the {instrument}", "a {dance} for a {weather} {daytime}", "{who} likes the {instrument} very much",
    "dance to the {instrument} {when}", "which instrument plays the {dance}", "a {tempo} {dance} and its key",
    "a song for {who} on the {instrument}", "{who} and a {tempo} {dance}", "{a_instrument} to see and to hear",
)  # fmt: skip
# What happens in a scenario, by requirement.
SCENARIOS: Mapping[str, tuple[str, ...]] = {
    "user_image": (
        "the user has a picture of {a_object} and wants to know what color is behind it",
        "the user gives a picture of {a_object} and asks about it", "the user has a picture of {a_object} for {who}",
        "the user wants to know where the {object} is in a picture", "the user asks what is in a picture of {a_object}",
    ),
    "ask_image": (
        "the user would like a picture of {a_object}", "the user wants to see {a_object}",
        "the user asks for a {size} {object} for {who}", "the user wants to have {a_object} drawn {when}",
        "the user asks for a picture with {a_object} and would like to have it changed",
    ),
    "user_music": (
        "the user plays a {dance} on the {instrument} and asks about it",
        "the user has music for the {instrument} and wants to know which dance it is",
        "the user gives a {tempo} {dance} on the {instrument} and asks what plays",
    ),
    "ask_music": (
        "the user wants to hear a {tempo} {dance} on the {instrument}", "the user asks for a {dance} on the {instrument}",
        "the user would like music on the {instrument} {when}", "the user asks for a {dance} on the {instrument} for {who}",
    ),
}  # fmt: skip
