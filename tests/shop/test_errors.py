import pytest

from hawker.shop.errors import LONGEST_VALUE, InputError, did_you_mean


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (InputError("no such file"), "no such file"),
        (InputError("no such file", where="a.csv"), "a.csv: no such file"),
        (InputError("bad value", where="a.csv row 3", got=2), "a.csv row 3: bad value; got 2"),
        (InputError("bad value", expected="0 or 1"), "bad value; expected 0 or 1"),
        (
            InputError("bad value", where="a.csv", got="2", expected="0 or 1", remedy="clean the logs"),
            "a.csv: bad value; got '2', expected 0 or 1; clean the logs",
        ),
        (InputError("bad value", got=0), "bad value; got 0"),
        (InputError("torn", got="a\n\tb", remedy="two\nlines"), r"torn; got 'a\n\tb'; two lines"),
    ],
)
def test_the_text_is_one_line_in_a_fixed_order(error: InputError, line: str):
    assert str(error) == line


def test_a_long_value_is_cut():
    text = str(InputError("not an object", got=list(range(10_000)), expected="a JSON object"))
    assert len(text) < LONGEST_VALUE + 60
    assert text.endswith("..., expected a JSON object")


@pytest.mark.parametrize(
    ("name", "known", "answer"),
    [
        ("epoch", ["epochs", "seed"], "did you mean 'epochs'?"),
        ("zebra", {"seed": 0, "epochs": 1}, "known: epochs, seed"),
        ("zebra", [], "known: none"),
        ("zebra", [f"{i:02}" for i in range(40)], f"known: {', '.join(f'{i:02}' for i in range(20))}, ..."),
    ],
)
def test_the_closest_name_is_proposed_or_the_names_are_listed(name: str, known: list[str], answer: str):
    assert did_you_mean(name, known) == answer
