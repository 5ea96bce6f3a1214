"""The TFDS builder `embedded_world`; importing it registers it."""

from anygpt_jax.embedded.embedded_world.embedded_world_dataset_builder import Builder as Builder
