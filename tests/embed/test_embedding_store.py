import os

import numpy as np
import pytest

from timm_mvhybrid.embed.embedding_store import EmbeddingWriter
from timm_mvhybrid.evaluate import EvaluationError, check_output


def test_free_output_passes(tmp_path):
    check_output(tmp_path / "out.h5", overwrite=False)
    (tmp_path / "out.h5").write_text("old")
    check_output(tmp_path / "out.h5", overwrite=True)


def test_outputs_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(EvaluationError, match=r"missing/out\.h5: the output folder .*missing does not exist"):
        check_output(tmp_path / "missing" / "out.h5", overwrite=False)
    with pytest.raises(EvaluationError, match="does not exist"):
        check_output(tmp_path / "file" / "out.h5", overwrite=False)
    with pytest.raises(EvaluationError, match="is a folder; name a file"):
        check_output(tmp_path, overwrite=True)
    with pytest.raises(EvaluationError, match="exists already; replace it with --overwrite"):
        check_output(tmp_path / "file", overwrite=False)
    with pytest.raises(EvaluationError, match="is the input itself"):
        check_output(tmp_path / "file", overwrite=True, source=tmp_path / "file")
    # tests may run as root, who may write everywhere
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(EvaluationError, match=r"the output folder .* is not writable"):
        check_output(tmp_path / "out.h5", overwrite=False)


def test_leaving_without_finish_removes_everything(tmp_path):
    with EmbeddingWriter(tmp_path / "out.h5") as writer:
        writer.append(np.zeros((2, 3), np.float32), [0, 1])
        assert writer.embedding_dim == 3
        assert len(os.listdir(tmp_path)) == 1
    assert os.listdir(tmp_path) == []
