"""The three presets: ``tiny`` runs on a laptop, the others are the paper's Table 9 rows."""

from __future__ import annotations

from typing import Any

PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {
        "name": "tiny",
        "data": {
            "source": {"phantom": {}, "package_samples": True},
            "deidentify": {"key_ref": "synthetic"},
            "image_size_px": 168,
            "image_layout": "square",  # what the embedded base was trained on
            "max_frames": 2,
            "max_length_tokens": 512,
            "vqa_per_study": 1,
            "shard_mb": 2,
        },
        "model": {
            "base": "embedded",
            "moe_intermediate_size": 128,
            "shared_expert_intermediate_size": 256,
            # In few steps the experts must move the output: at the default share they learn half as fast.
            "initial_alpha": 0.5,
        },
        "train": {
            "align": {
                "learning_rate": 4e-3,
                "epochs": 5,
                "global_batch_size": 8,
                "checkpoint_every_steps": 100,
            },
            "finetune": {
                "learning_rate": 3e-3,
                "epochs": 4,
                "global_batch_size": 8,
                "checkpoint_every_steps": 100,
            },
            "num_workers": 2,
            "precision": "fp32",
            "gradient_checkpointing": False,
            "pack_length_tokens": 384,
        },
        "evaluate": {"max_new_tokens": 160, "batch_size": 16},
        "serve": {"engine": "transformers", "max_new_tokens": 256, "max_replicas": 1},
        "cluster": {"cpus_per_worker": 1, "gpus_per_worker": 0},
    },
    "echovlm_3b": {
        "name": "echovlm-3b",
        "model": {
            "base": "Qwen/Qwen2-VL-2B-Instruct",
            "moe_intermediate_size": 768,
            "shared_expert_intermediate_size": 1536,
        },
    },
    "echovlm_11b": {
        "name": "echovlm-11b",
        "model": {
            "base": "Qwen/Qwen2-VL-7B-Instruct",
            "moe_intermediate_size": 1408,
            "shared_expert_intermediate_size": 5632,
        },
    },
}
