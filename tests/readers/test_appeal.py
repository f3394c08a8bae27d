"""An appeal counts the clients that went further, names nobody, and tells no threshold; the queue's bound over the API and the terminal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.seeded_api import CLIENTS, MODEL, OURS, SECRETS, World, client_hash, decided, keep

from consumers import cli, config
from consumers.readers.appeal import Appeal
from consumers.readers.queries import Reader
from consumers.records.decision import packed_decision
from consumers.store import DECISION_CELLS, Outcome, decision_cell
from consumers.wiring import adapters
from detector.baseline import Baseline
from detector.baseline_file import pack_baseline
from detector.query import ClientKey


def strong(client: str, p: float, statistic: float, **more: Any) -> Any:
    evidence = [
        {
            "signal": "novelty_roots",
            "statistic": statistic,
            "p_value": p,
            "text": "40 queries are odd; the excess of 30 compares with 12",
        }
    ]
    return decided(client, p, more.pop("state", "clear"), evidence=evidence, **more)


def appeal_of(served: World, client: str) -> Appeal:
    found = Reader(served.store, SECRETS, OURS, baselines={}).appeal(MODEL, client)
    assert found is not None
    return found


def test_it_counts_clients_that_were_never_flagged_and_went_further(served: World) -> None:
    keep(
        served.store,
        OURS,
        [
            strong("tester", 1e-6, 99.0),  # went further, and was never flagged
            strong("quiet", 0.4, 1.0),
            strong("was-flagged", 1e-7, 200.0, history=[[1, "throttle", "suspicious", 0.999]]),
            strong("accused", 1e-3, 30.0, state="throttle"),
        ],
    )
    pack = appeal_of(served, "accused")
    assert (pack.never_flagged_further.in_store, pack.never_flagged_further.of_store) == (1, 4), (
        "tester, quiet, clerk, robot"
    )
    odd = next(one for one in pack.counted if one.signal == "novelty_roots")
    assert (odd.text, odd.never_flagged_further) == ("40 queries are odd", 1)
    assert pack.counted[0].signal == "queries"
    assert appeal_of(served, "quiet").never_flagged_further.of_store == 3, "a client is not compared with itself"


def test_no_threshold_and_no_other_client_is_told(served: World) -> None:
    told = json.dumps(served.client("analyst").get(f"/v1/models/{MODEL}/clients/thief/appeal").json())
    assert {*json.loads(told)} == {"counted", "never_flagged_further", "can_show"}
    for other in CLIENTS[1:]:
        assert other not in told
        assert client_hash(other) not in told
    for word in ("budget", "0.01", "threshold", "compares with", "p_value", "suspicion"):
        assert word not in told
    assert served.client("viewer").get(f"/v1/models/{MODEL}/clients/thief/appeal").status_code == 403
    assert served.client("analyst").get(f"/v1/models/{MODEL}/clients/nobody/appeal").status_code == 404


def test_the_bound_needs_a_calibration_and_a_line_within_the_list(served: World, baseline: Baseline) -> None:
    page = f"/v1/models/{MODEL}/bound"
    assert served.client("viewer").get(page, params={"n": 2}).status_code == 404, "without a baseline"
    served.reader.baselines = {MODEL: baseline}
    found = served.client("viewer").get(page, params={"n": 2}).json()
    assert found == {"n": 2, "honest_at_most": found["honest_at_most"], "confidence": 0.95}
    assert 0 <= found["honest_at_most"] <= 2
    assert served.client("viewer").get(page, params={"n": 5}).status_code == 422
    assert served.client("gateway").get(page, params={"n": 2}).status_code == 403
    assert served.client(None).get(page, params={"n": 2}).status_code == 401


def test_the_terminal_prints_both(
    tmp_path: Path, baseline: Baseline, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "model.baseline"
    file.write_bytes(pack_baseline(baseline))
    monkeypatch.setenv("QUERYWARDEN_STATE_DIR", str(tmp_path))
    monkeypatch.setenv("QUERYWARDEN_BASELINES", str(file))
    with adapters.open_store(config.load(None)) as store:
        secrets = adapters.secrets_of(config.load(None), store)
        for name, p in (("thief", 1e-6), ("clerk", 0.3), ("robot", 0.8)):
            key = ClientKey("default", baseline.model_id, secrets.client_hash("default", name))
            outcome = Outcome(decision_cell(key, DECISION_CELLS))
            outcome.rows[key] = packed_decision(strong(name, p, 9.0), secrets, "default")
            claim = store.claim_decisions(outcome.cell, "seed", "0" * 32, 60_000)
            store.record("0" * 32, claim.revision, outcome, "seed", 60_000)

    def called(*words: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as ended:
            cli.main(words)
        return int(ended.value.code or 0), capsys.readouterr().out

    status, out = called("clients", "--bound", "3", "--json")
    assert (status, {*json.loads(out)}) == (0, {"n", "honest_at_most", "confidence"})
    assert "at most" in called("clients", "--bound", "1")[1]
    assert called("clients", "--bound", "9")[0] == 2
    status, out = called("explain", "thief", "--appeal", "--json")
    pack = json.loads(out)
    assert (status, {*pack}) == (0, {"counted", "never_flagged_further", "can_show"})
    assert pack["never_flagged_further"]["in_calibration"] == 0
    assert "what the owner of the key can show" in called("explain", "thief", "--appeal")[1]
