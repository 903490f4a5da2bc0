"""gemlens: a microscope for Gemma 2 and 3.

    import gemlens

    model = gemlens.load_model("starter")
    sae = gemlens.load_sae("starter", "resid_post/layer_12_width_4k_l0_medium")
    gemlens.analyze(model, sae, "The capital of France is")

The public names are imported on first use, so that ``import gemlens`` loads neither torch nor transformers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gemlens.errors import (
        AccessError,
        GemlensError,
        InputError,
        MismatchError,
        MissingPackageError,
        NetworkError,
        NotFoundError,
        OutputError,
        WeightsError,
    )
    from gemlens.lm.gemma import Model
    from gemlens.lm.load import load_model
    from gemlens.records import Analysis, Fidelity
    from gemlens.records.attribution import Attribution
    from gemlens.records.feature import FeatureLabel, FeaturePage
    from gemlens.records.graph import Graph
    from gemlens.report.feature_html import feature_to_html
    from gemlens.report.feature_json import feature_to_json
    from gemlens.report.html import to_html
    from gemlens.report.json import to_json, to_jsonl
    from gemlens.scope.evidence import Evidence, load_evidence
    from gemlens.scope.features import Features
    from gemlens.scope.load import load_clt, load_crosscoder, load_sae, load_transcoder
    from gemlens.scope.multilayer import MultiLayer
    from gemlens.scope.sae import SAE
    from gemlens.scope.save import save_multilayer, save_sae
    from gemlens.sites import Site, parse_site
    from gemlens.study.ablation import ablation
    from gemlens.study.analyze import analyze, analyze_many
    from gemlens.study.attribute import attribute
    from gemlens.study.choices import choices
    from gemlens.study.circuit.trace import circuit
    from gemlens.study.directions import steer_direction
    from gemlens.study.feature import feature_page, feature_pages
    from gemlens.study.fidelity import fidelities, fidelity
    from gemlens.study.glance import evidence_of
    from gemlens.study.intervene import ablate, patch, steer
    from gemlens.study.lens import lens
    from gemlens.study.places import active
    from gemlens.study.quantization import quantization_cost
    from gemlens.study.set_fidelity import set_fidelity
    from gemlens.study.splice import splice
    from gemlens.study.steering import steer_sweep
    from gemlens.train.config import FitConfig
    from gemlens.train.fit import fit

__version__ = "0.1.0"

__all__ = [
    "AccessError",
    "Analysis",
    "Attribution",
    "Evidence",
    "FeatureLabel",
    "FeaturePage",
    "Features",
    "Fidelity",
    "FitConfig",
    "GemlensError",
    "Graph",
    "InputError",
    "MismatchError",
    "MissingPackageError",
    "Model",
    "MultiLayer",
    "NetworkError",
    "NotFoundError",
    "OutputError",
    "SAE",
    "Site",
    "WeightsError",
    "__version__",
    "ablate",
    "ablation",
    "active",
    "analyze",
    "analyze_many",
    "attribute",
    "choices",
    "circuit",
    "evidence_of",
    "feature_page",
    "feature_pages",
    "feature_to_html",
    "feature_to_json",
    "fidelities",
    "fidelity",
    "fit",
    "lens",
    "load_clt",
    "load_crosscoder",
    "load_evidence",
    "load_model",
    "load_sae",
    "load_transcoder",
    "parse_site",
    "patch",
    "quantization_cost",
    "save_multilayer",
    "save_sae",
    "set_fidelity",
    "splice",
    "steer",
    "steer_direction",
    "steer_sweep",
    "to_html",
    "to_json",
    "to_jsonl",
]

_HOME = {
    "errors": [
        "AccessError",
        "GemlensError",
        "InputError",
        "MismatchError",
        "MissingPackageError",
        "NetworkError",
        "NotFoundError",
        "OutputError",
        "WeightsError",
    ],
    "lm.gemma": ["Model"],
    "lm.load": ["load_model"],
    "records": ["Analysis", "Fidelity"],
    "records.attribution": ["Attribution"],
    "records.feature": ["FeatureLabel", "FeaturePage"],
    "records.graph": ["Graph"],
    "report.feature_html": ["feature_to_html"],
    "report.feature_json": ["feature_to_json"],
    "report.html": ["to_html"],
    "report.json": ["to_json", "to_jsonl"],
    "scope.evidence": ["Evidence", "load_evidence"],
    "scope.features": ["Features"],
    "scope.load": ["load_clt", "load_crosscoder", "load_sae", "load_transcoder"],
    "scope.multilayer": ["MultiLayer"],
    "scope.sae": ["SAE"],
    "scope.save": ["save_multilayer", "save_sae"],
    "sites": ["Site", "parse_site"],
    "study.ablation": ["ablation"],
    "study.analyze": ["analyze", "analyze_many"],
    "study.attribute": ["attribute"],
    "study.choices": ["choices"],
    "study.circuit.trace": ["circuit"],
    "study.directions": ["steer_direction"],
    "study.feature": ["feature_page", "feature_pages"],
    "study.fidelity": ["fidelities", "fidelity"],
    "study.glance": ["evidence_of"],
    "study.intervene": ["ablate", "patch", "steer"],
    "study.lens": ["lens"],
    "study.places": ["active"],
    "study.quantization": ["quantization_cost"],
    "study.set_fidelity": ["set_fidelity"],
    "study.splice": ["splice"],
    "study.steering": ["steer_sweep"],
    "train.config": ["FitConfig"],
    "train.fit": ["fit"],
}
_MODULE = {name: module for module, names in _HOME.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULE:
        from gemlens.errors import nearest

        raise AttributeError(f"module 'gemlens' has no attribute {name!r}; {nearest(name, __all__)}")
    value = getattr(importlib.import_module(f"gemlens.{_MODULE[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
