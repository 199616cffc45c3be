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
