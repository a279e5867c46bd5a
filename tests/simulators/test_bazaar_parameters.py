import dataclasses
import re
from pathlib import Path

import pytest
import yaml

from hawker.shop.artefacts import sha256
from hawker.shop.errors import InputError
from hawker.simulators import bazaar_parameters
from hawker.simulators.bazaar_parameters import load_bazaar, shipped_variants

DATA = Path(bazaar_parameters.__file__).parent / "data"
FROZEN = {
    "bazaar": "ee2fc62080ed6d5b028ab585bd7c605a88665ecc819569c163850cf0bba2fa1f",
    "cascade": "d3ca93f117fde6b84d9a101559a1b6641983d749e498f5ad7700e67184a7e7df",
    "inert": "731338096dbaef9a194c9c910a35fa312e1ce3a963cfded73fc60ab47f4256dd",
    "lexicon": "fcd0177163be0b42bee750f545828df4187bb22a2a51f6af308a64cd9c72429a",
    "reading": "24711050c375f64bc6f365985534aab2022d589221d78bbcc11b5775b8e46c7e",
    "search": "8613838cfb5c6915fd8875c1c53770bc91afb7fdcd8001b2d3d5cfdcb6304ad8",
    "weibull": "5bb67cc22835842344f32e2509eb2eb36cc863896042c9e82e57eb70da6c1c66",
}

DIGEST = "068eebeacf8f83f5d0f6520e19969f3151f309d58a2686956504b3f4aec617de"


def write(folder: Path, text: str) -> Path:
    path = folder / "variant.yaml"
    path.write_text(text)
    return path


def test_the_data_files_are_those_that_were_frozen():
    """Whoever changes a world changes what every published figure was measured on: then measure anew."""
    assert {path.stem: sha256(path) for path in DATA.glob("*.yaml")} == FROZEN


def test_parameter_digests():
    digests = {name: load_bazaar(name).digest for name in ("bazaar", *shipped_variants())}
    assert digests["bazaar"] == load_bazaar().digest == DIGEST
    assert len(set(digests.values())) == 5


def test_a_variant_changes_what_it_says_and_nothing_else():
    base, inert = load_bazaar(), load_bazaar("inert")
    assert shipped_variants() == ("cascade", "inert", "search", "weibull")
    assert (inert.leave.satisfaction, inert.leave.click, inert.come_back.satisfaction) == (0.0, 0.0, 0.0)
    same = dataclasses.replace(
        inert,
        name="bazaar",
        leave=dataclasses.replace(inert.leave, satisfaction=base.leave.satisfaction, click=base.leave.click),
        come_back=dataclasses.replace(inert.come_back, satisfaction=base.come_back.satisfaction),
    )
    assert same == base
    assert same.digest == base.digest


def test_a_file_nobody_has_seen_loads(tmp_path: Path):
    everything = {}
    for name in ("bazaar", "lexicon"):
        everything |= yaml.safe_load((DATA / f"{name}.yaml").read_text())
    del everything["name"]
    everything["shop"]["items"] = 90
    everything["segments"] = [everything["segments"][i] for i in (0, 3, 4)]
    for feature in everything["features"]:
        if feature["by"] == "segment":
            feature["weights"] = feature["weights"][:3]
    loaded = load_bazaar(write(tmp_path, yaml.safe_dump(everything)))
    assert (loaded.name, loaded.shop.items, len(loaded.segments)) == ("variant", 90, 3)


def test_an_empty_variant_is_the_bazaar_under_another_name(tmp_path: Path):
    path = write(tmp_path, "# nothing\n")
    assert dataclasses.replace(load_bazaar(path), name="bazaar") == load_bazaar()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("leav: {}", "variant.yaml: unknown key 'leav'; did you mean 'leave'?"),
        ("leave: {satisfactoin: 0}", "leave: unknown key 'satisfactoin'; did you mean 'satisfaction'?"),
        ("leave: 3", "leave: wrong type; got 3"),
        ("leave: {base: much}", "leave: base: wrong type; got 'much', expected float"),
        ("leave: {base: .nan}", "leave: base: not a finite number"),
        ("- 1", "not a mapping of parameters"),
        ("a: [", "line 1: not a YAML file"),
        ("shop: {size: 3}", "look: positions: wrong length; got 8, expected 3 values, one for each slot of a page"),
        ("shop: {items: 0}", "shop: items, size, candidates: out of range; got 0"),
        ("categories: []", "categories: an empty list"),
        ("styles: [{name: a, premium: 0, titles: [], texts: [b]}]", "style_taste: wrong length; got 6, expected 1"),
        ("discounts: [0, 0.5]", "click: offer: wrong length; got 4, expected 2 values, one for each discount"),
        ("discounts: []", "discounts: an empty list"),
        ("fatigue: {page: 1.5}", "fatigue: out of range; got 1.5, expected 0.0 to 1.0"),
        ("come_back: {law: never}", "come_back: law: unknown choice; got 'never', expected 'daily' or 'weibull'"),
        ("segments: [{nam: a}]", "segments: unknown option 'nam'; did you mean 'name'?"),
        ("visit_classes: [{name: a, share: 0, base: 1}]", "visit_classes: no share is positive"),
        ("lexicon: {cues: []}", "cue_click: wrong length; got 8, expected 0 values, one for each cue"),
    ],
)
def test_bad_variants(tmp_path: Path, text: str, message: str):
    with pytest.raises(InputError, match=re.escape(message)) as raised:
        load_bazaar(write(tmp_path, text))
    assert "variant.yaml" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_variant_that_is_not_there():
    with pytest.raises(InputError, match=r"cascad: no such variant; .*did you mean 'cascade'"):
        load_bazaar("cascad")
