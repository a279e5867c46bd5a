import subprocess
import sys
from typing import Any

import pytest

from hawker.agents.word_config import WordsConfig, check_words
from hawker.shop.config import from_dict, to_dict
from hawker.shop.errors import InputError


def test_defaults_can_be_trained_with():
    assert from_dict(WordsConfig, to_dict(WordsConfig()), "here") == WordsConfig()
    check_words(WordsConfig())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"slates": 1}, "words.slates: bad config; got 1, expected a number from 2"),
        ({"rank": 0}, "words.rank: bad config; got 0"),
        ({"beta": -1.0}, "beta: bad config"),
        ({"batch": 10, "rows": 4}, "got 10, expected a multiple of rows, 4"),
    ],
)
def test_refused(values: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        check_words(WordsConfig(**values))


def test_the_command_line_shows_it_without_torch():
    code = "import sys, hawker.agents.word_config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
