import json

import pytest

from art.train.config import load_config, to_dict
from art.train.logging.run_log import RunLog
from art.train.run_dir import RunFolder, differing_keys, read_history


def test_a_line_cut_short_at_the_end_is_left_out_but_one_in_the_middle_is_an_error(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert read_history(path) == []
    path.write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert read_history(path) == [{"step": 1}, {"step": 2}]
    path.write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl: line 2 is no JSON"):
        read_history(path)


def test_what_lies_beyond_the_state_that_is_continued_is_dropped(tmp_path):
    run = RunFolder(tmp_path)
    with RunLog(run, epochs=0, step=0) as log:
        for step in range(1, 5):
            log.write("step", (step + 1) // 2, step, {"loss/total": float(step)})
            if step % 2 == 0:
                log.write("epoch", step // 2, step, {"top1/test": 0.5})
    # After the second epoch's steps, before its evaluation: its line is written again.
    with RunLog(run, epochs=1, step=4) as log:
        log.write("epoch", 2, 4, {"top1/test": 0.75})
    assert [(line["event"], line["step"]) for line in run.history()] == [
        ("step", 1),
        ("step", 2),
        ("epoch", 2),
        ("step", 3),
        ("step", 4),
        ("epoch", 4),
    ]
    assert run.history()[-1]["top1/test"] == 0.75


def test_only_what_changes_the_result_counts_as_a_difference():
    one = load_config(None, ["model.backbone_options.width=4"])
    other = load_config(None, ["model.backbone_options.width=8", "device=cpu", "output=elsewhere", "data.workers=7"])
    assert differing_keys(to_dict(one), to_dict(other)) == {"model.backbone_options.width": (4, 8)}
    assert differing_keys(json.loads(json.dumps(to_dict(one))), to_dict(one)) == {}


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(ValueError, match="is a file, expected a folder"):
        RunFolder(tmp_path / "run").check(load_config(None), resume=False, overwrite=False)
