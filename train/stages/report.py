"""The report of a run, as a table on the screen, Markdown and JSON."""

import importlib.metadata
import os
import platform
from collections.abc import Sequence
from typing import Any

import numpy as np

from repq_tf.keras_api import backend, keras
from repq_tf.text import quantity
from repq_tf.train.run import text_files
from repq_tf.train.run.plots import with_unit
from repq_tf.train.run.run_folder import ANALYSIS, REPORT, REPORT_DATA, RunFolder
from repq_tf.train.settings import Settings
from repq_tf.train.tasks.base import Columns, Task
from repq_tf.version import __version__

_ROWS = (
    ("float", "float, as trained", None),
    ("float_merged", "float, merged", "model_float.tflite"),
    ("finetuned", "float, fine-tuned", None),
    ("quantized", "quantized, Keras", None),
    ("file", "quantized, .tflite", "model.tflite"),
)
# What `report.md` lists of the record, under which title, and what its columns are.
_PARTS = (
    ("data", "Data", ("property", "value")),
    ("seconds", "Time", ("stage", "seconds")),
    ("files", "Files", ("file", "bytes")),
    ("settings", "Settings", ("setting", "value")),
    ("versions", "Versions", ("software", "version")),
)


def make_report(settings: Settings, task: Task, run: RunFolder, results: dict[str, Any]) -> str:
    """Writes `report.json` and `report.md`.

    Args:
        settings: The run's `settings.Settings`.
        task: The `tasks.base.Task`.
        run: The `run_folder.RunFolder`.
        results: What the stages found: `metrics`, and where the file was measured
            `latency_ms`, `latency_shape` and `parity`; `references`, the metrics of what the
            network has to beat.

    Returns:
        The table, as text.
    """
    sizes = {
        name: os.path.getsize(run.file(name))
        for name in sorted(os.listdir(run.path))
        if name.endswith((".keras", ".tflite", ".h"))
    }
    seconds = run.seconds()
    record = {
        "headline": task.headline,
        **results,
        "files": sizes,
        "data": task.describe(),
        "settings": settings.as_dict(),
        "versions": versions(),
        "seconds": {**seconds, "total": round(sum(seconds.values()), 3)},
    }
    text_files.write_json(run.file(REPORT_DATA), record)
    table = _table(record, task.columns)
    text_files.write_text(run.file(REPORT), _markdown(settings, record, table, run))
    return "\n".join([_title(settings), "", table, *_remarks(record)])


def _title(settings: Settings) -> str:
    bits = f"{settings.weight_bits}-bit weights, {settings.activation_bits}-bit activations"
    model = settings.model if settings.scale is None else f"{settings.model} x{settings.scale}"
    return f"{model}, {settings.method}, {bits}, {settings.dataset}"


def _table(record: dict[str, Any], columns: Columns) -> str:
    """The comparison of the four forms of the network, and what they have to beat."""
    rows = [(key, key, None) for key in record.get("references", {})] + list(_ROWS)
    metrics = {**record.get("references", {}), **record["metrics"]}
    lines = [("model", *(title for title, _, _ in columns), "size", "latency")]
    for key, label, file in rows:
        if key in metrics:
            size = record["files"].get(file)
            latency = record.get("latency_ms", {}).get(file)
            lines.append(
                (
                    label,
                    *(show(metrics[key][name]) for _, name, show in columns),
                    _bytes(size) if size else "",
                    f"{latency:.3g} ms" if latency else "",
                )
            )
    return _aligned(lines)


def _bytes(size: float) -> str:
    return f"{size / 1e6:.2f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"


def _all_metrics(record: dict[str, Any]) -> str:
    """Every metric of every form of the network."""
    metrics = {**record.get("references", {}), **record["metrics"]}
    names = list(dict.fromkeys(name for found in metrics.values() for name in found))
    labels = {key: label for key, label, _ in _ROWS}
    lines = [("metric", *(labels.get(key, key) for key in metrics))]
    for name in names:
        values = (found.get(name) for found in metrics.values())
        lines.append((with_unit(name), *("" if v is None else f"{v:.4f}" for v in values)))
    return _aligned(lines)


def _aligned(lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table of lines of cells, the first of which is its head."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rule = tuple("-" * max(width, 1) for width in widths)
    return "".join(
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |\n"
        for line in (lines[0], rule, *lines[1:])
    )


def _remarks(record: dict[str, Any]) -> list[str]:
    lines = []
    if "merge_error" in record:
        lines.append(
            "Largest difference of outputs, float as trained and merged:"
            f" {record['merge_error']:.2g}"
        )
    if "summary" in record:
        totals = record["summary"]["totals"]
        lines.append(
            f"Deployed: {quantity(totals['deployed'])} parameters,"
            f" {quantity(totals['macs'])} MACs, {quantity(totals['bit_operations'])}"
            " bit-operations"
        )
    if "parity" in record:
        summary = record["parity"]["text"].splitlines()[-1]
        lines.append(f"Quantized Keras model against the .tflite file: {summary}")
    return [*lines, f"Time: {record['seconds']['total']:.0f} s"]


def _markdown(settings: Settings, record: dict[str, Any], table: str, run: RunFolder) -> str:
    sections = [f"# {_title(settings)}", table, *_remarks(record)]
    if "latency_shape" in record:
        height, width, _ = record["latency_shape"]
        sections.append(
            f"Latency: LiteRT interpreter, one thread, an image of {height}x{width} (height x"
            f" width), median of interleaved runs on {record['versions']['cpu']}."
        )
    sections.append(f"## Metrics\n\n{_all_metrics(record)}")
    if "summary" in record:
        sections.append(f"## Summary\n\n```\n{record['summary']['text']}\n```")
    sections.append(f"## Quantization\n\n```\n{record['quantization']}\n```")
    if "analysis" in record:
        sections.append(
            f"## Analysis\n\nWith plots: [{ANALYSIS}]({ANALYSIS})\n\n"
            f"```\n{record['analysis']['text']}\n```"
        )
    if "parity" in record:
        sections.append(f"## Parity, layer by layer\n\n```\n{record['parity']['text']}\n```")
    for part, title, head in _PARTS:
        rows = [(name, str(value)) for name, value in record[part].items()]
        sections.append(f"## {title}\n\n{_aligned([head, *rows])}")
    if os.path.isdir(run.plots):
        pictures = sorted(name for name in os.listdir(run.plots) if name.endswith(".png"))
        sections += [f"![{name[:-4]}](plots/{name})" for name in pictures]
    return "\n\n".join(section.strip() for section in sections) + "\n"


def versions() -> dict[str, str]:
    """Returns name -> version of what computes: libraries, system and processor."""
    found = {
        "repq_tf": __version__,
        "python": platform.python_version(),
        keras.__name__: keras.__version__,
        "backend": backend(),
        "numpy": np.__version__,
        "system": platform.platform(),
        "cpu": _cpu(),
    }
    for name in (backend(), "ai-edge-litert"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def _cpu() -> str:
    """Name of the processor, where the system tells."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.split(":")[1].strip() for line in file if "model name" in line]
        return f"{names[0]} ({len(names)} cores)"
    except (OSError, IndexError):
        return platform.processor() or platform.machine()
