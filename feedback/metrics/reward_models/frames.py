"""The frames of a clip that Qwen2-VL's own video reader (qwen_vl_utils, its `uniform` sampling) shows a model."""

FACTOR = 2  # frames in one patch: an even number of frames is shown
FEWEST, MOST = 4, 768  # frames, where the clip has that many
LEAST_PIXELS, MOST_PIXELS = 128 * 28 * 28, 768 * 28 * 28  # of a frame
CLIP_PIXELS = 24576 * 28 * 28  # of a clip


def frame_count(num_frames: int, fps: float, rate: float) -> int:
    """How many evenly spaced frames of a clip are shown at `rate` frames per second; 0 for a clip of one frame.

    fps: the clip's frames per second. As `smart_nframes`: as many as the clip's length takes, at least FEWEST, at most
    MOST, never more than the clip has, rounded to an even number.
    """
    most = min(MOST, num_frames) // FACTOR * FACTOR
    wanted = min(max(num_frames / fps * rate, FEWEST), most)
    return round(wanted / FACTOR) * FACTOR


def fixed_count(num_frames: int, wanted: int) -> int:
    """As `frame_count`, where a number of frames is asked for instead of a rate."""
    return min(round(wanted / FACTOR) * FACTOR, num_frames) if num_frames >= FACTOR else 0


def most_pixels(frames: int) -> int:
    """The most pixels of a frame where so many are shown and the model does not say."""
    return max(min(MOST_PIXELS, CLIP_PIXELS // frames * FACTOR), int(LEAST_PIXELS * 1.05))
