"""Writes the tables of the docs from the code: what is between ``<!-- generated: name -->`` and ``<!-- end -->``.

    python docs/generate.py           rewrite what is out of date
    python docs/generate.py --check   say what is out of date, exit status 1 if anything is

Rules: one function a table, listed in `TABLES`; a table states nothing that the code does not; running twice changes
nothing. `tests/test_docs.py` runs the check, so a new setting, metric, signal or reason code is documented or the tests fail.
"""

from __future__ import annotations

import functools
import importlib
import json
import re
import sys
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import typer.main

from consumers import cli, config
from consumers.http import access
from consumers.log import formats
from consumers.telemetry.alarms import ALARMS
from consumers.telemetry.metrics import METRICS
from detector import fold_arrays, policy
from detector.calibration import LARGEST_AVERAGED
from detector.features import BITS, BLOCKS, MEASURES
from detector.fitting.discriminators import CORRUPTIONS
from detector.signal_table import Form
from detector.signals import SIGNALS
from detector.simulation.attacks import ATTACKS
from detector.simulation.honest import BENIGN
from detector.simulation.population import VARIANTS

ROOT = Path(__file__).resolve().parent.parent
REGION = re.compile(r"(<!-- generated: ([a-z-]+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; a bar in a cell is escaped."""
    lines = [titles, ["---"] * len(titles), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def code(text: str) -> str:
    return f"`{text}`" if text else ""


def settings() -> str:
    rows = [(code(toml), code(variable), code(default), text) for toml, variable, default, text in config.rows()]
    return table(("TOML", "environment", "default", "meaning"), rows)


def metrics() -> str:
    rows = [(code(name), kind, ", ".join(labels), text) for name, (kind, labels, text) in METRICS.items()]
    return table(("metric", "kind", "labels", "meaning"), rows)


def alarms() -> str:
    return table(("alarm", "raised while"), [(code(name), text) for name, text in ALARMS.items()])


def routes() -> str:
    rows = [(f"{code(f'{r.method} {r.path}')}", ", ".join(r.roles) or "everybody", r.text) for r in access.TABLE]
    return table(("route", "roles", "what it does"), rows)


FATE_TEXTS = {
    "refused": "dead letter, counts for nobody",
    "lettered": "dead letter, and counts for its client",
    "marked": "counts for its client, marked",
}


def dead_letter_reasons() -> str:
    rows = [(code(k), FATE_TEXTS[formats.FATES[k]], text) for k, text in formats.REASONS.items()]
    return table(("reason", "what becomes of the record", "because"), rows)


def decision_reasons() -> str:
    return table(("reason", "meaning"), [(code(k), v) for k, v in policy.REASONS.items()])


MEASURE_TEXTS = {
    "novelty": "distance to the nearest reference row, in whitened principal coordinates",
    "residual": "length of what lies outside the reference's principal axes",
    "margin": "p₁ − p₂ of the answer, low for its label",
    "lattice": "share of columns whose value is no multiple of the column's grain",
    "misfit": "surprise of what does not fit the schema, in bits; the bit `misfit` is set from one bit on",
}
"""Measures that no corruption explains."""

SEQUENCE_TEXTS = {
    "distant": "far from every remembered query of its client, and more than a few features differ",
    "novel": "distant, and sharing no improbable values with any remembered query",
    "stepped": "a remembered query moved by one magnitude (description length)",
    "flipped": "near a remembered query, and gets another label",
    "collinear": "on the line of the two queries before it, several features moving",
}


def described(names: Iterable[str], texts: Mapping[str, str]) -> list[tuple[str, str]]:
    """(name, text). Raises ValueError for a name without words."""
    missing = [name for name in names if name not in texts]
    if missing:
        raise ValueError(f"docs/generate.py: say in words what {', '.join(missing)} is")
    return [(name, texts[name]) for name in names]


def measures() -> str:
    texts = dict(MEASURE_TEXTS)
    for name, corrupt in CORRUPTIONS.items():
        (first, *_) = (corrupt.__doc__ or "").splitlines()
        texts[name] = f"discriminator of rows corrupted so: {first[0].lower()}{first[1:].rstrip('.')}"
    rows = [(code(m), f"{code(m + '_rare')}, {code(m + '_beyond')}", text) for m, text in described(MEASURES, texts)]
    return table(("measure", "bits", "what it is"), rows)


def path_bits() -> str:
    of_order = [name for name in BITS if name not in MEASURES and name.rpartition("_")[0] not in MEASURES]
    return table(
        ("bit", "set when the query is"), [(code(name), text) for name, text in described(of_order, SEQUENCE_TEXTS)]
    )


def signals() -> str:
    forms = {Form.EXCESS_TIMES_SHARE: "excess × share"}
    rows = [
        (
            code(s.name), " ".join(code(b) for b in s.bits), f"{s.allowance:.1%} of {s.base}", forms.get(s.form, "excess"), s.block,
            s.family, s.text.format(count="*n*", base="*m*"),
        )
        for s in SIGNALS
    ]  # fmt: skip
    return table(("signal", "bits", "granted share", "form", "block", "resembles", "sentence"), rows)


def blocks() -> str:
    return table(("block", "what is added up"), [(code(k), v) for k, v in BLOCKS.items()])


def sizes() -> str:
    rows = [
        ("odd set", f"{fold_arrays.ODD_KEPT} smallest hashes, with their bits"),
        ("sequence set", f"{fold_arrays.SEQUENCE_KEPT} smallest hashes, with their bits"),
        ("sample of distinct queries", f"{fold_arrays.SAMPLE_KEPT} smallest hashes, with the bit `novel`"),
        ("memory of a shard", f"{fold_arrays.MEMORY_BYTES:,} bytes of codes and hashes, 48 to 256 rows"),
        (
            "first passages",
            f"{fold_arrays.LADDER_STEPS} levels from {fold_arrays.LADDER_FIRST:g}, each {fold_arrays.LADDER_GROWTH - 1:.0%} above the last",
        ),
        (
            "scale of a signal",
            f"mean of the {LARGEST_AVERAGED} largest lifetime maxima of honest clients, never below the signal's floor",
        ),
    ]
    return table(("part", "size"), rows)


def states() -> str:
    budget = {
        "clear": "otherwise",
        "watch": f"p ≤ {policy.WATCH_FACTOR:g} a",
        "throttle": "p ≤ a",
        "block": f"p ≤ {policy.BLOCK_FACTOR:g} a, at least {policy.MIN_ODD_TO_BLOCK} odd distinct queries, calibration supports it",
    }
    lasts = {name: f"{policy.TTL_S[name] // 3600} h" if policy.TTL_S[name] else "–" for name in policy.STATES}
    rows = [(code(s), budget[s], lasts[s], "yes" if s in policy.FLAGGED else "no") for s in policy.STATES]
    return table(("state", "asked for at", "lasts at least", "flagged"), rows)


def thefts() -> str:
    seen = {True: "yes", False: "**no**"}
    return table(
        ("family", "by content", "what it sends"), [(code(k), seen[a.visible], a.text) for k, a in ATTACKS.items()]
    )


def variants() -> str:
    def how(name: str) -> str:
        v = VARIANTS[name]
        parts = [f"{v.share:.0%} of the traffic is theft"] if v.share < 1 else []
        parts += (
            [f"{v.accounts} accounts, {'one after the other' if v.handover else 'in turn'}"] if v.accounts > 1 else []
        )
        parts += ["over the whole horizon"] if v.slow else []
        return "; ".join(parts) or "one account, nothing hidden"

    return table(("variant", "how it is hidden"), [(code(name), how(name)) for name in VARIANTS])


def honest() -> str:
    return table(("kind", "share", "what it does"), [(code(k), f"{b.share:.0%}", b.text) for k, b in BENIGN.items()])


@functools.cache
def contracts() -> Mapping[str, Mapping[str, Any]]:
    """The import contracts by id."""
    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return {contract["id"]: contract for contract in project["tool"]["importlinter"]["contracts"]}


def layers(contract: Mapping[str, Any]) -> list[str]:
    """The layers of an import contract, top first; what is in brackets may be missing."""
    (container,) = contract["containers"]
    folder = ROOT.joinpath(*container.split("."))
    lines = []
    for layer in contract["layers"]:
        names = re.findall(r"[a-z_]+", layer)
        here = [n for n in names if (folder / f"{n}.py").exists() or (folder / n).is_dir()]
        if here:
            lines.append("  ".join(here))
    return lines


def floors(contract: str) -> str:
    return "```text\n" + "\n".join(layers(contracts()[contract])) + "\n```\n"


def room_floors() -> str:
    """Every room of both packages: its purpose, in the first line of its docstring, and its floors, top first."""
    floors_of = {c["containers"][0]: layers(c) for c in contracts().values() if "containers" in c}
    rows = []
    for package in ("detector", "consumers"):
        for init in sorted((ROOT / package).rglob("*/__init__.py")):
            name = ".".join(init.parent.relative_to(ROOT).parts)
            floors_here = code(" / ".join(floors_of[name])) if name in floors_of else ""
            purpose = _first(importlib.import_module(name))
            rows.append((code(name.replace(".", "/")), purpose[:1].upper() + purpose[1:], floors_here))
    return table(("room", "what it is for", "its floors"), rows)


def _first(module: ModuleType) -> str:
    """What a module says of itself, without its own name in front."""
    (line, *_) = (module.__doc__ or "").splitlines()
    return line.partition(": ")[2]


def commands() -> str:
    """Every command with its arguments, options and help."""
    root = typer.main.get_command(cli.app)
    out: list[str] = []

    def tell(path: str, command: Any) -> None:
        for name, sub in getattr(command, "commands", {}).items():
            full = f"{path} {name}"
            if getattr(sub, "commands", None):
                tell(full, sub)
                continue
            out.append(f"## {full}\n\n{' '.join(str(sub.help).split())}\n\n")
            rows = [(code(_spelling(p)), "yes" if p.required else "", _meaning(p)) for p in sub.params]
            out.append(table(("argument", "required", "meaning"), rows) + "\n" if rows else "")

    tell("querywarden", root)
    return "".join(out)


def _spelling(parameter: Any) -> str:
    if not parameter.opts[0].startswith("-"):
        return str(parameter.name).upper()
    return str(parameter.opts[0]) + ("" if parameter.is_flag else f" {str(parameter.opts[0]).lstrip('-').upper()}")


def _meaning(parameter: Any) -> str:
    default = parameter.default
    text = parameter.help or ""
    return text if default in (None, False, (), "") else f"{text} Default: `{default}`."


def figures() -> dict[str, Callable[[], str]]:
    """The tables of the detection benchmarks, from their committed figures; benchmarks/ is a folder of scripts, not installed."""
    sys.path.insert(0, str(ROOT))
    try:
        tables = importlib.import_module("benchmarks.tables")
        texts = importlib.import_module("benchmarks.text_tables")
        split_texts = importlib.import_module("benchmarks.text_campaign_tables")
        exposure = importlib.import_module("benchmarks.exposure_tables")
        campaigns = importlib.import_module("benchmarks.campaign_tables")
        carry_over = importlib.import_module("benchmarks.carry_tables")
        weak_pairs = importlib.import_module("benchmarks.weak_pair_tables")
    finally:
        sys.path.remove(str(ROOT))
    results, split = tables.read(), campaigns.read()
    made = {name: functools.partial(make, results) for name, make in tables.TABLES.items()}
    made |= {name: functools.partial(make, texts.read()) for name, make in texts.TABLES.items()}
    made |= {name: functools.partial(make, texts.read_embeddings()) for name, make in texts.EMBEDDING_TABLES.items()}
    made |= {name: functools.partial(make, split_texts.read()) for name, make in split_texts.TABLES.items()}
    made |= {name: functools.partial(make, texts.read_whole_clients()) for name, make in texts.MEANING_TABLES.items()}
    made |= {name: functools.partial(make, exposure.read()) for name, make in exposure.TABLES.items()}
    made |= {name: functools.partial(make, carry_over.read()) for name, make in carry_over.TABLES.items()}
    made |= {name: functools.partial(make, weak_pairs.read()) for name, make in weak_pairs.TABLES.items()}
    return made | {name: functools.partial(make, split) for name, make in campaigns.TABLES.items()}


def gateway_figures() -> str:
    """Figures of benchmarks/results/gateway.json, and the conditions they were measured under."""
    found = result("gateway")
    bar, where = found["bar"], found["conditions"]
    rows = [
        (
            row["name"], f"{row['answered_per_s']:,.0f}", f"{row['server']['p50_ms']:.3f}", f"{row['server']['p99_ms']:.3f}",
            f"{row['end_to_end']['p50_ms']:.2f}", f"{row['end_to_end']['p99_ms']:.2f}", f"{row['server_core_used']:.0%}",
            "passes" if row["passes"] else "fails",
        )
        for row in found["scenarios"]
    ]  # fmt: skip
    titles = (
        "restricted clients", "answers per second", "server p50, ms", "server p99, ms", "end to end p50, ms", "end to end p99, ms",
        "core used", f"≥ {bar['per_s']:,}/s, p99 ≤ {bar['server_p99_ms']:g} ms",
    )  # fmt: skip
    load = ", ".join(f"{x:g}" for x in where["load_average_before"])
    return table(titles, rows) + (
        f"\n{where['cpu']}, {where['cores']} cores, the server on one of them, Redis and who asks on another; "
        f"{where['connections']} connections; offered {found['scenarios'][0]['offered_per_s']:,} a second; Python {where['python']}; "
        f"scheduling {where['scheduling']}; load average before {load}.\n"
    )


def degradation_figures() -> str:
    """Figures of benchmarks/results/degradation.json: what each step costs copies and honest clients, mean over the victims."""
    found = result("degradation")
    victims, small, large = list(found["victims"].values()), *map(str, found["plan"]["queries"])
    rows = []
    for i, steps in enumerate(found["plan"]["grades"]):
        same = [victim["steps"][i] for victim in victims]

        def mean(values: Iterable[float]) -> float:
            kept = list(values)
            return sum(kept) / len(kept)

        copies = [
            f"{mean(row['fidelity'][copy][n] for row in same):.1%}"
            for copy in ("network", "trees")
            for n in (small, large)
        ]
        changed, moved = (mean(row[name] for row in same) for name in ("labels_changed", "probability_moved"))
        kept = f"{moved:.3f}" if same[0]["has_probabilities"] else "no probability"
        rows.append((code(steps), f"{changed:.1%}", kept, *copies, f"{found['linear']['equations'][steps]:.1%}"))
    titles = (
        "step", "honest: labels changed", "honest: highest probability moved by", f"network, {small} queries", f"network, {large}",
        f"trees, {small}", f"trees, {large}", f"linear model, solved from {found['linear']['weights']}",
    )  # fmt: skip
    reasons = found["linear"]["reasons"]
    return table(titles, rows) + (
        f"\nReason codes (`noreasoning`), a linear model, {reasons['answers']} answers: a copy agrees with it in "
        f"{reasons['with']:.1%} of held rows with them, in {reasons['without']:.1%} without.\n"
    )


def watermark_figures() -> str:
    """Figures of benchmarks/results/degradation.json: p-values of marked copies and of innocent models."""
    found = result("degradation")
    rows = []
    for name, victim in found["victims"].items():
        for row in victim["marks"]:
            canaries, lost = row["canaries"], max(row["labels_changed"])
            for copy, p_values in row["copies"].items():
                sure = sum(p < 1e-6 for p in p_values)
                rows.append(
                    (
                        f"{code(name)} ({victim['text']})", row["marks"], f"{min(canaries)} – {max(canaries)}", f"{lost:.2%}", copy,
                        f"{sure} of {len(p_values)}", _power(max(p_values)), f"{min(row['innocent']):.3f} ({len(row['innocent'])})",
                    )
                )  # fmt: skip
    titles = (
        "victim", "marks", "canaries", "labels changed, at most", "copy", "recognised with p < 10⁻⁶", "largest p",
        "smallest p of innocent models",
    )  # fmt: skip
    return table(titles, rows)


def _power(p_value: float) -> str:
    return "below 10⁻³⁰⁰" if p_value < 1e-300 else f"{p_value:.1g}"


def path_figures() -> str:
    """Ours beside others, of benchmarks/results/whole_path.json."""
    found = result("whole_path")
    costs = {row["name"]: row["median_us"] for row in found["beside"] if "median_us" in row}
    stock, ours = costs.get("kafka-python + orjson"), costs["QueryWarden, everything"]
    rows = []
    for row in found["beside"]:
        if "failed" in row:
            rows.append((row["name"], "–", "–", f"not measured: {row['failed']}", "–"))
            continue
        us = row["median_us"]
        rows.append(
            (
                row["name"],
                f"{us:,.1f}",
                f"{row['least_us']:,.1f}",
                f"{us / ours:.2f}",
                f"{us / stock:.2f}" if stock else "–",
            )
        )
    where = found["conditions"]
    versions = ", ".join(f"{name} {version}" for name, version in (where["versions"] | where["peers"]).items())
    return table(("loop", "µs an event, median", "least", "times ours", "times kafka-python + orjson"), rows) + (
        f"\n{conditions(where)} Runs of each, in turns: {where['runs']}. {where['queries']:,} events of {where['event_bytes']:,} bytes in "
        f"{where['partitions']} partitions. {versions}.\n"
    )


def growth_figures() -> str:
    """How the cost of a query grows, of benchmarks/results/whole_path.json."""
    titles = {
        "columns": "columns",
        "classes": "classes",
        "clients": "clients",
        "age": "queries a client asked before, at most",
    }
    rows = [
        (titles[what], f"{row['size']:,}", f"{row['median_us']:,.1f}", f"{row['queries']:,}")
        for what, sizes in result("whole_path")["growth"].items()
        for row in sizes
    ]
    return table(("what grows", "size", "µs a query, median", "queries of a run"), rows)


def scale_figures() -> str:
    """Processes, shards and what a client costs, of benchmarks/results/scale.json."""
    found = result("scale")
    named = [
        (f"{row['processes']} ingest process{'es' if row['processes'] > 1 else ''}", row) for row in found["processes"]
    ]
    named += [
        (f"{found['cluster']['shards']} Redis shards", found["cluster"]),
        ("few clients", found["cost"]["few"]),
        ("many clients", found["cost"]["every"]),
    ]
    rows = [
        (
            name, f"{row['ours_us']:,.1f}", f"{row['store_us']:,.1f} ({' + '.join(f'{us:,.1f}' for us in row['store_us_each'])})",
            f"{row['broker_us']:,.1f}", f"{row['written_a_query']:.2f}", f"{row['a_second']:,}",
        )
        for name, row in named
    ]  # fmt: skip
    titles = (
        "run",
        "ours, µs a query",
        "store, µs (each server)",
        "broker, µs",
        "profiles written per query",
        "queries/s on this machine",
    )
    detected = found["cost"]["detect"]
    where = found["conditions"]
    return table(titles, rows) + (
        f"\nA client of the last log takes {found['cost']['store_bytes_a_client']:,} bytes of the store's memory. Detect assesses one "
        f"in {detected['us']:,.0f} µs ({detected['clients']:,} clients, everything included). {conditions(where)} "
        f"{where['queries']:,} events of {where['event_bytes']:,} bytes.\n"
    )


def capacity_plans() -> str:
    """The plans of benchmarks/results/capacity.json."""
    plans = result("capacity")
    lines: dict[str, Callable[[Mapping[str, Any]], str]] = {
        "ingest processes": lambda p: f"{p['ingest']:,}",
        "… busy, of a core each": lambda p: f"{p['one']['busy']:.0%}",
        "… queries a poll": lambda p: f"{p['one']['poll']:,.0f}",
        "… profiles written per query": lambda p: f"{p['one']['written']:.2f}",
        "after a minute of twice the rate: behind at most, five minutes later": lambda p: (
            f"{p['burst']['most_lag_s']:.0f} s, {p['burst']['end_lag_s']:.1f} s"
        ),
        "partitions": lambda p: f"{p['partitions']:,}",
        "Kafka in, and out": lambda p: f"{p['kafka_mb_s']:,.0f} MB/s",
        "broker cores a replica": lambda p: f"{p['broker_cores']:,.1f}",
        "log for a day on three replicas": lambda p: f"{p['log_gib']:,.0f} GiB",
        "Redis shards": lambda p: f"{p['shards']:,}",
        "… memory, and as much for replicas": lambda p: f"{p['store_gib']:,.1f} GiB",
        "… network": lambda p: f"{p['store_mb_s']:,.0f} MB/s",
        "detect processes": lambda p: f"{p['detect']:,}",
        "decision cells": lambda p: f"{p['decision_cells']:,}",
        "cost a month, in the currency of the prices": lambda p: f"{p['month']:,.0f}",
    }
    heads = [f"{p['queries_a_second']:,.0f} queries/s, {p['clients']:,.0f} clients" for p in plans]
    return table(("", *heads), [(name, *(text(p) for p in plans)) for name, text in lines.items()])


def result(name: str) -> Any:
    """What a benchmark wrote."""
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8"))


def conditions(where: Mapping[str, Any]) -> str:
    load = ", ".join(f"{x:g}" for x in where["load_average_before"])
    return f"{where['cpu']}, {where['cores']} cores; Python {where['python']}; load average before {load}."


def throughput_figures() -> str:
    """Figures of benchmarks/results/throughput.json, and the conditions they were measured under."""
    found = result("throughput")
    where = found["conditions"]
    rows = [
        (
            row["name"], row["item"], f"{row['ours_us']:,.1f}", f"{row['a_second']:,}", row["twin"], f"{row['twin_us']:,.1f}",
            f"{row['ratio']:.2f}{' (it does less)' if row['loop'] else ''}",
        )
        for row in found["rows"]
    ]  # fmt: skip
    titles = (
        "step",
        "a",
        "ours, µs",
        "ours, a second and core",
        "beside it",
        "that, µs",
        "how many times ours it costs",
    )
    versions = ", ".join(f"{name} {version}" for name, version in where["versions"].items())
    load = ", ".join(f"{x:g}" for x in where["load_average_before"])
    return table(titles, rows) + (
        f"\n{where['cpu']}, {where['cores']} cores; Python {where['python']}; {versions}; {where['queries']:,} queries of "
        f"{where['event_bytes']:,} bytes; load average before {load}: other work ran, which slows caches even where CPU time is counted.\n"
    )


def detecting_figures() -> str:
    """Figures of benchmarks/results/detecting.json: what a touched client costs."""
    found = result("detecting")
    rows = [
        (
            row["life"], row["name"], f"{row['ours_us']:,.0f}", f"{row['a_second']:,}", f"{row['alone_us']:,.0f}", f"{row['ratio']:.1f}",
        )
        for row in found["rows"]
    ]  # fmt: skip
    titles = ("clients", "what", "µs a client", "a second and core", "one client a step, µs", "times")
    return table(titles, rows) + f"\n{found['rows'][0]['clients']:,} clients. {conditions(found['conditions'])}\n"


def budget_figures() -> str:
    """Figures of benchmarks/results/budget.json: false alarms at two budgets with thousands of honest clients."""
    found = result("budget")
    rows = []
    for name, victim in found["victims"].items():
        for budget, at in victim["budgets"].items():
            low, high = at["interval"]
            worst, (hits, trials) = max(at["by_kind"].items(), key=lambda k: k[1][0] / max(k[1][1], 1))
            rows.append(
                (
                    code(name), f"{float(budget):.1%}", f"{victim['calibration_clients']:,}",
                    f"{at['false_alarms']} of {victim['tested_clients']:,}", f"{at['rate']:.2%} ({low:.2%} – {high:.2%})",
                    f"{worst} {hits} of {trials}", "{} of {}".format(*at["caught_of_visible"]),
                    f"{at['control_false_alarms']} / {at['control_caught']}",
                )
            )  # fmt: skip
    titles = (
        "model", "budget", "calibrated on", "false alarms", "share (95 %)", "worst kind", "thefts caught", "control: false / caught",
    )  # fmt: skip
    return table(titles, rows)


def small_fleet_figures() -> str:
    """Figures of benchmarks/results/small_fleets.json: a dozen real clients, by what they are calibrated with."""
    found = result("small_fleets")
    rows = []
    for way, at in found["overall"].items():
        low, high = at["interval"]
        rows.append(
            (
                way, f"{at['fleets']}", f"{at['false_alarms']:.2%} ({low:.2%} – {high:.2%})", f"{at['least']:.1%} – {at['most']:.1%}",
                f"{at['caught']:.0%}", f"{at['caught_least']:.0%}",
            )
        )  # fmt: skip
    titles = (
        "calibrated", "fleets", "honest clients throttled (95 %)", "from fleet to fleet", "thefts caught", "in the worst fleet",
    )  # fmt: skip
    return table(titles, rows)


JOINS = {
    "none": "no join: native events",
    "partition": '`through = "partition"`: in memory, with the offset',
    "store": '`through = "store"`',
    "control": 'control: `through = "store"`, each record sealed five times',
}


def joining_figures() -> str:
    """Figures of benchmarks/results/joining.json: what a query costs whose halves are joined in memory, through the store, or not."""
    found = result("joining")
    rows = []
    for mode, words in JOINS.items():
        took = (f"{found[store]['us_a_query'][mode]:.1f}" for store in ("sqlite", "redis"))
        rows.append((words, *took, f"{found['redis']['server_us_a_query'][mode]:.1f}"))
    for name, words in {
        "store - partition": "difference: store − partition (95 %)",
        "control - store": "difference: control − store (95 %)",
    }.items():
        spans = [
            "{:+.1f} ({:+.1f} – {:+.1f})".format(*found[store]["differences"][name]) for store in ("sqlite", "redis")
        ]
        rows.append((words, *spans, "–"))
    where = found["conditions"]
    titles = ("µs of processor time a query", "ingest, with SQLite", "ingest, with Redis", "the Redis server")
    return table(titles, rows) + (
        f"\n{where['queries']:,} queries of {where['event_bytes']:,} bytes, {2 * where['blocks']} turns of each, alternating within "
        f"one run on {where['cores']} cores (load {where['load_before'][0]:.1f} before it); 95 % by bootstrap over "
        f"{where['blocks']} blocks.\n"
    )


def mutation_figures() -> str:
    """Figures of benchmarks/results/mutation.json: of small faults put into a module, how many a test noticed."""
    sys.path.insert(0, str(ROOT))
    try:
        mutation = importlib.import_module("benchmarks.mutation")
    finally:
        sys.path.remove(str(ROOT))
    rows = []
    for name, row in result("mutation").items():
        chosen, between = "the fastest, no sample", ""
        if "survived" in row:
            low, high = mutation.interval(row)
            chosen = "all" if row["seed"] is None else f"at random, seed {row['seed']}"
            between = "" if row["seed"] is None else f"{low:.0%} – {high:.0%}"
        score = f"{row['noticed'] / row['tried']:.0%}"
        rows.append(
            (code(name), f"{row['mutants']:,}", f"{row['tried']:,}", chosen, f"{row['noticed']:,}", score, between)
        )
    return table(("module", "faults", "tried", "chosen", "noticed", "score", "95 %"), rows)


def mutation_survivors() -> str:
    """What survived in the samples, and what is said of it."""
    rows = [
        (code(name.removeprefix("consumers.").replace("ǁ", ".")), why or "a gap in the tests")
        for row in result("mutation").values()
        for name, why in row.get("survived", {}).items()
    ]
    return table(("fault", "why no test notices it"), rows)


TABLES: dict[str, Callable[[], str]] = {
    "budget-figures": budget_figures,
    "mutation-figures": mutation_figures,
    "mutation-survivors": mutation_survivors,
    "small-fleet-figures": small_fleet_figures,
    "alarms": alarms,
    "blocks": blocks,
    "commands": commands,
    "core-floors": lambda: floors("core-floors"),
    "joining-figures": joining_figures,
    "gateway-figures": gateway_figures,
    "dead-letter-reasons": dead_letter_reasons,
    "detecting-figures": detecting_figures,
    "decision-reasons": decision_reasons,
    "honest": honest,
    "measures": measures,
    "metrics": metrics,
    "room-floors": room_floors,
    "routes": routes,
    "path-bits": path_bits,
    "settings": settings,
    "shell-floors": lambda: floors("shell-floors"),
    "signals": signals,
    "sizes": sizes,
    "states": states,
    "thefts": thefts,
    "throughput-figures": throughput_figures,
    "path-figures": path_figures,
    "growth-figures": growth_figures,
    "scale-figures": scale_figures,
    "capacity-plans": capacity_plans,
    "degradation-figures": degradation_figures,
    "watermark-figures": watermark_figures,
    "variants": variants,
    **figures(),
}


def render(text: str) -> str:
    """A page with its generated regions written anew. Raises KeyError for a region that no table makes."""
    return REGION.sub(lambda m: f"{m[1]}\n{TABLES[m[2]]()}\n{m[4]}", text)


def main(argv: Sequence[str]) -> int:
    stale = 0
    for page in PAGES:
        old = page.read_text(encoding="utf-8")
        new = render(old)
        if new != old:
            stale += 1
            print(f"{page.relative_to(ROOT)}: {'out of date' if '--check' in argv else 'written'}")
            if "--check" not in argv:
                page.write_text(new, encoding="utf-8")
    return 1 if stale and "--check" in argv else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
