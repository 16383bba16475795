"""What of `WanVideoPipeline` is refused under tracing, each with its reason.

Either hooks would see something else than their labels say, or the pipeline would be wrong in silence.
"""

from __future__ import annotations

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
