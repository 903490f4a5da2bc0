"""What the verbs of gemlens return: frozen records, free of torch, that every view in ``report`` reads.

One file a topic. Field names are those of the JSON files (``docs/formats.md``).
"""

from gemlens.records.analysis import (
    SCHEMA_VERSION,
    ActiveFeatures,
    Analysis,
    DictionaryInfo,
    FeatureActivation,
    Provenance,
    TokenRecord,
)
from gemlens.records.fidelity import (
    DENSITY_DECADES,
    DENSITY_STEPS,
    Density,
    Fidelity,
    LossWith,
    QualityCard,
    QuantizationCost,
    SetFidelity,
    Sweep,
    SweepPoint,
    series_name,
    width_name,
)
from gemlens.records.training import CURVE_COLUMNS, Training

__all__ = [
    "CURVE_COLUMNS",
    "DENSITY_DECADES",
    "DENSITY_STEPS",
    "SCHEMA_VERSION",
    "ActiveFeatures",
    "Analysis",
    "Density",
    "DictionaryInfo",
    "FeatureActivation",
    "Fidelity",
    "LossWith",
    "Provenance",
    "QualityCard",
    "QuantizationCost",
    "SetFidelity",
    "Sweep",
    "SweepPoint",
    "TokenRecord",
    "Training",
    "series_name",
    "width_name",
]
