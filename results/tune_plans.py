"""What `tune.py` tries, by problem and method."""

from typing import Any

# The first batch, the learning rates to start from, settings crossed with them, the batches and
# settings then tried one after the other, and those tried once more with the whole budget. MNIST
# starts where CURVES ended. `whole`: rates alone, each with the whole budget.
_MUON = {"adjust": "match_rms_adamw", "hidden_only": True, "adam_lr": 0.003, "momentum": 0.9}
_SOAP = {"max_side": 512, "every": 10}
PLANS: dict[tuple[str, str], dict[str, Any]] = {
    ("curves", "muon"): {
        "size": 100,
        "lr": [0.01, 0.02, 0.05],
        "crossed": [_MUON],
        "sizes": [50, 200],
        "settings": [{"momentum": 0.95}, {"adam_lr": 0.005}, {"decay": 0.6}, {"ns_steps": 3}],
    },
    ("curves", "nag"): {
        "size": 100,
        "lr": [0.001, 0.003, 0.01],
        "crossed": [{"mu_max": 0.99}],
        "sizes": [50, 250, 25],
        "settings": [{"mu_max": 0.9}, {"mu_max": 0.95}, {"final": 0.1}],
        "late": [{"decay": 0.3}],
    },
    ("curves", "adam"): {
        "size": 100,
        "lr": [0.001, 0.003, 0.01],
        "crossed": [{}],
        "sizes": [50, 200, 25],
        "settings": [{"decay": 0.3}, {"beta2": 0.99}, {"beta1": 0.95}],
        "late": [{"decay": 0.3}],
    },
    ("curves", "soap"): {
        "size": 100,
        "lr": [0.001, 0.003, 0.01],
        "crossed": [_SOAP],
        "sizes": [50, 200],
        "settings": [{"beta1": 0.9}, {"beta2": 0.99}, {"max_side": 300}, {"every": 5}],
    },
    ("mnist", "muon"): {
        "size": 100,
        "lr": [0.01, 0.02, 0.05],
        "crossed": [_MUON],
        "sizes": [50, 200, 400],
        "settings": [{"momentum": 0.95}],
    },
    ("mnist", "nag"): {
        "size": 50,
        "lr": [0.005, 0.01, 0.02],
        "crossed": [{"mu_max": 0.95}],
        "sizes": [100, 25],
        "settings": [{"mu_max": 0.99}],
        "late": [{"decay": 0.3}],
    },
    ("mnist", "adam"): {
        "size": 50,
        "lr": [0.0005, 0.001, 0.002],
        "crossed": [{"beta2": 0.99}],
        "sizes": [100, 25],
        "settings": [{"beta2": 0.999}],
        "late": [{"decay": 0.3}],
    },
    ("mnist", "soap"): {
        "size": 100,
        "lr": [0.003, 0.007],
        "crossed": [{"max_side": 300, "every": 5, "beta1": 0.9}],
        "sizes": [200],
        "settings": [{"max_side": 512, "every": 10}],
        "seconds": 30.0,
    },
    ("faces", "nag"): {
        "size": 50,
        "lr": [0.0003, 0.001, 0.003],
        "crossed": [{"mu_max": 0.95}],
        "sizes": [100, 25, 10],
        "settings": [{"mu_max": 0.99}],
        "late": [{"mu_max": 0.99}],
    },
    ("faces", "muon"): {
        "size": 100,
        "lr": [0.01],
        "crossed": [_MUON],
        "seconds": 40.0,
        "whole": True,
    },
    ("faces", "adam"): {
        "size": 50,
        "lr": [0.0005],
        "crossed": [{"beta2": 0.99}],
        "late": [{"decay": 0.3}, {"decay": 1.0}],
        "seconds": 40.0,
        "whole": True,
    },
    ("faces", "soap"): {
        "size": 100,
        "lr": [0.002],
        "crossed": [{"max_side": 300, "every": 5, "beta1": 0.9}],
        "seconds": 40.0,
        "whole": True,
    },
}
