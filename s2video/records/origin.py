"""What the Content Credentials of a video say about how it was made, and who signed it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..config.run import RunConfig
from ..media.certificates import signer_of
from ..media.credentials import sign_video
from ..version import __version__


def signed(made: Path, suffix: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Sign a finished video, if its config says so, and return the facts with who signed it.

    Args:
        made: a file, or a sequence's folder, before its digest is computed.
        suffix: of its format, such as .mp4.
        facts: of its sidecar.

    Raises:
        InputError, S2VideoError: it cannot be signed.
    """
    signer = RunConfig.model_validate(facts["config"]).output.signer
    if signer is None:
        return {**facts, "credentials": None}
    sign_video(made, signer, generation(facts), suffix=suffix)
    return {**facts, "credentials": signer_of(signer.chain)}


def generation(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return what credentials say about a video: model, seed, method, digests of weights and latents; no prompt."""
    guidance = facts["config"]["guidance"]
    method = guidance["method"] if guidance["method"] != "s2" else "S2-Guidance" if facts["masks"] else "CFG"
    names = ("cfg_scale", "s2_scale", "s2_push", "drop_ratio")
    return {
        "model": facts["model"],
        "seed": facts["seed"],
        "mask_seed": facts["mask_seed"],
        "method": {"name": method} | {name: guidance[name] for name in names if guidance.get(name) is not None},
        "num_inference_steps": facts["config"]["sampling"]["num_inference_steps"],
        "weights_sha256": dict(facts["weights"]),
        "latents_sha256": facts["latents"]["sha256"],
        "s2video": facts["versions"].get("s2video", __version__),
    }
