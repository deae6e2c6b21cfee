import importlib.util
from pathlib import Path

from timm_mvhybrid.evaluate import read_result

SCRIPT = Path(__file__).parents[1] / "examples" / "patch_and_slide_tasks.py"


def test_patch_and_slide_tasks(tmp_path, capsys):
    spec = importlib.util.spec_from_file_location("patch_and_slide_tasks", SCRIPT)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    example.main(
        ["--output", str(tmp_path / "out"), "--models", "test_vit12", "--patches", "8", "--slides", "16"]
    )
    printed = capsys.readouterr().out
    for task in ("classification", "retrieval", "slides", "survival"):
        assert f"{task}: " in printed
        assert read_result(tmp_path / "out" / task).task == task
        assert "<svg" in (tmp_path / "out" / task / "index.html").read_text()
    for task in ("classification", "slides"):
        assert read_result(tmp_path / "out" / task).summaries[0].mean > 0.8
