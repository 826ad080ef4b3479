"""Families that read text alone: decoders dense, sparse, windowed and recurrent, and encoders that tamp refuses."""

import torch
import transformers

from families import TEXT, sample, tokens


def _texts() -> list[dict]:
    return [sample(tokens(9 + 7 * n, n)) for n in range(3)]


def _plain(model_type: str, auto=transformers.AutoModelForCausalLM, **settings):
    """Make a family from its settings alone, for the configurations that do not know the names of ``TEXT``."""
    return auto.from_config(transformers.AutoConfig.for_model(model_type, **settings)), _texts()


def _decoder(model_type: str, **settings):
    return _plain(model_type, **{**TEXT, **settings})


def llama():
    return _decoder("llama")


def mistral():
    return _decoder("mistral", sliding_window=12)


def ministral():
    layers = ["sliding_attention", "full_attention"] * 2
    return _decoder("ministral", num_hidden_layers=4, head_dim=8, layer_types=layers, sliding_window=12)


def qwen2():
    return _decoder("qwen2", use_sliding_window=True, sliding_window=12, max_window_layers=1)


def phi3():
    return _decoder("phi3", original_max_position_embeddings=512)


def gemma2():
    return _decoder("gemma2", num_hidden_layers=4, head_dim=8, query_pre_attn_scalar=8, sliding_window=12)


def cohere2():
    return _decoder("cohere2", num_hidden_layers=4, sliding_window=12)


def exaone4():
    return _decoder("exaone4", num_hidden_layers=4, sliding_window=12)


def gpt2():
    return _plain(
        "gpt2", n_embd=32, n_layer=3, n_head=4, n_positions=64, vocab_size=128, bos_token_id=1, eos_token_id=2
    )


def gpt_neox():
    return _decoder("gpt_neox")


def opt():
    return _decoder("opt", ffn_dim=48)


def mpt():
    return _plain("mpt", d_model=32, n_heads=4, n_layers=3, max_seq_len=64, vocab_size=128)


def bloom():
    return _plain("bloom", hidden_size=32, n_layer=3, n_head=4, vocab_size=128)


def falcon():
    return _decoder("falcon", ffn_hidden_size=48)


def mixtral():
    return _decoder("mixtral", num_local_experts=4, num_experts_per_tok=2)


def qwen2_moe():
    return _decoder(
        "qwen2_moe",
        moe_intermediate_size=16,
        shared_expert_intermediate_size=24,
        num_experts=4,
        num_experts_per_tok=2,
        mlp_only_layers=[0],
    )


def qwen3_moe():
    return _decoder(
        "qwen3_moe", head_dim=8, moe_intermediate_size=16, num_experts=4, num_experts_per_tok=2, mlp_only_layers=[0]
    )


def olmoe():
    return _decoder("olmoe", num_experts=4, num_experts_per_tok=2)


def deepseek_v3():
    return _decoder(
        "deepseek_v3",
        num_key_value_heads=4,
        q_lora_rank=16,
        kv_lora_rank=16,
        qk_nope_head_dim=8,
        qk_rope_head_dim=8,
        v_head_dim=8,
        moe_intermediate_size=16,
        first_k_dense_replace=1,
        n_routed_experts=4,
        n_group=2,
        topk_group=1,
        num_experts_per_tok=2,
    )


def glm4_moe():
    return _decoder(
        "glm4_moe",
        head_dim=8,
        moe_intermediate_size=16,
        first_k_dense_replace=1,
        n_routed_experts=4,
        num_experts_per_tok=2,
        use_qk_norm=True,
    )


def ernie4_5_moe():
    return _decoder("ernie4_5_moe", moe_intermediate_size=16, moe_num_experts=4, moe_k=2, moe_num_shared_experts=1)


def gpt_oss():
    return _decoder(
        "gpt_oss",
        num_hidden_layers=4,
        head_dim=8,
        num_local_experts=4,
        num_experts_per_tok=2,
        sliding_window=12,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4},
    )


def phimoe():
    return _decoder("phimoe", num_local_experts=4, num_experts_per_tok=2)


def granitemoe():
    return _decoder(
        "granitemoe",
        num_local_experts=4,
        num_experts_per_tok=2,
        embedding_multiplier=12.0,
        residual_multiplier=0.5,
        attention_multiplier=0.25,
        logits_scaling=4.0,
    )


def dbrx():
    return _plain(
        "dbrx",
        d_model=32,
        n_heads=4,
        n_layers=3,
        max_seq_len=64,
        vocab_size=128,
        attn_config={"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 1e4},
        ffn_config={"hidden_size": 32, "ffn_hidden_size": 16, "moe_num_experts": 4, "moe_top_k": 2},
    )


def jetmoe():
    return _decoder("jetmoe", num_attention_heads=4, kv_channels=8, num_local_experts=4, num_experts_per_tok=2)


def longcat_flash():
    """Two decoder blocks of two attentions and two feed-forwards each, which the configuration counts as four layers."""
    return _decoder(
        "longcat_flash",
        num_hidden_layers=4,
        num_key_value_heads=4,
        ffn_hidden_size=48,
        q_lora_rank=16,
        kv_lora_rank=16,
        qk_nope_head_dim=8,
        qk_rope_head_dim=8,
        v_head_dim=8,
        head_dim=8,
        expert_ffn_hidden_size=16,
        n_routed_experts=4,
        zero_expert_num=2,
        moe_topk=2,
    )


def llama4_text():
    return _decoder(
        "llama4_text",
        num_hidden_layers=4,
        head_dim=8,
        intermediate_size=16,
        intermediate_size_mlp=48,
        num_local_experts=4,
        num_experts_per_tok=2,
        interleave_moe_layer_step=2,
        attention_chunk_size=12,
        floor_scale=8,
    )


def qwen3_next():
    return _decoder(
        "qwen3_next",
        num_hidden_layers=4,
        head_dim=16,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
        num_experts=4,
        num_experts_per_tok=2,
        mlp_only_layers=[0],
    )


def mamba():
    return _plain("mamba", hidden_size=32, state_size=8, num_hidden_layers=3, vocab_size=128)


def mamba2():
    return _plain(
        "mamba2",
        hidden_size=32,
        num_heads=4,
        head_dim=16,
        n_groups=2,
        state_size=8,
        chunk_size=8,
        num_hidden_layers=3,
        vocab_size=128,
    )


_MAMBA2 = {
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_n_groups": 2,
    "mamba_d_state": 8,
    "mamba_chunk_size": 8,
}


def jamba():
    return _decoder(
        "jamba",
        num_hidden_layers=4,
        attn_layer_period=4,
        attn_layer_offset=2,
        expert_layer_period=2,
        expert_layer_offset=1,
        num_experts=4,
        num_experts_per_tok=2,
        mamba_d_state=8,
    )


def bamba():
    return _decoder("bamba", attn_layer_indices=[1], **_MAMBA2)


def falcon_h1():
    return _decoder("falcon_h1", mamba_d_ssm=64, **_MAMBA2)


def granitemoehybrid():
    return _decoder(
        "granitemoehybrid",
        layer_types=["linear_attention", "full_attention", "linear_attention"],
        num_local_experts=4,
        num_experts_per_tok=2,
        shared_intermediate_size=24,
        residual_multiplier=0.5,
        **_MAMBA2,
    )


def zamba2():
    """Its hybrid layers share one transformer block, told apart by low-rank adapters alone."""
    return _decoder(
        "zamba2",
        num_hidden_layers=4,
        layers_block_type=["linear_attention", "hybrid"] * 2,
        num_key_value_heads=4,
        n_mamba_heads=4,
        mamba_ngroups=2,
        mamba_d_state=8,
        chunk_size=8,
        use_shared_attention_adapter=True,
        adapter_rank=4,
        use_mem_rope=True,
    )


def recurrent_gemma():
    return _decoder("recurrent_gemma", num_key_value_heads=1, attention_window_size=12)


def lfm2():
    return _decoder("lfm2", layer_types=["conv", "full_attention", "conv"], block_auto_adjust_ff_dim=False)


def t5():
    model, samples = _plain(
        "t5",
        transformers.AutoModelForSeq2SeqLM,
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=2,
        num_heads=4,
        vocab_size=128,
        decoder_start_token_id=0,
    )
    for n, made in enumerate(samples):
        made["decoder_input_ids"] = torch.tensor([tokens(6 + n, 10 + n)])
    return model, samples


def bert():
    return _plain("bert", transformers.AutoModelForMaskedLM, **TEXT)


def albert():
    return _plain("albert", transformers.AutoModelForMaskedLM, **TEXT, embedding_size=16)
