"""Facts of an export and its run's records → the model card, which says "not recorded" where nothing is."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from huggingface_hub import ModelCardData

from ..models.hybrid_vision_transformer import HybridVisionTransformer
from ..version import __version__
from .run_records import RunRecords, flatten
from .training_checkpoint import TrainingCheckpoint

# stands in an exported card for the repository, which only publishing knows
REPOSITORY_PLACEHOLDER = "ORGANISATION/NAME"
_NOT_RECORDED = "not recorded"
_MAX_ROWS = 80


def write_card(
    name: str,
    network: HybridVisionTransformer,
    records: RunRecords,
    *,
    source: TrainingCheckpoint,
    model_args: Mapping[str, Any],
    dtype: str,
    bfloat16: str,
    sha256: str,
    companions: tuple[str, ...] = (),
) -> str:
    """Writes the model card.

    Args:
        name: Architecture and tag.
        network: The model.
        records: The run's records.
        source: The checkpoint that was exported.
        model_args: Options other than the architecture's own.
        dtype: Type of the stored matrices.
        bfloat16: What bfloat16 changed in the features, and what it may; "" for float32.
        sha256: sha256 of the weights file.
        companions: Further files of the export.
    """
    licence = str(records.config.get("license") or network.pretrained_cfg.get("license", "apache-2.0"))
    weights = f"{source.branch or 'a checkpoint without teacher and student'} ({source.path.name})"
    stored = {"weights of": weights, "stored as": dtype + bfloat16}
    sections = [
        f"# {name}\n\nA backbone for computational pathology: {network.layout()}. For research use; not a medical device.",
        _loading(network, sha256),
        *_finetuning(records, companions),
        _architecture(network, model_args, stored),
        "## Data and how it was obtained\n\n" + _data(records),
        "## Recipe\n\n" + _recipe(records, source.step),
        "## Metrics\n\n" + _metrics(records),
        _limitations(network),
        f"## Licence\n\nThe weights: {licence}. The code, timm_mvhybrid: Apache-2.0.",
        _CITATION,
    ]
    return f"---\n{_metadata(records, licence)}\n---\n\n" + "\n\n".join(sections) + "\n"


def _metadata(records: RunRecords, licence: str) -> str:
    """Writes the metadata block."""
    datasets = records.data.get("hub_datasets")
    data = ModelCardData(
        license=licence,
        library_name="timm",
        tags=[
            "timm",
            "timm_mvhybrid",
            "image-feature-extraction",
            "pathology",
            "histology",
            "state-space-model",
        ],
        datasets=[str(dataset) for dataset in datasets] if isinstance(datasets, list) and datasets else None,
        pipeline_tag="image-feature-extraction",
    )
    return data.to_yaml().strip()


def _loading(network: HybridVisionTransformer, sha256: str) -> str:
    """Writes how to load."""
    return f"""## Use

```sh
pip install timm-mvhybrid
```

```python
import timm
import timm_mvhybrid  # registers the models, and verifies what is loaded

model = timm.create_model("hf-hub:{REPOSITORY_PLACEHOLDER}", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_data_config({{}}, model=model))
features = model(images)  # (batch, {network.num_features})
```

A downloaded folder loads by `local-dir:FOLDER`, a tag by `hf-hub:{REPOSITORY_PLACEHOLDER}@TAG`. Loading verifies the
sha256 of `model.safetensors`, `{sha256}`, and the features of a fixed image."""


def _finetuning(records: RunRecords, companions: tuple[str, ...]) -> list[str]:
    """Writes what an encoder was taught after its pretraining, and how to load what lies beside it."""
    resolved = records.config.get("resolved")
    if not isinstance(resolved, Mapping) or "method" not in resolved:
        return []
    panels = resolved.get("panels")
    names = ("platform", "num_genes", "num_measured_genes", "unit", "num_training_patches")
    rows = [
        (name, *(str(panel.get(key, _NOT_RECORDED)) for key in names))
        for name, panel in (panels.items() if isinstance(panels, Mapping) else ())
    ]
    head = ("panel", "platform", "genes predicted", "genes measured", "unit", "training patches")
    parts = [f"## Molecular fine-tuning: {str(resolved['method']).upper()}", markdown_table(head, rows)]
    held_out = resolved.get("held_out")
    if isinstance(held_out, Mapping):
        studies = ", ".join(map(str, held_out.get("studies", ())))
        named = f" ({studies})" if studies else ""
        parts.append(
            f"Held out for validation, by {held_out.get('by')}: {held_out.get('num_groups')}{named}."
        )
    pathways = resolved.get("pathways")
    if isinstance(pathways, Mapping):
        parts.append(f"Gene sets: {pathways.get('num_sets')}, scored by {pathways.get('method')}.")
    if "st_model.safetensors" in companions:
        parts.append(
            "The ST token reads class and patch tokens, and nothing reads it: the backbone alone has exactly the class and "
            "patch features that were trained. With token and heads:\n\n```python\nfrom timm_mvhybrid import finetune\n\n"
            f'model = finetune.load("hf-hub:{REPOSITORY_PLACEHOLDER}")\n'
            "features = model.features(images)  # class, st, patch\n"
            'expression = model.predict(images)  # panel → "spot", "cells"\n```'
        )
    if "base.json" in companions:
        parts.append(
            "The adapters are merged into `model.safetensors`; they lie beside it too (`adapter_model.safetensors`), for the "
            f'base that `base.json` names: `timm_mvhybrid.finetune.load_adapters(base, "hf-hub:{REPOSITORY_PLACEHOLDER}")` '
            "checks it."
        )
    return ["\n\n".join(parts)]


def _architecture(
    network: HybridVisionTransformer, model_args: Mapping[str, Any], stored: Mapping[str, str]
) -> str:
    config = network.pretrained_cfg
    height, width = network.patch_embed.img_size
    rows = {
        "blocks": network.layout(),
        "parameters": f"{sum(parameter.numel() for parameter in network.parameters()):,}",
        "features": f"{network.num_features} (pooling: {network.global_pool or 'none'})",
        "image": f"{height} × {width} px, patches of {network.patch_embed.patch_size[0]} px",
        "normalisation": f"mean {tuple(config['mean'])}, standard deviation {tuple(config['std'])}",
        "options": json.dumps(dict(model_args)) if model_args else "the architecture's own",
        **stored,
    }
    paper = config.get("paper_ids", _NOT_RECORDED)
    origin = f"Source: {paper} ({config.get('origin_url', '')}); implementation: timm_mvhybrid {__version__}."
    return f"## Architecture\n\n{markdown_table(('', ''), rows.items())}\n\n{origin}"


def _data(records: RunRecords) -> str:
    """Lists the run's settings about data; name, source and licence of the data are named even where absent."""
    found = flatten(records.data)
    for key in ("name", "obtained", "license"):
        found.setdefault(key, _NOT_RECORDED)
    return markdown_table(("", ""), found.items())


def _recipe(records: RunRecords, exported_step: int | None) -> str:
    rows = list(flatten(records.recipe).items())
    text = (
        markdown_table(("setting", "value"), rows[:_MAX_ROWS]) if rows else f"Configuration: {_NOT_RECORDED}."
    )
    if len(rows) > _MAX_ROWS:
        text += f"\n\nand {len(rows) - _MAX_ROWS} more settings in the run's config.json."
    step = _NOT_RECORDED if exported_step is None else str(exported_step)
    environment = flatten(records.environment)
    machine = (
        markdown_table(("", ""), environment.items()) if environment else f"Environment: {_NOT_RECORDED}."
    )
    return f"{text}\n\nStep of the checkpoint: {step}.\n\n{machine}"


def _metrics(records: RunRecords) -> str:
    """Writes downstream results with their protocols, and the losses of training, which are none."""
    if records.evaluations:
        rows = [
            (
                entry.metric,
                f"{entry.value:.4g}",
                "–" if entry.interval is None else "{:.4g} to {:.4g} ({:.0%})".format(*entry.interval),
                entry.dataset,
                entry.data or _NOT_RECORDED,
                entry.protocol or _NOT_RECORDED,
            )
            for entry in records.evaluations
        ]
        text = markdown_table(("metric", "value", "interval", "data", "digest of the data", "protocol"), rows)
    else:
        text = f"Downstream results: {_NOT_RECORDED}."
    if not records.last_metrics:
        return f"{text}\n\nTraining metrics: {_NOT_RECORDED}."
    training = markdown_table(("metric", "value"), flatten(records.last_metrics).items())
    return (
        f"{text}\n\nLast line of the training log at this checkpoint. Protocol: values of the training objective on the "
        f"training data; they say nothing about a downstream task.\n\n{training}"
    )


def _limitations(network: HybridVisionTransformer) -> str:
    return f"""## Limitations

- For research use. Not a medical device: not validated for diagnosis, prognosis or any clinical decision.
- Made for H&E-stained tissue at the resolution it was trained at; stains, scanners, organs and resolutions that the
  training data lack may give features of no meaning. Check on your own data.
- The features carry traces of site and scanner; evaluate with whole sites or studies held out.
- Numbers above hold under their protocol only; where a protocol or a record is missing, this card says so.
- Verified on loading: the bytes of the weights, and the features of one fixed image at {network.patch_embed.img_size[0]} px."""


_CITATION = """## Citation

The architecture: MV_Hybrid, arXiv 2508.00383.

```bibtex
@misc{mvhybrid,
  title = {{MV_Hybrid}},
  eprint = {2508.00383},
  archivePrefix = {arXiv}
}
```"""


def markdown_table(head: tuple[str, ...], rows: Iterable[Iterable[str]]) -> str:
    """Lays rows out as a Markdown table."""

    def line(cells: Iterable[str]) -> str:
        return "| " + " | ".join(" ".join(str(cell).split()).replace("|", "\\|") for cell in cells) + " |"

    return "\n".join([line(head), line("---" for _ in head), *(line(row) for row in rows)])
