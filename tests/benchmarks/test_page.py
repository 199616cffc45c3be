from __future__ import annotations

import json

from benchmarks.page import PAGE, make_page


def test_the_page_of_speed_is_what_the_result_files_say():
    assert PAGE.read_text() == make_page(), "python -m benchmarks.page writes it anew"


def test_a_row_has_its_figure_interval_and_goal_and_one_that_was_left_out_its_reason(tmp_path):
    figure = {"value": 2.0, "low": 0.98765, "high": 3.5}
    rows = [
        {"row": "a", "against": "b", "measure": "times as fast", "goal": "at least 3", "pairs": 5, "wall": {"figure": figure}},
        {"row": "c", "against": "d", "goal": "at least 3", "left_out": "d not installed"},
    ]
    rows[0]["goal_met"] = None
    head = {"benchmark": "x", "id": "P3", "what": "w", "against": "z", "goal": "g", "command": "python -m benchmarks x"}
    machine = {"boot": "0", "cpu": "fast", "gpus": [], "cores": 2}
    content = {**head, "summary": {"machine": "m", "rows": rows}, "machines": {"m": machine}}
    (tmp_path / "x.json").write_text(json.dumps(content))
    (tmp_path / "unfinished.json").write_text(json.dumps({**content, "summary": None}))
    page = make_page(tmp_path)
    assert "| a | b | 2 times as fast | 0.988 to 3.5 | at least 3 | open | 5 |" in page
    assert "| c | d | d not installed | | at least 3 | | |" in page
    assert "On cpu fast, cores 2." in page
    assert page.count("## P3") == 1


def test_sections_come_in_the_order_of_their_numbers_and_those_without_one_last(tmp_path):
    for name in ("P10", "P3c", "decoding", "P3"):
        head = {"benchmark": name, "id": name, "what": "w", "against": "z", "goal": "g", "command": "c"}
        content = {**head, "summary": {"machine": "m", "rows": []}, "machines": {"m": {"cores": 2}}}
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    page = make_page(tmp_path)
    assert [line[3:].split(":")[0] for line in page.splitlines() if line[:3] == "## "] == ["P3", "P3c", "P10", "decoding"]
