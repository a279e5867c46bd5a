import json
from pathlib import Path

from hawker.app.json_report import write_report


def test_a_report_is_written_where_there_is_a_path(tmp_path: Path):
    write_report(None, {"figures": {}})
    assert not list(tmp_path.iterdir())
    write_report(tmp_path / "report.json", {"figures": {}, "seeds": [1]})
    assert json.loads((tmp_path / "report.json").read_text()) == {"figures": {}, "seeds": [1]}
