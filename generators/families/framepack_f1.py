"""FramePack-F1: sections are sampled from the first to the last; generators.families.framepack has all of it."""

from generators.families.framepack import FramePackGenerator


class FramePackF1Generator(FramePackGenerator):
    """As FramePackGenerator; a section's history is what comes before it."""

    family = "framepack_f1"
    from_the_end = False


Family = FramePackF1Generator  # the name that a family's module is asked for
