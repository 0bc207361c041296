"""SHA-256 of the files that an engine is loaded from: for sidecars and resume points, and compared between ranks."""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from ..config.sections import LoraConfig
from ..models.checkpoint import Checkpoint
from ..models.lora import lora_digests
from ..parallel.mesh import Mesh
from ..parallel.same_files import value_digests
from ..system import ranks


class Digests:
    """The digests of a checkpoint's files and of LoRAs.

    Files have gigabytes. The first rank of each host starts to read them at once, in a thread, while the ranks load and
    compute.

    Attributes:
        loras: of LoRA files, by name; on all ranks.
    """

    def __init__(self, checkpoint: Checkpoint, loras: Sequence[LoraConfig], mesh: Mesh) -> None:
        self._checkpoint, self._mesh = checkpoint, mesh
        self.loras = lora_digests(loras)
        self._files: Future[dict[str, str]] | None = None
        if mesh.is_main or ranks.local_rank() == 0:
            self._files = ThreadPoolExecutor(1).submit(checkpoint.weight_digests)
        self._values: dict[str, str] = {}

    def weights(self) -> dict[str, str]:
        """Return those of the weight files, and of LoRAs. Main rank only."""
        assert self._files is not None, "the main rank computes digests"
        return self._files.result() | self.loras

    def of_values(self) -> dict[str, str]:
        """Return texts by which ranks compare the values of their weights, by file; computed once for all jobs."""
        if not self._values:
            files = {file.name: file for file in self._checkpoint.weights()}

            def digest(name: str) -> str:
                return files[name].sha256 if self._files is None else self._files.result()[name]

            self._mesh.watch.report("comparing weights")
            self._values |= value_digests(
                {name: (file.path, file.identity) for name, file in files.items()}, digest, self._mesh.world
            )
        return self._values

    def of_denoising(self) -> dict[str, str]:
        """Return those of weights, LoRAs and settings files that decide the latents. Main rank only."""
        digests = self.weights() | self._checkpoint.settings_digests()
        if self._checkpoint.info.encodes_pictures:
            return digests
        return {name: digest for name, digest in digests.items() if not name.startswith(("vae/", "audio_vae/"))}
