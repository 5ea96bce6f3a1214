"""Judges of every modality, independent of our tokenizers and of our model, as SeqIO metric functions.

A metric function takes the targets' attributes and the predicted media (str, uint8[H, W, 3], `Audio`) and
returns the pair's main score (`scores.MAIN_SCORES`) and its details.
"""

from anygpt_jax.tasks.metrics.image import image_attributes
from anygpt_jax.tasks.metrics.music import music_attributes
from anygpt_jax.tasks.metrics.scores import main_score
from anygpt_jax.tasks.metrics.speech import (
    heard_unspoken_word_recall,
    speech_word_error_rate,
    spoken_image_attributes,
    spoken_music_attributes,
)
from anygpt_jax.tasks.metrics.text import (
    caption_attributes,
    music_caption_attributes,
    unspoken_word_recall,
    word_error_rate,
)

__all__ = [
    "caption_attributes",
    "heard_unspoken_word_recall",
    "image_attributes",
    "main_score",
    "music_attributes",
    "music_caption_attributes",
    "speech_word_error_rate",
    "spoken_image_attributes",
    "spoken_music_attributes",
    "unspoken_word_recall",
    "word_error_rate",
]
