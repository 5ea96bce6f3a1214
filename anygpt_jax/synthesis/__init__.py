"""AnyInstruct: dialogues that interweave text, images, speech and music, made with generators (AnyGPT, section 3.3).

Meta-topics → topics → scenarios → scripts of dialogues with media as descriptions → media → filters → a data set in
AnyInstruct's released layout, which the ordinary tokenization job reads (docs/synthesis.md).
"""
