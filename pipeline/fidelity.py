"""How near the lighter decoder that an online policy is trained through comes to the generator's VAE."""

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from data.prompts import Prompt

if TYPE_CHECKING:  # torch takes seconds to import
    from data.store import ClipSet
    from generators.core.decoding import Decoding
    from generators.core.encoding import Encoded
    from generators.core.generator import Generator
    from generators.core.rollout import Sampling
    from generators.decoders.lighter import LighterDecoder

logger = logging.getLogger(__name__)

DECODER_PSNR = "decoder_psnr"  # in a log line's held_out/others, in metrics/online/<entry>.json and in policy.json
MOST = 99.0  # dB, of equal frames: JSON has no infinity


class DecoderFidelity(NamedTuple):
    """Compares the lighter decoder with the VAE, over all frames of clips of the policy of the moment."""

    generator: "Generator"
    decoding: "Decoding"
    lighter: "LighterDecoder"

    def on_check(self, clip_sets: "Sequence[ClipSet]", update: int) -> dict[str, float]:
        """`decoder_psnr` in dB over the check's clips, those of all processes. clip_sets: of this process."""
        from cluster import devices
        from generators.core.decoding import squared_error

        ids = [(one, sample.sample_id) for one in clip_sets for sample in one.samples]
        own = [squared_error(self.generator, one.latents([name]), self.decoding, self.lighter) for one, name in ids]
        errors = [error for of_rank in devices.gather_over_ranks(own) for error in of_rank]
        found = self._psnr(errors)
        logger.info("update %d: the lighter decoder is %.1f dB from the VAE, %d clips", update, found, len(errors))
        return {DECODER_PSNR: found}

    def of_one_clip(self, prompt: Prompt, encoded: "Encoded", how: "Sampling") -> None:
        """Log the same of one clip of the generator, for a run without a check."""
        from generators.core.conditions import stacked
        from generators.core.decoding import squared_error

        generator, captions = self.generator, encoded.conditions
        noise = generator.draw_noise([how.seed], generator.latent_shape)
        conditions = stacked([captions.prompts[prompt.prompt_id]])
        latents = generator.sample(conditions, captions.unwanted, noise, how.steps, how.guidance, how.solver)
        found = self._psnr([squared_error(generator, latents, self.decoding, self.lighter)])
        logger.info("the lighter decoder is %.1f dB from the VAE on a clip of the generator", found)

    def _psnr(self, errors: Sequence[float]) -> float:
        from generators.core.decoding import psnr

        return round(min(psnr(sum(errors) / len(errors)), MOST), 2)
