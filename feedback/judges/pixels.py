"""Frames with gradient, prepared as a video VLM's own processor prepares a clip.

The processor itself is run, on floats, so sizes, the order of patches, mean and standard deviation are the processor's.
Where it resizes, it rounds 8-bit pixels to 8 bits and clamps what overshoots; feedback/metrics/image_text.py keeps that
in the values and leaves it out of the gradient. So 8-bit frames have the processor's own values, and other frames these
plus what lies between their levels: at most half a level, 0.0075 of a normalised value.

Without that constant a resized value would be off by up to 0.012 (0.004 on average) on smooth frames, and by up to 0.5
on noise that is enlarged, whose overshoot is large (tests/feedback/differentiable/test_pixels.py).
"""

from collections.abc import Callable

from torch import Tensor
from transformers import ProcessorMixin, Qwen2VLVideoProcessor, Qwen3VLVideoProcessor
from transformers.models.internvl.video_processing_internvl import InternVLVideoProcessor

from feedback.judges.vlm import frame_order, sizes
from feedback.metrics.image_text import WHITE, rounding

WORK = (Qwen2VLVideoProcessor, Qwen3VLVideoProcessor, InternVLVideoProcessor)  # Qwen2.5-VL has Qwen2-VL's


def make_pixels(processor: ProcessorMixin, pixels: int | None = None) -> Callable[[Tensor], dict[str, Tensor]]:
    """A function of a clip's frames: the video's part of the inputs that `feedback.judges.vlm.build_inputs` returns.

    pixels: as in `build_inputs`.
    The function takes the sampled frames, float32 (F, H, W, 3) in [0, 1], and returns, with their gradient,
        pixel_values_videos (patches, values of a patch) and, without, video_grid_thw (1, 3) for the Qwens,
        pixel_values (F, 3, height, width) for InternVL.
    Several videos are such dictionaries, each entry concatenated along its first axis.
    Raises ValueError for a processor that is not among those tested; the function raises it for frames of another
    shape or type.
    """
    prepare = processor.video_processor
    if not isinstance(prepare, WORK):
        known = ", ".join(one.__name__ for one in WORK)
        raise ValueError(f"no gradient passes {type(prepare).__name__}; the video processors that work are {known}")

    def prepared(frames: Tensor) -> dict[str, Tensor]:
        if frames.ndim != 4 or frames.shape[-1] != 3 or not len(frames) or not frames.is_floating_point():
            raise ValueError(
                f"frames are {frames.dtype} {tuple(frames.shape)}, expected float (F, H, W, 3) with F >= 1"
            )
        order = frame_order(processor, len(frames))
        settings = sizes(processor, pixels, len(order))

        def features(clip: Tensor) -> dict[str, Tensor]:
            video = clip[order].permute(0, 3, 1, 2)
            return dict(prepare(videos=[video], do_sample_frames=False, return_tensors="pt", **settings))

        made = features(frames.float() * WHITE)
        values = made.pop("pixel_values_videos") + rounding(lambda clip: features(clip)["pixel_values_videos"], frames)
        if isinstance(prepare, InternVLVideoProcessor):
            return {"pixel_values": values.flatten(0, 1)}
        return {"pixel_values_videos": values} | made

    return prepared
