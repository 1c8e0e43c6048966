"""The table of docs/families.md compared with tiny models of the families."""

from __future__ import annotations

from pathlib import Path

import pytest

from model.families import build, tried
from raymill.engine.build_models import flops_per_token
from raymill.errors import ConfigError
from raymill.model.loading import silence_libraries
from raymill.model.parent import load_parent

PAGE = Path(__file__).resolve().parents[2] / "docs" / "families.md"
ROWS = {
    line.split("`")[1]: line for line in PAGE.read_text().splitlines() if line.startswith("| `")
}
QUICK = ("llama", "gpt2", "bloom", "mamba", "bamba", "lfm2", "gpt_oss", "gemma3_text")


@pytest.mark.parametrize("family", QUICK)
def test_a_family_does_what_the_table_says(family: str, tmp_path: Path) -> None:
    silence_libraries()
    assert tried(family, tmp_path).row(family) == ROWS[family]


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted(set(ROWS) - set(QUICK)))
def test_every_other_family_does_what_the_table_says(family: str, tmp_path: Path) -> None:
    silence_libraries()
    assert tried(family, tmp_path).row(family) == ROWS[family]


def test_a_kernel_that_a_family_lacks_is_refused_with_the_one_to_take(tmp_path: Path) -> None:
    build("bloom").save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"attention=sdpa: .* set attention=eager"):
        load_parent(tmp_path, 64, (), "sdpa", 1)
    model = load_parent(tmp_path, 64, (), "eager", 1)
    assert flops_per_token(model, 16, 1.0) > 6 * 2 * 12 * 32**2
