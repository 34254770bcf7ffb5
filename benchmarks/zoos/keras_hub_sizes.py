"""The tiny sizes of the backbones of keras-hub, whose constructors have no defaults.

Most are said by the name of the argument, so that a new backbone is built from them as well; what
only one backbone has is in `OWN`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_SHAPE = (32, 32, 3)

# By the name of an argument: for every backbone that has one of such a name.
COMMON: dict[str, Any] = {
    "vocabulary_size": 32,
    "vocab_size": 32,
    "num_layers": 2,
    "num_layers_enc": 2,
    "num_layers_dec": 2,
    "num_heads": 2,
    "num_attention_heads": 2,
    "num_query_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "head_size": 8,
    "hidden_dim": 16,
    "hidden_size": 16,
    "embedding_dim": 16,
    "intermediate_dim": 24,
    "intermediate_size": 24,
    "mlp_dim": 24,
    "moe_intermediate_dim": 12,
    "shared_expert_intermediate_dim": 12,
    "shared_expert_intermediate_size": 12,
    "num_experts": 4,
    "top_k": 2,
    "max_sequence_length": 16,
    "patch_size": 8,
    "image_size": 32,
    "image_shape": _SHAPE,
    "sliding_window": 4,
    "sliding_window_size": 4,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}


def _models() -> Any:
    import keras_hub

    return keras_hub.models


def _resnet(**options: Any) -> Any:
    return _models().ResNetBackbone(**{**_resnet_sizes(), **options})


def _resnet_sizes() -> dict[str, Any]:
    return {
        "input_conv_filters": [64],
        "input_conv_kernel_sizes": [7],
        "stackwise_num_filters": [64, 64, 64, 64],  # nothing less is allowed
        "stackwise_num_blocks": [2, 2, 2, 2],
        "stackwise_num_strides": [1, 2, 2, 2],
        "block_type": "basic_block",
    }


def _mit() -> dict[str, Any]:
    return {
        "layerwise_depths": [1, 1],
        "num_layers": 2,
        "layerwise_num_heads": [1, 2],
        "layerwise_sr_ratios": [2, 1],
        "max_drop_path_rate": 0.0,
        "layerwise_patch_sizes": [7, 3],
        "layerwise_strides": [4, 2],
        "hidden_dims": [8, 16],
    }


def _towers(vision: str, text: str, **options: Any) -> dict[str, Any]:
    """Two encoders of the same size, of pictures and of text."""
    sizes = {"hidden_dim": 16, "num_layers": 2, "num_heads": 2, "intermediate_dim": 24}
    return {
        "vision_encoder": getattr(_models(), vision)(patch_size=8, image_shape=_SHAPE, **sizes),
        "text_encoder": getattr(_models(), text)(
            vocabulary_size=32, embedding_dim=16, max_sequence_length=8, **sizes
        ),
        **options,
    }


def _t5gemma() -> dict[str, Any]:
    sides = {
        "hidden_dim": 16,
        "intermediate_dim": 24,
        "num_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "layer_types": ["sliding_attention", "full_attention"],
    }
    return {
        f"{side}_{key}": value for side in ("encoder", "decoder") for key, value in sides.items()
    }


def _smollm() -> dict[str, Any]:
    return {
        "attention_bias": False,
        "attention_dropout": 0.0,
        "rope_layer_enabled_list": [True, False],
        "layer_types": ["attention", "attention"],
        "mlp_bias": False,
        "layer_norm_epsilon": 1e-5,
        "max_position_embeddings": 16,
        "rope_theta": 10000.0,
        "partial_rotary_factor": 1.0,
    }


def _hgnet() -> dict[str, Any]:
    return {
        "depths": [1, 2],
        "embedding_size": 8,
        "hidden_sizes": [16, 16],
        "stem_channels": [3, 8, 8],
        "hidden_act": "relu",
        "use_learnable_affine_block": True,
        "stackwise_stage_filters": [(8, 8, 16, 1, 1, 3), (16, 8, 16, 2, 1, 3)],
        "apply_downsample": [False, True],
        "use_lightweight_conv_block": [False, True],
    }


def _dfine() -> dict[str, Any]:
    from keras_hub.src.models.hgnetv2.hgnetv2_backbone import HGNetV2Backbone

    sizes = _hgnet() | {"out_features": ["stage1", "stage2"], "image_shape": (64, 64, 3)}
    return {
        "backbone": HGNetV2Backbone(**sizes),
        "decoder_in_channels": [16, 16],
        "encoder_hidden_dim": 16,
        "num_labels": 4,
        "num_denoising": 0,
        "learn_initial_query": False,
        "num_queries": 6,
        "anchor_image_size": (64, 64),
        "feat_strides": [4, 8],
        "num_feature_levels": 2,
        "hidden_dim": 16,
        "encoder_in_channels": [16, 16],
        "encode_proj_layers": [1],
        "num_attention_heads": 2,
        "encoder_ffn_dim": 24,
        "num_encoder_layers": 1,
        "hidden_expansion": 0.5,
        "depth_multiplier": 0.5,
        "eval_idx": -1,
        "num_decoder_layers": 2,
        "decoder_attention_heads": 2,
        "decoder_ffn_dim": 24,
        "decoder_n_points": [2, 2],
        "lqe_hidden_dim": 8,
        "num_lqe_layers": 2,
        "image_shape": (64, 64, 3),
    }


def _mobilenet() -> dict[str, Any]:
    return {
        "stackwise_expansion": [[16], [24, 24]],
        "stackwise_num_blocks": [1, 2],
        "stackwise_num_filters": [[8], [16, 16]],
        "stackwise_kernel_size": [[3], [5, 5]],
        "stackwise_num_strides": [[2], [2, 1]],
        "stackwise_se_ratio": [[None], [0.25, 0.25]],
        "stackwise_activation": [["relu"], ["hard_swish", "hard_swish"]],
        "stackwise_padding": [[1], [2, 2]],
        "output_num_filters": 32,
        "depthwise_filters": 16,
        "depthwise_stride": 1,
        "depthwise_residual": True,
        "last_layer_filter": 32,
        "squeeze_and_excite": 0.5,
    }


def _mobilenet5() -> dict[str, Any]:
    return {
        "stackwise_block_types": [["er"], ["uir", "mqa"]],
        "stackwise_num_blocks": [1, 2],
        "stackwise_num_filters": [[8], [16, 16]],
        "stackwise_strides": [[2], [2, 1]],
        "stackwise_act_layers": [["relu"], ["gelu", "gelu"]],
        "stackwise_exp_ratios": [[4.0], [4.0, 4.0]],
        "stackwise_se_ratios": [[0.0], [0.0, 0.0]],
        "stackwise_dw_kernel_sizes": [[0], [5, 3]],
        "stackwise_dw_start_kernel_sizes": [[0], [3, 0]],
        "stackwise_dw_end_kernel_sizes": [[0], [0, 0]],
        "stackwise_exp_kernel_sizes": [[3], [0, 0]],
        "stackwise_pw_kernel_sizes": [[1], [0, 0]],
        "stackwise_num_heads": [[0], [0, 2]],
        "stackwise_key_dims": [[0], [0, 8]],
        "stackwise_value_dims": [[0], [0, 8]],
        "stackwise_kv_strides": [[0], [0, 1]],
        "stackwise_use_cpe": [[False], [False, False]],
        "se_layer": None,
        "num_features": 16,
        "msfa_output_resolution": 4,
    }


def _efficientnet() -> dict[str, Any]:
    return {
        "stackwise_width_coefficients": [1.0] * 3,
        "stackwise_depth_coefficients": [1.0] * 3,
        "stackwise_kernel_sizes": [3, 3, 5],
        "stackwise_num_repeats": [1, 1, 2],
        "stackwise_input_filters": [8, 8, 16],
        "stackwise_output_filters": [8, 16, 16],
        "stackwise_expansion_ratios": [1, 4, 4],
        "stackwise_squeeze_and_excite_ratios": [0.0, 0.25, 0.25],
        "stackwise_strides": [1, 2, 1],
        "stackwise_block_types": ["fused", "unfused", "unfused"],
        "stackwise_force_input_filters": [0] * 3,
        "stackwise_nores_option": [False] * 3,
        "input_shape": _SHAPE,
        "num_features": 32,
    }


def _parseq() -> dict[str, Any]:
    return {
        "image_encoder": _models().ViTBackbone(
            image_shape=_SHAPE,
            patch_size=8,
            num_layers=2,
            num_heads=2,
            hidden_dim=16,
            mlp_dim=24,
            use_class_token=False,
        ),
        "max_label_length": 7,
        "decoder_hidden_dim": 16,
        "num_decoder_layers": 1,
        "num_decoder_heads": 2,
        "decoder_mlp_dim": 24,
    }


def _sam() -> dict[str, Any]:
    import keras_hub

    return {
        "image_encoder": _models().ViTDetBackbone(
            hidden_size=16,
            num_layers=2,
            intermediate_dim=24,
            num_heads=2,
            global_attention_layer_indices=[1],
            patch_size=8,
            num_output_channels=8,
            window_size=2,
            image_shape=(32, 32, 3),
        ),
        "prompt_encoder": keras_hub.layers.SAMPromptEncoder(
            hidden_size=8,
            image_embedding_size=(4, 4),
            input_image_size=(32, 32),
            mask_in_channels=8,
        ),
        "mask_decoder": keras_hub.layers.SAMMaskDecoder(
            num_layers=2,
            hidden_size=8,
            intermediate_dim=16,
            num_heads=2,
            embedding_dim=8,
            num_multimask_outputs=3,
            iou_head_depth=2,
            iou_head_hidden_dim=8,
        ),
    }


def _sam3() -> dict[str, Any]:
    import keras_hub

    layers = keras_hub.layers
    size = {"hidden_dim": 16, "intermediate_dim": 24, "num_heads": 2}
    picture = {"image_shape": (56, 56, 3), "patch_size": 14}
    return {
        "vision_encoder": layers.SAM3VisionEncoder(
            **picture,
            **size,
            num_layers=2,
            fpn_hidden_dim=16,
            fpn_scale_factors=[4.0, 2.0, 1.0, 0.5],
            pretrain_image_shape=(28, 28, 3),
            window_size=2,
            global_attn_indexes=[1],
        ),
        "text_encoder": layers.SAM3TextEncoder(
            vocabulary_size=32, embedding_dim=16, num_layers=2, **size
        ),
        "geometry_encoder": layers.SAM3GeometryEncoder(num_layers=1, roi_size=3, **size),
        "detr_encoder": layers.SAM3DetrEncoder(num_layers=1, **size),
        "detr_decoder": layers.SAM3DetrDecoder(num_layers=1, num_queries=5, **picture, **size),
        "mask_decoder": layers.SAM3MaskDecoder(num_upsampling_stages=3, hidden_dim=16, num_heads=2),
        "dtype": "float32",
    }


def _depth() -> dict[str, Any]:
    return {
        "image_encoder": _models().DINOV2Backbone(
            patch_size=14,
            num_layers=4,
            hidden_dim=16,
            num_heads=2,
            intermediate_dim=24,
            image_shape=(84, 84, 3),
            position_embedding_shape=(84, 84, 3),
        ),
        "reassemble_factors": [4, 2, 1, 0.5],
        "neck_hidden_dims": [8, 8, 16, 16],
        "fusion_hidden_dim": 16,
        "head_hidden_dim": 8,
        "head_in_index": -1,
        "feature_keys": ["stage1", "stage2", "stage3", "stage4"],
    }


def _blip2() -> dict[str, Any]:
    from keras_hub.src.models.blip2 import blip2_custom_opt, blip2_qformer, blip2_vision_encoder

    size = {"num_layers": 2, "num_heads": 2, "hidden_dim": 16, "intermediate_dim": 24}
    return {
        "vision_encoder": blip2_vision_encoder.BLIP2VisionEncoder(
            **size,
            image_size=32,
            patch_size=8,
            use_patch_bias=True,
            use_class_token=True,
            use_mha_bias=True,
            use_mlp_bias=True,
            dropout_rate=0.0,
            layer_norm_epsilon=1e-6,
            initializer_range=0.02,
        ),
        "qformer": blip2_qformer.BLIP2QFormer(
            **size,
            num_query_tokens=3,
            vision_dim=16,
            cross_attention_frequency=2,
            dropout=0.0,
            layer_norm_epsilon=1e-6,
        ),
        "language_model": blip2_custom_opt.BLIP2CustomOPT(
            **size,
            vocabulary_size=32,
            num_query_tokens=3,
            dropout=0.0,
            max_sequence_length=16,
            qformer_hidden_dim=16,
        ),
    }


def _stable_diffusion() -> dict[str, Any]:
    from keras_hub.src.models.clip.clip_text_encoder import CLIPTextEncoder
    from keras_hub.src.models.vae.vae_backbone import VAEBackbone

    encoder = lambda name: CLIPTextEncoder(
        32, 16, 16, 2, 2, 24, max_sequence_length=8, intermediate_output_index=-2, name=name
    )
    return {
        "mmdit_patch_size": 2,
        "mmdit_hidden_dim": 32,
        "mmdit_num_layers": 2,
        "mmdit_num_heads": 2,
        "mmdit_position_size": 8,
        "mmdit_qk_norm": None,
        "mmdit_dual_attention_indices": None,
        "vae": VAEBackbone([32] * 4, [1] * 4, [32] * 4, [1] * 4),
        "clip_l": encoder("clip_l"),
        "clip_g": encoder("clip_g"),
        "image_shape": (32, 32, 3),
    }


def _gemma3n() -> dict[str, Any]:
    return {
        "text_vocab_size": 32,
        "text_hidden_size": 16,
        "num_hidden_layers": 2,
        "pad_token_id": 0,
        "hidden_activation": "gelu_approximate",
        "layer_types": ["sliding_attention", "full_attention"],
        "intermediate_size": [24, 24],
        "rope_theta": 10000.0,
        "max_position_embeddings": 16,
        "vocab_size_per_layer_input": 32,
        "hidden_size_per_layer_input": 8,
        "altup_num_inputs": 2,
        "laurel_rank": 4,
        "altup_active_idx": 0,
        "activation_sparsity_pattern": [0.5, 0.0],
    }


# What only one backbone has; called when it is built.
OWN: dict[str, Callable[[], dict[str, Any]]] = {
    "BASNetBackbone": lambda: {
        "image_encoder": _resnet(),
        "num_classes": 1,
        "image_shape": (64, 64, 3),
        "projection_filters": 64,
    },
    "BLIP2Backbone": _blip2,
    "CLIPBackbone": lambda: _towers("CLIPVisionEncoder", "CLIPTextEncoder", projection_dim=8),
    "CSPNetBackbone": lambda: {
        "stem_filters": 8,
        "stem_kernel_size": 3,
        "stem_strides": 1,
        "stem_padding": "same",
        "stackwise_depth": [1, 2],
        "stackwise_strides": [2, 2],
        "stackwise_num_filters": [16, 32],
        "bottle_ratio": [0.5, 1.0],
        "block_ratio": [1.0, 0.5],
        "expand_ratio": [2.0, 1.0],
        "down_growth": True,
        "block_type": "dark_block",
        "stage_type": "csp",
    },
    "DFineBackbone": _dfine,
    "DINOV2Backbone": lambda: {"position_embedding_shape": _SHAPE},
    "DeepLabV3Backbone": lambda: {
        "image_encoder": _resnet(image_shape=(64, 64, 3)),
        "image_shape": (64, 64, 3),
        "projection_filters": 8,
        "low_level_feature_key": "P2",
        "spatial_pyramid_pooling_key": "P5",
        "upsampling_size": 8,
        "dilation_rates": [6, 12, 18],
    },
    "DenseNetBackbone": lambda: {"stackwise_num_repeats": [2, 2], "growth_rate": 8},
    "DepthAnythingBackbone": _depth,
    "EfficientNetBackbone": _efficientnet,
    "FluxBackbone": lambda: {
        "input_channels": 8,
        "mlp_ratio": 2.0,
        "depth": 1,
        "depth_single_blocks": 1,
        "axes_dim": [4, 2, 2],
        "theta": 10000,
        "use_bias": True,
        "image_shape": (8, 8),
        "text_shape": (8, 8),
        "image_ids_shape": (8, 3),
        "text_ids_shape": (8, 3),
        "y_shape": (16,),
    },
    "Gemma3nBackbone": _gemma3n,
    "HGNetV2Backbone": _hgnet,
    "MetaCLIP2Backbone": lambda: _towers(
        "MetaCLIP2VisionEncoder", "MetaCLIP2TextEncoder", projection_dim=8
    ),
    "MiTBackbone": _mit,
    "MobileNetBackbone": _mobilenet,
    "MobileNetV5Backbone": _mobilenet5,
    "MoonshineBackbone": lambda: {
        "filter_dim": 16,
        "encoder_num_layers": 2,
        "decoder_num_layers": 2,
        "encoder_num_heads": 2,
        "decoder_num_heads": 2,
    },
    "PARSeqBackbone": _parseq,
    "PaliGemmaBackbone": lambda: {
        "vit_patch_size": 8,
        "vit_num_heads": 2,
        "vit_hidden_dim": 16,
        "vit_num_layers": 2,
        "vit_intermediate_dim": 24,
    },
    "ResNetBackbone": _resnet_sizes,
    "RetinaNetBackbone": lambda: {
        "image_encoder": _resnet(image_shape=(64, 64, 3)),
        "image_shape": (64, 64, 3),
        "min_level": 3,
        "max_level": 6,
        "use_p5": False,
    },
    "SAM3PromptableConceptBackbone": _sam3,
    "SAMBackbone": _sam,
    "SegFormerBackbone": lambda: {
        "image_encoder": _models().MiTBackbone(image_shape=_SHAPE, **_mit()),
        "projection_filters": 8,
    },
    "SigLIPBackbone": lambda: _towers("SigLIPVisionEncoder", "SigLIPTextEncoder"),
    "SmolLM3Backbone": _smollm,
    "SmolLMBackbone": _smollm,
    "StableDiffusion3Backbone": _stable_diffusion,
    "SwinTransformerBackbone": lambda: {
        "embed_dim": 8,
        "depths": [2, 2],
        "num_heads": [1, 2],
        "window_size": 4,
        "patch_size": 2,
    },
    "T5Gemma2Backbone": _t5gemma,
    "T5GemmaBackbone": _t5gemma,
    "VGGBackbone": lambda: {
        "stackwise_num_repeats": [1, 1, 2],
        "stackwise_num_filters": [8, 8, 16],
    },
    "ViTDetBackbone": lambda: {
        "global_attention_layer_indices": [1],
        "num_output_channels": 8,
        "window_size": 2,
    },
    "VideoPrismBackbone": lambda: {
        "num_frames": 2,
        "num_spatial_layers": 1,
        "num_temporal_layers": 1,
        "num_auxiliary_layers": 1,
    },
    "WhisperBackbone": lambda: {
        "num_mels": 8,
        "max_encoder_sequence_length": 16,
        "max_decoder_sequence_length": 16,
    },
    "XceptionBackbone": lambda: {
        "stackwise_conv_filters": [[8, 8], [16, 16], [16, 16]],
        "stackwise_pooling": [True, True, False],
    },
}

# Inputs of other shapes than those that a backbone asks for: a second of sound has 16000 samples,
# and a prompt of SAM is one point and one box without a mask.
INPUTS: dict[str, dict[str, tuple[int, ...]]] = {
    "MoonshineBackbone": {"encoder_input_values": (1, 1600, 1), "encoder_padding_mask": (1, 1600)},
    "SAMBackbone": {
        "points": (1, 1, 2),
        "labels": (1, 1),
        "boxes": (1, 1, 2, 2),
        "masks": (1, 0, 32, 32, 1),
    },
    "SigLIPTextEncoder": {"token_ids": (1, 16)},
}

# Backbones that make something at their first call, which must not be one that JAX traces.
CALLED_FIRST = frozenset({"StableDiffusion3Backbone"})

# Why a backbone is left out.
LEFT_OUT: dict[str, str] = {
    "Backbone": "the base class of all others",
    "FeaturePyramidBackbone": "a base class",
}
