"""What differs between architectures in name only: linear layers, and settings.

Plain text, so that it can be asked without loading torch.
"""

from __future__ import annotations

ROLES = {
    **dict.fromkeys(("q_proj", "query", "wq", "q_lin"), "q"),
    **dict.fromkeys(("k_proj", "key", "wk", "k_lin"), "k"),
    **dict.fromkeys(("v_proj", "value", "wv", "v_lin"), "v"),
    **dict.fromkeys(("o_proj", "out_proj", "wo", "out_lin"), "o"),
    **dict.fromkeys(("qkv_proj", "query_key_value", "Wqkv", "qkv", "c_attn"), "qkv"),
    **dict.fromkeys(("gate_proj", "gate", "w1"), "gate"),
    **dict.fromkeys(("up_proj", "up", "w3", "fc1", "fc_in", "c_fc", "dense_h_to_4h"), "up"),
    **dict.fromkeys(("down_proj", "down", "w2", "fc2", "fc_out", "dense_4h_to_h"), "down"),
    "gate_up_proj": "gate_up",
    "router": "router",
}
"""Role by the last part of a module's name, for models that nobody described; any other name is
'other'."""

EXPERTS_PER_TOKEN = (
    "num_experts_per_tok", "num_experts_per_token", "moe_top_k", "top_k_experts",
)  # fmt: skip
"""Settings that say how many experts compute a token. Not 'top_k', which is one of sampling."""


def role_of(name: str, *, rows: int, experts: int = 0) -> str:
    """Role of the linear layer `name` (qualified, or below its decoder layer).

    Args:
        name: e.g. 'mlp.down_proj'.
        rows: its output features: a router has one an expert.
        experts: of a layer; 0 where there are none.

    """
    *outer, leaf = name.split(".")
    if rows == 1 or (experts and rows == experts):
        return "router"
    if leaf in {"dense", "c_proj"}:
        return "o" if any("att" in part for part in outer) else "down"
    return ROLES.get(leaf, "other")
