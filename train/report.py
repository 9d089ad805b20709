"""The report of a run, as a table on the screen, Markdown and JSON."""

import importlib.metadata
import os
import platform

import numpy as np

from repq_tf.keras_api import backend, keras
from repq_tf.train import checkpoint

_ROWS = (
    ("float", "float, as trained", None),
    ("float_merged", "float, merged", "model_float.tflite"),
    ("quantized", "quantized, Keras", None),
    ("file", "quantized, .tflite", "model.tflite"),
)


def make_report(settings, task, run, results):
    """Writes `report.json` and `report.md`.

    Args:
        settings: The run's `settings.Settings`.
        task: The `tasks.base.Task`.
        run: The `run_folder.RunFolder`.
        results: What the stages found: `metrics`, and where the file was measured
            `latency_ms` and `parity`; `notes` lists what was skipped and why.

    Returns:
        The table, as text.
    """
    sizes = {
        name: os.path.getsize(run.file(name))
        for name in sorted(os.listdir(run.path))
        if name.endswith((".keras", ".tflite"))
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
    checkpoint.write_json(run.file("report.json"), record)
    table = _table(record)
    checkpoint.write_text(run.file("report.md"), _markdown(settings, record, table, run))
    return "\n".join([_title(settings), "", table, *_remarks(record)])


def _title(settings):
    bits = f"{settings.weight_bits}-bit weights, {settings.activation_bits}-bit activations"
    return f"{settings.model}, {settings.method}, {bits}, {settings.dataset}"


def _table(record):
    """The comparison of the four forms of the network."""
    metric = record["headline"]
    lines = [("model", metric, "size", "latency")]
    for key, label, file in _ROWS:
        if key in record["metrics"]:
            value = record["metrics"][key][metric]
            size = record["files"].get(file)
            latency = record.get("latency_ms", {}).get(file)
            lines.append(
                (
                    label,
                    f"{100 * value:.2f} %" if metric.endswith("accuracy") else f"{value:.4f}",
                    f"{size / 1e6:.2f} MB" if size else "",
                    f"{latency:.3g} ms" if latency else "",
                )
            )
    lines.insert(1, tuple("-" * max(len(line[k]) for line in lines) for k in range(4)))
    widths = [len(cell) for cell in lines[1]]
    return "".join(
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |\n"
        for line in lines
    )


def _remarks(record):
    lines = []
    if "merge_error" in record:
        lines.append(
            "Largest difference of outputs, float as trained and merged:"
            f" {record['merge_error']:.2g}"
        )
    if "parity" in record:
        summary = record["parity"]["text"].splitlines()[-1]
        lines.append(f"Quantized Keras model against the .tflite file: {summary}")
    return lines + record.get("notes", []) + [f"Time: {record['seconds']['total']:.0f} s"]


def _markdown(settings, record, table, run):
    sections = [f"# {_title(settings)}", table, *_remarks(record)]
    if "latency_ms" in record:
        sections.append(
            "Latency: LiteRT interpreter, one thread, batch 1, median of interleaved runs on"
            f" {record['versions']['cpu']}."
        )
    sections.append(f"## Quantization\n\n```\n{record['quantization']}\n```")
    if "parity" in record:
        sections.append(f"## Parity, layer by layer\n\n```\n{record['parity']['text']}\n```")
    for title in ("data", "seconds", "files", "settings", "versions"):
        rows = "".join(f"| {name} | {value} |\n" for name, value in record[title].items())
        sections.append(f"## {title.capitalize()}\n\n| | |\n|-|-|\n{rows}")
    if os.path.isdir(run.plots):
        pictures = sorted(name for name in os.listdir(run.plots) if name.endswith(".png"))
        sections += [f"![{name[:-4]}](plots/{name})" for name in pictures]
    return "\n\n".join(section.strip() for section in sections) + "\n"


def versions():
    """Returns name -> version of what computes: libraries, system and processor."""
    found = {
        "python": platform.python_version(),
        keras.__name__: keras.__version__,
        "backend": backend(),
        "numpy": np.__version__,
        "system": platform.platform(),
        "cpu": _cpu(),
    }
    for name in ("repq_tf", backend(), "ai-edge-litert"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def _cpu():
    """Name of the processor, where the system tells."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.split(":")[1].strip() for line in file if "model name" in line]
        return f"{names[0]} ({len(names)} cores)"
    except (OSError, IndexError):
        return platform.processor() or platform.machine()
