"""Small models with random weights, of many architectures, made by transformers itself."""

from typing import Any

import torch
import transformers as tf

_TEXT = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
_IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_GQA = {**_TEXT, "num_key_value_heads": 2, **_IDS}
_VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
}
_MLA = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "n_group": 1,
    "topk_group": 1,
}

# name -> (model class, config class, config)
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", _GQA),
    "llama-tied": ("LlamaForCausalLM", "LlamaConfig", {**_GQA, "tie_word_embeddings": True}),
    "mistral": ("MistralForCausalLM", "MistralConfig", {**_GQA, "head_dim": 16}),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", _GQA),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", {**_GQA, "head_dim": 16, "tie_word_embeddings": True}),
    "qwen3-moe": (
        "Qwen3MoeForCausalLM",
        "Qwen3MoeConfig",
        {**_GQA, "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    ),
    "mixtral": ("MixtralForCausalLM", "MixtralConfig", {**_GQA, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "deepseek-v3": (
        "DeepseekV3ForCausalLM",
        "DeepseekV3Config",
        {
            **_TEXT,
            **_IDS,
            **_MLA,
            "num_key_value_heads": 4,
            "n_routed_experts": 8,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "first_k_dense_replace": 1,
            "num_nextn_predict_layers": 0,
        },
    ),
    "gpt-oss": (
        "GptOssForCausalLM",
        "GptOssConfig",
        {**_GQA, "head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2},
    ),
    "gemma": ("GemmaForCausalLM", "GemmaConfig", {**_GQA, "head_dim": 16}),
    "gemma2": ("Gemma2ForCausalLM", "Gemma2Config", {**_GQA, "head_dim": 16}),
    "phi3": ("Phi3ForCausalLM", "Phi3Config", _GQA),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", {"vocab_size": 96, "n_embd": 32, "n_layer": 2, "n_head": 4, **_IDS}),
    "gpt-neox": ("GPTNeoXForCausalLM", "GPTNeoXConfig", {**_TEXT, **_IDS}),
    "opt": ("OPTForCausalLM", "OPTConfig", {**_TEXT, "ffn_dim": 64, "word_embed_proj_dim": 32, **_IDS}),
    "bloom": (
        "BloomForCausalLM",
        "BloomConfig",
        {"vocab_size": 96, "hidden_size": 32, "n_layer": 2, "n_head": 4, **_IDS},
    ),
    "falcon": ("FalconForCausalLM", "FalconConfig", {**_TEXT, **_IDS}),
    "olmo2": ("Olmo2ForCausalLM", "Olmo2Config", _GQA),
    "starcoder2": ("Starcoder2ForCausalLM", "Starcoder2Config", _GQA),
    "stablelm": ("StableLmForCausalLM", "StableLmConfig", _GQA),
    "bert": ("BertForMaskedLM", "BertConfig", {**_TEXT, "pad_token_id": 0}),
    "roberta": ("RobertaForSequenceClassification", "RobertaConfig", {**_TEXT, **_IDS, "num_labels": 3}),
    "t5": (
        "T5ForConditionalGeneration",
        "T5Config",
        {"vocab_size": 96, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4},
    ),
    "whisper": (
        "WhisperForConditionalGeneration",
        "WhisperConfig",
        {
            "vocab_size": 96,
            "d_model": 32,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 64,
            "decoder_ffn_dim": 64,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "decoder_start_token_id": 3,
        },
    ),
    "vit": ("ViTForImageClassification", "ViTConfig", {**_VISION, "patch_size": 8}),
    "resnet": (
        "ResNetForImageClassification",
        "ResNetConfig",
        {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
    ),
    "clip": (
        "CLIPModel",
        "CLIPConfig",
        {"text_config": {**_TEXT, **_IDS}, "vision_config": {**_VISION, "patch_size": 8}, "projection_dim": 16},
    ),
    "mamba": ("MambaForCausalLM", "MambaConfig", {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, **_IDS}),
}


def build(name: str, *, dtype: torch.dtype = torch.float32) -> Any:
    """The model of that name, its weights random but the same each time."""
    model_class, config_class, fields = MODELS[name]
    torch.manual_seed(0)
    config = getattr(tf, config_class)(**fields)
    return getattr(tf, model_class)(config).to(dtype).eval()


def counted(model: Any) -> int:
    """Parameters as torch counts them: shared ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def saved_buffers(model: Any) -> int:
    """Elements of the buffers that a checkpoint keeps."""
    kept = model.state_dict().keys()
    return sum(buffer.numel() for name, buffer in model.named_buffers() if name in kept)
