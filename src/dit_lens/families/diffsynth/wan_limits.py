"""What of `WanVideoPipeline` is refused under tracing, each with its reason.

Either hooks would see something else than their labels say, or the pipeline would be wrong in silence.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from typing import Any

from dit_lens.errors import PlanError
from dit_lens.families.patching import refuse_compiled

REFUSED = {
    "tea_cache_l1_thresh": "TeaCache skips whole passes, so blocks do not run at every step",
    "sliding_window_size": "sliding windows run the model several times a step, on other frames each time",
    "sliding_window_stride": "sliding windows run the model several times a step, on other frames each time",
    **dict.fromkeys(
        ("vace_video", "vace_video_mask", "vace_reference_image"),
        "VACE adds hints between blocks, and prepends latent frames for its reference",
    ),
    **dict.fromkeys(
        ("animate_pose_video", "animate_face_video", "animate_inpaint_video", "animate_mask_video"),
        "Animate changes states between blocks",
    ),
    **dict.fromkeys(
        ("animate2_reference_image", "animate2_reference_video", "animate2_refert_images"),
        "Wan-Animate-2 runs another function, and its blocks once more before the first step",
    ),
    **dict.fromkeys(
        ("input_audio", "audio_embeds", "s2v_pose_video", "s2v_pose_latents", "motion_video"),
        "speech-to-video runs another function",
    ),
    "longcat_video": "LongCat runs another function",
    "vap_video": "video-as-prompt runs blocks through another module",
    **dict.fromkeys(
        (
            "wantodance_music_path",
            "wantodance_reference_image",
            "wantodance_keyframes",
            "wantodance_keyframes_mask",
        ),
        "WanToDance changes states between blocks, and skips the 9th on the unconditional branch",
    ),
}
"""Arguments that change what hooks see, with the reason why they are refused."""

IMAGES = ("input_image", "control_video", "camera_control_direction")
"""Arguments that give a model with image channels what it takes beside the latents."""


def refuse(pipe: Any, keywords: Mapping[str, Any]) -> None:
    """Refuse what changes what hooks see, and what the pipeline would get wrong in silence.

    Raises:
        PlanError: it names the argument or the model, and the reason.
    """
    known = inspect.signature(type(pipe).__call__).parameters
    for name in keywords:
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {close[0]!r}?" if close else f"it takes {', '.join(list(known)[1:])}."
            raise PlanError(f"{type(pipe).__name__} takes no argument {name!r}: {hint}")
    for name, reason in REFUSED.items():
        if keywords.get(name) is not None:
            raise PlanError(
                f"{name}={keywords[name]!r} is not supported under tracing: {reason}. Leave it out."
            )
    if keywords.get("cfg_merge") and keywords["cfg_scale"] == 1.0:
        raise PlanError(
            "cfg_merge=True with cfg_scale=1 leaves two merged branches unguided: drop cfg_merge."
        )
    if keywords.get("cfg_merge") or not isinstance(keywords["prompt"], str):
        refuse_rows(keywords)
    if getattr(pipe, "use_unified_sequence_parallel", False):
        raise PlanError(
            "Sequence parallelism splits the tokens over processes: make the pipeline without use_usp."
        )
    if getattr(pipe, "vap", None) is not None:
        raise PlanError(f"vap is loaded: {REFUSED['vap_video']}. Make the pipeline without it.")
    for name in ("dit", "dit2"):
        if (dit := getattr(pipe, name)) is not None:
            _refuse_dit(name, dit)
    _need_image(pipe, keywords)


def refuse_rows(keywords: Mapping[str, Any]) -> None:
    """Refuse what the model takes one row of at a time.

    Raises:
        PlanError: it names the argument.
    """
    if keywords.get("camera_control_direction") is not None:
        raise PlanError(
            "camera_control_direction: DiffSynth keeps the first row of a batch and drops the others. Use lens.run with one "
            "prompt, without cfg_merge."
        )


def _refuse_dit(name: str, dit: Any) -> None:
    """Refuse a model that is not run as WanModel is."""
    kind = type(dit).__name__
    if kind != "WanModel":
        raise PlanError(
            f"{name} is a {kind}, which the pipeline runs by another function; wan knows WanModel."
        )
    if dit.wantodance_enable_global or dit.wantodance_enable_music_inject:
        raise PlanError(f"{name} is a WanToDance model: {REFUSED['wantodance_keyframes']}.")
    refuse_compiled(name, dit)


def _need_image(pipe: Any, keywords: Mapping[str, Any]) -> None:
    """Refuse an image-to-video model without its image, or without the encoder that reads it."""
    dit = pipe.dit
    if dit is None:
        return
    given = [name for name in IMAGES if keywords.get(name) is not None]
    if dit.require_vae_embedding and dit.in_dim != pipe.vae.model.z_dim and not given:
        raise PlanError(
            f"This model takes {dit.in_dim} channels, {pipe.vae.model.z_dim} of latents and the rest of an image: give a "
            f"sample with an image, or {' or '.join(IMAGES[1:])}."
        )
    clip = pipe.image_encoder is not None or "control_video" in given
    if dit.has_image_input and dit.require_clip_embedding and not clip:
        raise PlanError(
            "This model's cross-attention takes its first 257 context tokens for an image's, and the pipeline has no image "
            "encoder that makes them: the prompt would be read as an image. Load the CLIP image encoder."
        )
