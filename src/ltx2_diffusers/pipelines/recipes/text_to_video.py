"""Text to video with sound."""

from . import Arguments, LTX2GenerationPipeline, Result, run, stage_list, takes


class LTX2Pipeline(LTX2GenerationPipeline):
    """Generates a video and its sound from text.

    Takes the components and call arguments of diffusers' pipeline of the same name.
    """

    @takes(Arguments)
    def __call__(self, call: Arguments) -> Result:
        """Generate videos with sound.

        `None` (or `"preset"`) stands for the reference value of the checkpoint's version and kind. Shapes: B videos of the
        batch, T text positions, F latent frames, h and w latent rows and columns, L audio latents, M latent mel bins.

        Returns:
            [`LTX2PipelineOutput`], or the tuple `(frames, audio)`.

        Raises:
            ValueError: Before any computation, if an argument is out of range or contradicts another.
        """
        return run(self, *call.request(stage_list(self, call.sampling)))
